"""Lightning's Trainer and Fabric."""

import pytest
import torch

import oxistep
import oxistep.optim
from recipes import BATCHES, DIRECTIONS, follow, model, native, watched
from scenarios import NATIVE, assert_same


@pytest.fixture(autouse=True)
def lightning():
    return pytest.importorskip("lightning")


def loader():
    x, y = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)


def test_the_recipe():
    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            made = follow("Lightning", optim, model=model(), loader=loader())
            saved = torch.load("lightning.ckpt", weights_only=False)
            came.append([made["model"].state_dict(), saved["optimizer_states"]])
    assert steps == native(2 * len(loader()))
    assert_same(*came, exact=True)


def test_the_recipe_of_fabric():
    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            made = follow("Fabric", optim, model=model(), batches=BATCHES)
            saved = torch.load("fabric.ckpt", weights_only=True)
            came.append([made["model"].state_dict(), saved["optimizer"]])
            if optim is oxistep.optim:
                made["fabric"].backward(made["model"](BATCHES[0][0]).sum())
                assert {row.path for row in oxistep.explain(made["optimizer"])} == {"native"}
    assert steps == native(len(BATCHES))
    assert_same(*came, exact=True)


def test_explain_after_a_step_of_fabrics():
    optimizer = follow("Fabric", oxistep.optim, model=model(), batches=BATCHES)["optimizer"]
    assert {row.path for row in oxistep.explain(optimizer)} == {"native"}


def trainer(lightning, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", **{"enable_checkpointing": False, **quiet, **kwargs})


def module(lightning, optim, name="AdamW", schedule=None):
    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = model(), []

        def training_step(self, batch, index):
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.model(x.to(self.model[0].weight.dtype)).float(), y.float())
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = getattr(optim, name)(self.parameters(), **NATIVE[name])
            return [optimizer], [] if schedule is None else [schedule(optimizer)]

    return Regression()


def result(one, trainer):
    assert one.losses
    return [one.losses, one.model.state_dict(), trainer.optimizers[0].state_dict()]


SETUPS = {
    "accumulation": {"accumulate_grad_batches": 2},
    "clipped by value": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
}


@pytest.mark.parametrize("setup", SETUPS)
def test_setups(setup, lightning):
    from lightning.pytorch.core.optimizer import LightningOptimizer

    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            one, run = module(lightning, optim), trainer(lightning, max_epochs=2, **SETUPS[setup])
            run.fit(one, loader())
            came.append(result(one, run))
            if optim is oxistep.optim:
                assert isinstance(one.optimizers(), LightningOptimizer)
                assert {row.path for row in oxistep.explain(one.optimizers())} == {"native"}
    assert steps == native(len(loader()) * (1 if setup == "accumulation" else 2))
    assert_same(*came, exact=setup != "64-true")  # bits are promised of float32


@pytest.mark.parametrize("name", [name for name in NATIVE if name != "Adafactor"])
def test_each_class_with_a_schedule(name, lightning):
    came = []
    for optim in (oxistep.optim, torch.optim):
        one = module(lightning, optim, name, lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
        run = trainer(lightning, max_epochs=2)
        run.fit(one, loader())
        came.append(result(one, run))
    assert_same(*came, exact=True)


def test_averaging_of_weights(lightning):
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    came = []
    for optim in (oxistep.optim, torch.optim):
        one = module(lightning, optim)
        run = trainer(lightning, max_epochs=3, callbacks=[StochasticWeightAveraging(0.01, swa_epoch_start=1)])
        run.fit(one, loader())
        came.append(result(one, run))
    assert_same(*came, exact=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resuming(direction, lightning):
    source, target = DIRECTIONS[direction]
    whole, run_of_whole = module(lightning, torch.optim), trainer(lightning, max_epochs=3)
    run_of_whole.fit(whole, loader())
    first = trainer(lightning, max_epochs=2)
    first.fit(module(lightning, source), loader())
    first.save_checkpoint("two.ckpt")
    second, run = module(lightning, target), trainer(lightning, max_epochs=3)
    run.fit(second, loader(), ckpt_path="two.ckpt", weights_only=False)
    assert len(second.losses) == len(loader())
    whole.losses = whole.losses[-len(loader()) :]
    assert_same(result(second, run), result(whole, run_of_whole), exact=True)
