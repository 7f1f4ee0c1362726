"""Hugging Face's Trainer, and PEFT's adapters under it."""

import pytest
import torch

import oxistep
import oxistep.optim
from recipes import DIRECTIONS, follow, watched
from scenarios import NATIVE, assert_same


@pytest.fixture(autouse=True)
def transformers():
    return pytest.importorskip("transformers")


def gpt2():
    """28 parameters, made from a configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=16, n_embd=8, n_layer=2, n_head=2))


def dataset():
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(31, (12,), generator=generator) for _ in range(64)]
    return [{"input_ids": row, "labels": row} for row in tokens]


def arguments(**kwargs):
    from transformers import TrainingArguments

    settings = {"max_steps": 6, "save_steps": 3, "logging_steps": 1, "report_to": [], "use_cpu": True}
    return TrainingArguments("run", **settings, disable_tqdm=True, **kwargs)


def trainer(model, optimizer_cls_and_kwargs=None, optimizers=(None, None), **kwargs):
    from transformers import Trainer

    return Trainer(
        model=model,
        args=arguments(**kwargs),
        train_dataset=dataset(),
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        optimizers=optimizers,
    )


def losses(one) -> list:
    return [line["loss"] for line in one.state.log_history if "loss" in line]


def result(one) -> dict:
    assert len(losses(one)) == 6
    return {"losses": losses(one), "model": one.model.state_dict(), "optimizer": one.optimizer.state_dict()}


def test_the_recipe():
    came = {}
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            came[optim] = follow("Hugging Face Trainer", optim, model=gpt2(), dataset=dataset())["trainer"]
    assert type(came[oxistep.optim].optimizer.optimizer) is oxistep.optim.AdamW
    assert steps == [["native"] * 28] * 6
    assert_same(result(came[oxistep.optim]), result(came[torch.optim]), exact=True)


@pytest.mark.parametrize("name", [name for name in NATIVE if name != "Adafactor"])
def test_each_class_with_accumulation_and_clipping(name):
    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            one = trainer(
                gpt2(), (getattr(optim, name), NATIVE[name]), gradient_accumulation_steps=2, max_grad_norm=0.5
            )
            one.train()
            came.append(result(one))
    assert steps == [["native"] * 28] * 6
    assert_same(*came, exact=True)


def test_an_optimizer_that_is_made_already_with_a_schedule():
    came = []
    for optim in (oxistep.optim, torch.optim):
        model = gpt2()
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        one = trainer(model, optimizers=(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)))
        one.train()
        came.append(result(one))
    assert_same(*came, exact=True)


def test_clipping_in_the_step_is_the_trainers_clipping():
    # not Adam, which makes steps of full size out of gradients that are rounding errors, such as those of keys' biases
    by_step = trainer(gpt2(), (oxistep.optim.SGD, {"lr": 0.1, "max_grad_norm": 0.5}), max_grad_norm=0)
    by_step.train()
    by_trainer = trainer(gpt2(), (torch.optim.SGD, {"lr": 0.1}), max_grad_norm=0.5)  # which seeds anew
    by_trainer.train()
    assert_same(result(by_step), result(by_trainer))


@pytest.mark.parametrize("how", [{"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_autocast_and_checkpointed_activations(how):
    came = []
    for optim in (oxistep.optim, torch.optim):
        one = trainer(gpt2(), (optim.AdamW, {"lr": 1e-2}), **how)
        one.train()
        came.append(result(one))
    assert_same(*came, exact=True)


def test_a_bfloat16_model_with_float32_states():
    one = trainer(gpt2().bfloat16(), (oxistep.optim.AdamW, {"lr": 1e-2, "state_dtype": torch.float32}))
    with watched() as steps:
        one.train()
    assert steps == [["native"] * 28] * 6
    states = one.optimizer.state_dict()["state"].values()
    assert {state["exp_avg"].dtype for state in states} == {torch.float32}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resuming_from_the_trainers_checkpoint(direction):
    """Three steps with the one class, three with the other: as six with torch's."""
    source, target = DIRECTIONS[direction]
    whole = trainer(gpt2(), (torch.optim.AdamW, {"lr": 1e-2}))
    whole.train()
    trainer(gpt2(), (source.AdamW, {"lr": 1e-2})).train()
    second = trainer(gpt2(), (target.AdamW, {"lr": 1e-2}))
    second.train(resume_from_checkpoint="run/checkpoint-3")
    assert_same(result(second), result(whole), exact=True)


@pytest.mark.parametrize("named", ["adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"])
def test_names_of_the_trainers_under_swap(named):
    def training():
        one = trainer(gpt2(), optim=named, learning_rate=1e-2)
        one.train()
        return one

    theirs = training()
    with oxistep.swap(), watched() as steps:
        ours = training()
    assert type(ours.optimizer.optimizer).__module__.startswith("oxistep.optim.")
    assert steps == [["native"] * 28] * 6
    # torch's fused steps are not its for-loop's
    assert_same(result(ours), result(theirs), exact="fused" not in named)


def test_the_recipe_of_peft():
    """LoRA, and LoRA+ with groups of its own, under the Trainer."""
    pytest.importorskip("peft")
    for which, parameters in (("optimizer", 4), ("plus", 4)):
        came = []
        with watched() as steps:
            for optim in (oxistep.optim, torch.optim):
                torch.manual_seed(0)
                made = follow("PEFT", optim, model=gpt2())
                one = trainer(made["model"], optimizers=(made[which], None), max_grad_norm=0.5)
                one.train()
                came.append(result(one))
        assert steps == [["native"] * parameters] * 6
        assert_same(*came, exact=True)
