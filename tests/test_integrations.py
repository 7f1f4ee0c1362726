"""``oxistep.integrations``: other packages told of our classes. timm's are tested where it is installed."""

import subprocess
import sys

import pytest
import torch

import oxistep.integrations
import oxistep.optim


@pytest.fixture
def factory(monkeypatch):
    found = pytest.importorskip("timm.optim._optim_factory")
    monkeypatch.setattr(found.default_registry, "_optimizers", dict(found.default_registry._optimizers))
    return found


def of_torch(factory):
    """The names of timm's that stand for a class of torch's."""
    registry = factory.default_registry
    classes = {name: registry.get_optimizer_info(name).opt_class for name in registry.list_optimizers()}
    torchs = {torch_class for torch_class in vars(torch.optim).values() if isinstance(torch_class, type)}
    return {name: value for name, value in classes.items() if isinstance(value, type) and value in torchs}


def test_timm_makes_ours_with_its_own_defaults(factory):
    theirs = of_torch(factory)
    assert {"sgd", "momentum", "adam", "adamw", "rmsprop"} <= set(theirs)
    assert sorted(oxistep.integrations.register_timm()) == sorted("oxistep" + name for name in theirs)
    for name, torch_class in theirs.items():
        model = torch.nn.Linear(2, 1)
        make = {"model_or_params": model, "lr": 0.1, "weight_decay": 0.05}
        a = factory.create_optimizer_v2(opt="oxistep" + name, **make)
        b = factory.create_optimizer_v2(opt=name, **make)
        assert type(b) is torch_class
        assert type(a) is getattr(oxistep.optim, torch_class.__name__)
        assert a.defaults == b.defaults
        assert [len(group["params"]) for group in a.param_groups] == [len(group["params"]) for group in b.param_groups]


def test_timm_takes_the_name_with_a_prefix_of_its_own(factory):
    oxistep.integrations.register_timm()
    optimizer = factory.create_optimizer_v2(torch.nn.Linear(2, 1), opt="lookahead_oxistepadamw", lr=0.1)
    assert type(optimizer._base_optimizer) is oxistep.optim.AdamW


def test_registering_with_timm_again_changes_nothing(factory, caplog):
    first = oxistep.integrations.register_timm()
    before = dict(factory.default_registry._optimizers)
    assert oxistep.integrations.register_timm() == first
    assert factory.default_registry._optimizers == before
    assert caplog.records == []


def in_a_process(prepare):
    program = f"""
import sys, types
{prepare}
import oxistep.integrations
assert "torch" not in sys.modules
try:
    oxistep.integrations.register_timm()
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_timm_the_error_says_what_to_install():
    said = in_a_process("sys.modules['timm'] = None")
    assert said == "oxistep.integrations.register_timm needs timm: pip install 'timm>=1.0.12'"


@pytest.mark.parametrize("has_factory", [False, True])
def test_an_old_timm_is_told_apart(has_factory):
    """Before 1.0.12 there was no registry; a stand-in has what such a timm has."""
    old = "sys.modules['timm'] = types.ModuleType('timm')"
    if has_factory:
        old += """
for name in 'timm.optim', 'timm.optim._optim_factory':
    sys.modules[name] = types.ModuleType(name)"""
    assert in_a_process(old).endswith(
        "no registry of optimizers where oxistep looks for it: pip install 'timm>=1.0.12'"
    )


def test_a_timm_that_lacks_a_package_is_not_called_missing(tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import a_package_that_timm_needs")
    assert in_a_process(f"sys.path.insert(0, {str(tmp_path)!r})") == "No module named 'a_package_that_timm_needs'"
