"""What programs read of a class before they make one of it: names of parameters, in four ways."""

import inspect

import pytest
import torch

import oxistep.optim
from every_torch_class import draw, each_of_fifteen, make

SETTINGS = ["state_dtype", "weights", "seed", "ema", "ema_warmup", "max_grad_norm", "skip_nonfinite", "grad_norm_group"]
OF_WHOLE_TENSORS = ("Adafactor", "Muon", "SparseAdam")


def settings_of(name):
    """What our class takes beside torch's parameters."""
    if name == "LBFGS":
        return []
    return [one for one in SETTINGS if name not in OF_WHOLE_TENSORS or one not in ("weights", "seed")]


def of_signature(cls):
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]


def of_argspec(cls):
    spec = inspect.getfullargspec(cls.__init__)
    return [*spec.args[1:], *spec.kwonlyargs]


def of_code(cls):
    code = cls.__init__.__code__
    return list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


def of_class(cls):
    spec = inspect.getfullargspec(cls)
    return [*spec.args[1:], *spec.kwonlyargs]


@each_of_fifteen
@pytest.mark.parametrize("names_of", [of_signature, of_argspec, of_code, of_class])
def test_every_way_of_asking_tells_torchs_parameters_and_then_ours(name, names_of):
    theirs = names_of(getattr(torch.optim, name))
    assert names_of(getattr(oxistep.optim, name)) == theirs + settings_of(name)


@each_of_fifteen
def test_positions_kinds_and_defaults_are_torchs(name):
    def shape(cls):
        return [(p.name, p.kind, p.default) for p in inspect.signature(cls.__init__).parameters.values()]

    ours, theirs = shape(getattr(oxistep.optim, name)), shape(getattr(torch.optim, name))
    assert ours[: len(theirs)] == theirs
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in ours[len(theirs) :])
    assert inspect.signature(getattr(oxistep.optim, name)) == inspect.signature(
        getattr(oxistep.optim, name).__init__
    ).replace(
        parameters=list(inspect.signature(getattr(oxistep.optim, name).__init__).parameters.values())[1:],
        return_annotation=inspect.signature(getattr(oxistep.optim, name)).return_annotation,
    )


@each_of_fifteen
@pytest.mark.parametrize(
    "keep",
    [
        lambda cls, name: name in inspect.signature(cls.__init__).parameters,
        lambda cls, name: (
            name in inspect.getfullargspec(cls.__init__).args or name in inspect.getfullargspec(cls.__init__).kwonlyargs
        ),
        lambda cls, name: name in cls.__init__.__code__.co_varnames,
        lambda cls, name: name in inspect.signature(cls).parameters,
    ],
    ids=["signature", "argspec", "code", "class"],
)
def test_a_program_that_keeps_what_the_constructor_names(name, keep):
    config = {"lr": 0.123, "weight_decay": 0.01, "momentum": 0.5, "history_size": 7, "no_such_thing": 1}

    def defaults(optim):
        cls = getattr(optim, name)
        return cls(draw(name), **{key: value for key, value in config.items() if keep(cls, key)}).defaults

    assert defaults(oxistep.optim) == defaults(torch.optim)


@each_of_fifteen
def test_a_subclass_shows_its_own_parameters(name):
    class Mine(getattr(oxistep.optim, name)):
        def __init__(self, params, lr=0.1, *, extra=1):
            super().__init__(params, lr=lr)

    assert list(inspect.signature(Mine).parameters) == ["params", "lr", "extra"]


@each_of_fifteen
def test_what_a_class_has_beside_torchs_names(name):
    """A class that users subclass owns none of their names, but for the settings that the documentation names."""
    ours, theirs = getattr(oxistep.optim, name), getattr(torch.optim, name)
    extra = {n for n in set(dir(ours)) - set(dir(theirs)) if not n.startswith("__")}
    assert extra == (
        set()
        if name == "LBFGS"
        else {
            "max_grad_norm",
            "skip_nonfinite",
            "grad_norm_group",
            "last_grad_norm",
            "master",
            "averaged",
            "ema_state_dict",
        }
    )
    assert set(vars(make(oxistep.optim, name, draw(name)))) == set(vars(make(torch.optim, name, draw(name))))


def test_the_list_of_subclasses_of_optimizer_has_none_that_cannot_be_made():
    direct = torch.optim.Optimizer.__subclasses__()
    # the base of rules is there once it is used, as torch's own base is: it takes what a constructor hands over
    of_rules = [cls for cls in direct if cls.__module__ == "oxistep.rules" and cls.__name__ == "Optimizer"]
    wrapper = "oxistep.zoo._wrapper"  # and that of the zoo's wrappers, which take an optimizer
    ours = [cls for cls in direct if cls.__module__.startswith("oxistep") and cls.__module__ != wrapper]
    assert ours == of_rules

    def below(cls):
        return {cls} | {deeper for sub in cls.__subclasses__() for deeper in below(sub)}

    ours = {cls for cls in below(torch.optim.Optimizer) if cls.__module__.startswith("oxistep.optim.")}
    assert {cls.__name__ for cls in ours} == {n for n in torch.optim.__all__ if n[0].isupper()} - {"Optimizer"}
