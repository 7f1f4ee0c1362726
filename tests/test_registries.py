"""docs/swap-in.md, "Inspection, subclassing and registries": each line of its table, with what it says to do."""

import dataclasses
import io
import re
from pathlib import Path

import pytest
import torch

import fresh
import oxistep
import oxistep.optim
from scenarios import each_class

PAGE = Path(__file__).parents[1] / "docs" / "swap-in.md"


def lines():
    """The lines of the table by their first column, each with what there is to do."""
    section = PAGE.read_text(encoding="utf-8").partition("## Inspection, subclassing and registries")[2]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[2] for row in rows[2:]}


def code(who):
    """The pieces of code in what a line says to do."""
    (found,) = [todo for name, todo in lines().items() if who in name]
    return re.findall(r"`([^`]+)`", found)


def step(optimizer, p):
    p.grad = torch.ones_like(p)
    optimizer.step()
    return p


def test_every_line_has_a_test():
    """A new line needs one below, and its name here."""
    tested = ("higher", "DeepSpeed", "timm", "stable-baselines3", "torch.package", "__subclasses__", "module names")
    assert len(lines()) == len(tested)
    assert all(any(who in name for name in lines()) for who in tested)


def test_higher_takes_what_was_registered(monkeypatch):
    higher = pytest.importorskip("higher")
    monkeypatch.setattr(higher.optim, "_opt_mapping", dict(higher.optim._opt_mapping))
    model = torch.nn.Linear(2, 1)
    x = torch.ones(1, 2)

    def meta_gradient(optimizer):
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional, inner):
            inner.step(functional(x).square().sum())
            return torch.autograd.grad(functional(x).square().sum(), model.weight)

    optimizer = oxistep.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="not supported by higher yet"):
        meta_gradient(optimizer)
    (register,) = code("higher")
    eval(register)
    (ours,), (theirs,) = map(meta_gradient, (optimizer, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)))
    assert torch.equal(ours, theirs)
    assert ours.abs().sum() > 0


def test_deepspeed_has_a_list_of_classes_and_keys_that_allow_others():
    utils = pytest.importorskip("deepspeed.runtime.zero.utils")
    from deepspeed.runtime import constants

    assert torch.optim.AdamW in utils.ZERO_SUPPORTED_OPTIMIZERS
    assert oxistep.optim.AdamW not in utils.ZERO_SUPPORTED_OPTIMIZERS
    keys = [key.partition(":")[0].strip('"') for key in code("DeepSpeed")]
    assert keys == [constants.ZERO_ALLOW_UNTESTED_OPTIMIZER, constants.ZERO_FORCE_DS_CPU_OPTIMIZER]


def test_timm_makes_what_was_registered(monkeypatch):
    factory = pytest.importorskip("timm.optim._optim_factory")
    default_registry = factory.default_registry
    monkeypatch.setattr(default_registry, "_optimizers", dict(default_registry._optimizers))
    register, opt = code("timm")[:2]
    eval(register, {"oxistep": oxistep})
    model = torch.nn.Linear(2, 1)
    kwargs = eval(f"dict({opt})")
    assert type(factory.create_optimizer_v2(model, lr=0.1, **kwargs)) is oxistep.optim.AdamW
    # why the name has no underscore
    info = default_registry.get_optimizer_info(kwargs["opt"])
    default_registry.register(dataclasses.replace(info, name="oxistep_adamw"))
    assert type(factory.create_optimizer_v2(model, opt="oxistep_adamw", lr=0.1)) is torch.optim.AdamW


def test_stable_baselines3_sets_eps_for_torchs_adam_alone():
    policies = pytest.importorskip("stable_baselines3.common.policies")
    from gymnasium import spaces

    def eps(**kwargs):
        policy = policies.ActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-3, **kwargs)
        return policy.optimizer.defaults["eps"]

    (said,) = code("stable-baselines3")
    assert eps() == 1e-5
    assert eps(optimizer_class=oxistep.optim.Adam) == 1e-8
    assert eps(**eval(said.removeprefix("policy_kwargs="))) == 1e-5


# torch.package itself uses storages of the old kind.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_a_package_that_takes_oxistep_from_outside():
    from torch.package import PackageExporter, PackageImporter
    from torch.package.package_exporter import PackagingError

    p = torch.nn.Parameter(torch.ones(3))
    optimizer = oxistep.optim.AdamW([p], lr=0.1)
    step(optimizer, p)

    with pytest.raises(PackagingError, match=r"oxistep\.optim"), PackageExporter(io.BytesIO()) as exporter:
        exporter.save_pickle("run", "optimizer.pkl", optimizer)

    file = io.BytesIO()
    with PackageExporter(file) as exporter:
        (extern,) = code("torch.package")
        eval(extern)
        exporter.save_pickle("run", "optimizer.pkl", optimizer)
    file.seek(0)
    loaded = PackageImporter(file).load_pickle("run", "optimizer.pkl")
    assert type(loaded) is oxistep.optim.AdamW
    (q,) = loaded.param_groups[0]["params"]
    assert torch.equal(step(loaded, q), step(optimizer, p))


def test_registries_by_subclasses_find_ours_below_torchs():
    program = """
import torch, oxistep.optim
def below(base):
    for cls in base.__subclasses__():
        yield cls
        yield from below(cls)
optimizers = [v for v in vars(oxistep.optim).values() if isinstance(v, type) and v is not torch.optim.Optimizer]
assert len(optimizers) >= 15
assert set(optimizers) <= set(below(torch.optim.Optimizer))
assert not set(optimizers) & set(torch.optim.Optimizer.__subclasses__())
"""
    done = fresh.python(program)
    assert done.returncode == 0, done.stderr


@each_class
def test_what_to_ask_instead_of_the_module_name(name):
    ours, theirs = getattr(oxistep.optim, name), getattr(torch.optim, name)
    assert ours.__module__ == f"oxistep.optim.{name.lower()}" or name == "SparseAdam"
    assert ours.__module__.startswith("oxistep.optim.")
    assert theirs.__module__.startswith("torch.optim")
    assert ours.__name__ == theirs.__name__ == name
    assert issubclass(ours, theirs)
