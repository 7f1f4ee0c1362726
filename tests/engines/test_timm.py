"""timm's factory of optimizers, which test_integrations.py asks for classes and defaults: here it trains."""

import importlib

import pytest
import torch

import oxistep.integrations
import oxistep.optim
from recipes import code, watched
from scenarios import assert_same

SIX = ("sgd", "momentum", "adam", "adamw", "nadam", "rmsprop")


@pytest.fixture(autouse=True)
def timm(monkeypatch):
    found = pytest.importorskip("timm")
    import timm.models
    import timm.optim
    import timm.scheduler
    import timm.utils  # noqa: F401

    registry = importlib.import_module("timm.optim._optim_factory").default_registry
    monkeypatch.setattr(registry, "_optimizers", dict(registry._optimizers))
    return found


def vision_transformer(timm):
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.models.VisionTransformer(**sizes)


def training(model, optimizer, start=0, stop=5):
    losses = []
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(3, (4,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_the_recipe(timm):
    model = vision_transformer(timm)
    namespace = {"model": model}
    exec(code("timm"), namespace)
    assert type(namespace["optimizer"]) is oxistep.optim.AdamW
    with watched() as steps:
        losses = training(model, namespace["optimizer"])
    assert len(steps) == 5
    assert {path for step in steps for path in step} == {"native"}
    again = vision_transformer(timm)
    optimizer = timm.optim.create_optimizer_v2(again, opt="adamw", lr=1e-3)
    assert_same([losses, model.state_dict()], [training(again, optimizer), again.state_dict()], exact=True)


@pytest.mark.parametrize("prefix", ["", "lookahead_"])
@pytest.mark.parametrize("name", SIX)
def test_training_with_layer_decay_and_a_schedule(name, prefix, timm):
    oxistep.integrations.register_timm()
    came = []
    with watched() as steps:
        for ours in ("oxistep", ""):
            model = vision_transformer(timm)
            optimizer = timm.optim.create_optimizer_v2(
                model, opt=f"{prefix}{ours}{name}", lr=0.01, weight_decay=0.05, layer_decay=0.75
            )
            assert len(optimizer.param_groups) > 4
            schedule = timm.scheduler.CosineLRScheduler(optimizer, t_initial=5, warmup_t=2, warmup_lr_init=1e-3)
            losses = []
            for epoch in range(3):
                schedule.step(epoch)
                losses += training(model, optimizer, 2 * epoch, 2 * epoch + 2)
            came.append([losses, model.state_dict(), optimizer.state_dict()])
            # through Lookahead, which is an optimizer too
            assert {row.path for row in oxistep.explain(optimizer)} == {"native" if ours else "skipped"}
    assert len(steps) == 6
    assert {path for step in steps for path in step} == {"native"}
    assert_same(*came, exact=True)


@pytest.mark.parametrize(
    ("source", "target"), [("oxistepadamw",) * 2, ("adamw", "oxistepadamw"), ("oxistepadamw", "adamw")]
)
def test_resuming_from_timms_checkpoint(source, target, timm):
    oxistep.integrations.register_timm()

    def made(opt):
        model = vision_transformer(timm)
        return model, timm.optim.create_optimizer_v2(model, opt=opt, lr=0.01)

    whole = made("adamw")
    training(*whole)
    first = made(source)
    training(*first, stop=3)
    saver = timm.utils.CheckpointSaver(*first, args=None, checkpoint_dir=".", recovery_dir=".")
    saver.save_checkpoint(epoch=0)
    second = made(target)
    timm.models.resume_checkpoint(second[0], "last.pth.tar", optimizer=second[1], log_info=False)
    training(*second, start=3)
    assert_same([one.state_dict() for one in second], [one.state_dict() for one in whole], exact=True)
