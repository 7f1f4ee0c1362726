"""The public surface: the names, signatures and relations of torch.optim, and what can be imported when."""

import doctest
import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch

import fresh
import oxistep
import oxistep.optim
from scenarios import NATIVE, each_class, make

# Modules of torch.optim that are handed on as they are; `functional` is new, torch 2.10 lacks it.
HANDED_ON = ["lr_scheduler", "swa_utils", "optimizer"] + ["functional"] * hasattr(torch.optim, "functional")
OURS = [name.lower() for name in NATIVE]
# Modules that torch gives another name.
PRIVATE = {"adafactor": "_adafactor"}


def python(code: str, *, torch_may_be_there: bool = False) -> str:
    """Runs a program in a fresh interpreter; what it prints."""
    if torch_may_be_there:
        done = fresh.python(code)
    else:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_list_is_torchs():
    assert oxistep.optim.__all__ == list(torch.optim.__all__)
    assert set(oxistep.optim.__all__) <= set(dir(oxistep.optim))


@pytest.mark.parametrize("name", torch.optim.__all__)
def test_each_public_name(name):
    ours, theirs = getattr(oxistep.optim, name), getattr(torch.optim, name)
    if ours is theirs:
        assert name not in NATIVE
    else:
        assert issubclass(ours, theirs)
        assert ours.__name__ == name
        assert ours.__module__.startswith("oxistep.optim.")


def test_names_that_torch_does_not_list_are_handed_on():
    assert oxistep.optim._functional is torch.optim._functional


PUBLIC = """
def public(names):
    return sorted(name for name in names if not name.startswith("_"))
"""


@pytest.mark.parametrize("then", ["", "for name in MODULES: importlib.import_module(f'oxistep.optim.{name}')"])
def test_the_namespace_holds_what_torchs_holds(then):
    """A program that makes a menu of the classes in the module finds the same menu, with nothing of typing's in it."""
    modules = OURS + HANDED_ON
    report = python(
        f"MODULES = {modules}"
        + PUBLIC
        + f"""
import importlib, inspect
import torch, oxistep.optim
{then}
ours, theirs = oxistep.optim, torch.optim
for ask in vars, dir, lambda module: dict(inspect.getmembers(module, inspect.isclass)):
    print(public(ask(ours)) == public(ask(theirs)), set(public(ask(ours))) ^ set(public(ask(theirs))))
""",
        torch_may_be_there=True,
    ).splitlines()
    assert report == ["True set()"] * 3


@pytest.mark.parametrize(
    "module",
    [
        "oxistep",
        "oxistep.numpy",
        "oxistep.diagnostics",
        "oxistep.integrations",
        "oxistep.rules",
        "oxistep.schedules",
        "oxistep.viz",
        "oxistep.zoo",
    ],
)
def test_namespaces_hold_what_is_listed_and_modules_of_the_package(module):
    report = python(
        PUBLIC
        + f"""
import types
import {module} as module
for name in public(vars(module)):
    value = getattr(module, name)
    if name not in module.__all__ and not (
        isinstance(value, types.ModuleType) and value.__name__ == f"{module}.{{name}}"
    ):
        print(name)
"""
    )
    assert report == ""


@pytest.mark.parametrize("module", OURS)
def test_modules_of_single_classes_are_attributes_of_the_package(module):
    """As before their names were taken out of it; torch has them nowhere."""
    assert getattr(oxistep.optim, module) is importlib.import_module(f"oxistep.optim.{module}")


def test_star_import():
    names = {}
    exec("from oxistep.optim import *", names)
    assert set(torch.optim.__all__) <= set(names)


@pytest.mark.parametrize("module", HANDED_ON)
def test_modules_that_are_torchs(module):
    ours = importlib.import_module(f"oxistep.optim.{module}")
    assert ours is importlib.import_module(f"torch.optim.{module}")
    assert getattr(oxistep.optim, module) is ours
    assert sys.modules[f"oxistep.optim.{module}"] is ours


@pytest.mark.parametrize("module", OURS)
def test_modules_of_the_native_classes_have_torchs_names(module):
    ours = importlib.import_module(f"oxistep.optim.{module}")
    theirs = importlib.import_module(f"torch.optim.{PRIVATE.get(module, module)}")
    assert sorted(ours.__all__) == sorted(theirs.__all__)
    for name in theirs.__all__:
        assert getattr(ours, name) is (getattr(oxistep.optim, name) if name in NATIVE else getattr(theirs, name))


def test_imports_as_users_write_them():
    from oxistep.optim import AdamW
    from oxistep.optim.lr_scheduler import StepLR
    from oxistep.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
    from oxistep.optim.swa_utils import AveragedModel

    assert AdamW is oxistep.optim.AdamW
    assert StepLR is torch.optim.lr_scheduler.StepLR
    assert Optimizer is torch.optim.Optimizer
    assert callable(register_optimizer_step_pre_hook)
    assert AveragedModel is torch.optim.swa_utils.AveragedModel


@each_class
def test_constructors_begin_with_torchs_parameters(name):
    ours = list(inspect.signature(getattr(oxistep.optim, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch.optim, name)).parameters.values())
    assert ours[: len(theirs)] == theirs
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours[len(theirs) :])


@each_class
def test_a_subclass_with_a_constructor_of_its_own_shows_that(name):
    class Mine(getattr(oxistep.optim, name)):
        def __init__(self, params, size):
            super().__init__(params, lr=1.0 / size)

    assert list(inspect.signature(Mine).parameters) == ["params", "size"]
    assert Mine([torch.ones(1)], 4).defaults["lr"] == 0.25


@each_class
def test_step_looks_as_torchs(name):
    (parameter,) = inspect.signature(make(oxistep.optim, name, [torch.ones(1)]).step).parameters.values()
    assert parameter.name == "closure"
    assert parameter.default is None
    assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD


@each_class
def test_relations_between_classes(name):
    ours, theirs = getattr(oxistep.optim, name), getattr(torch.optim, name)
    for other in NATIVE:
        relation = issubclass(theirs, getattr(torch.optim, other))
        assert issubclass(ours, getattr(oxistep.optim, other)) is relation
        assert issubclass(ours, getattr(torch.optim, other)) is relation
    assert issubclass(ours, torch.optim.Optimizer)
    assert not issubclass(theirs, ours)


@each_class
def test_an_instance_is_torchs_in_all_but_step(name):
    ours, theirs = (make(optim, name, [torch.ones(2)]) for optim in (oxistep.optim, torch.optim))
    assert repr(ours) == repr(theirs)
    assert ours.defaults == theirs.defaults
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    assert vars(ours).keys() == vars(theirs).keys()


def test_the_classes_are_reachable_from_the_top():
    for name in NATIVE:
        assert getattr(oxistep, name) is getattr(oxistep.optim, name)
    assert set(NATIVE) <= set(dir(oxistep))
    assert set(oxistep.__all__) <= set(dir(oxistep))
    assert all(hasattr(oxistep, name) for name in oxistep.__all__)


@pytest.mark.parametrize("module", [oxistep, oxistep.optim], ids=lambda module: module.__name__)
def test_unknown_names(module):
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'Adamm'"):
        module.Adamm  # noqa: B018
    assert not hasattr(module, "Adamm")


def test_version():
    assert oxistep.__version__ == importlib.metadata.version("oxistep")


def test_importing_oxistep_imports_no_torch():
    assert python("import sys, oxistep; print('torch' in sys.modules)") == "False"
    assert python("import sys, oxistep.numpy; print('torch' in sys.modules)") == "False"
    assert (
        python("import sys, oxistep.schedules; print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False"
    )
    assert python("import sys, oxistep.integrations; print('torch' in sys.modules)") == "False"
    assert python("import sys, oxistep.rules; oxistep.rule; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "module", ["optim", "numpy", "diagnostics", "integrations", "rules", "schedules", "viz", "zoo"]
)
def test_modules_are_reachable_after_importing_the_package(module):
    program = f"import oxistep; print(oxistep.{module}.__name__)"
    assert python(program, torch_may_be_there=True) == f"oxistep.{module}"


def test_touching_a_class_imports_torch_and_not_its_compiler():
    """To import torch's compiler takes about as long as to import torch."""
    modules = "import sys, oxistep; oxistep.Adam; print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    assert python(modules) == "True False"


# What a process sees where torch is not installed.
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(
    "statement",
    ["import oxistep.optim", "from oxistep.optim.lr_scheduler import StepLR", "import oxistep; oxistep.Adam"],
)
def test_without_torch_the_error_says_what_to_install(statement):
    report = python(
        WITHOUT_TORCH
        + f"""
try:
    {statement}
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    )
    assert report.startswith("torch oxistep.optim needs PyTorch: pip install 'torch>=2.10'")
    assert "oxistep.numpy" in report


def test_without_torch_numpy_works():
    report = python(
        WITHOUT_TORCH
        + """
import numpy as np, oxistep.numpy
w = np.ones(2)
oxistep.numpy.SGD([w], lr=0.5).step([np.ones(2)])
print(w)
"""
    )
    assert report == "[0.5 0.5]"


def test_what_needs_torch_says_so():
    report = python(
        WITHOUT_TORCH
        + """
import numpy as np, oxistep, oxistep.numpy
def said(what):
    try:
        what()
    except (ImportError, TypeError) as error:
        print(error)
said(lambda: oxistep.clip_grad_norm_)
said(lambda: oxistep.swap)
said(lambda: oxistep.AdamW)
said(lambda: oxistep.explain(None))
said(lambda: oxistep.explain(oxistep.numpy.SGD([np.ones(2)])))
"""
    ).splitlines()
    assert report[0].startswith("oxistep.clip_grad_norm_ needs PyTorch: pip install 'torch>=2.10'")
    assert report[1].startswith("oxistep.swap needs PyTorch: pip install 'torch>=2.10'")
    assert report[2].startswith("oxistep.optim needs PyTorch: pip install 'torch>=2.10'")
    assert report[3].endswith("needs PyTorch: pip install 'torch>=2.10'")
    assert "got oxistep.numpy's SGD: NumPy optimizers always run natively" in report[4]


def test_dir_lists_what_is_public():
    listed = {name for name in dir(oxistep) if not name.startswith("__")}
    assert listed == {*oxistep.__all__, "diagnostics", "numpy", "optim", "viz"} - {"__version__"}


def test_a_broken_torch_is_not_called_missing(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import a_library_that_torch_needs")
    report = python(
        f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    import oxistep.optim
except ModuleNotFoundError as error:
    print(error)
"""
    )
    assert report == "No module named 'a_library_that_torch_needs'"


def modules_of_oxistep():
    names = [m.name for m in pkgutil.walk_packages(oxistep.__path__, "oxistep.")]
    modules = [oxistep] + [importlib.import_module(name) for name in names if "functional" not in name]
    return [module for module in modules if module.__name__.startswith("oxistep")]


@pytest.mark.parametrize("module", modules_of_oxistep(), ids=lambda module: module.__name__)
def test_docstrings_exist(module):
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name} has no docstring"


@each_class
def test_class_docstrings_are_complete(name):
    ours = getattr(oxistep.optim, name)
    text = ours.__doc__
    assert ours.step.__doc__
    for part in ("Example:", ">>> ", "Reference:", ".. math::"):
        assert part in text
    if name != "AdamW":  # which refers to Adam
        documented = text.partition("Args:")[2].partition("State:")[0]
        assert "Raises:" in text
        assert [p for p in inspect.signature(ours).parameters if p not in documented] == []


@pytest.mark.parametrize("module", modules_of_oxistep(), ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {test.name for module in modules_of_oxistep() for test in finder.find(module) if test.examples}
    assert {f"oxistep.optim.{module}.{name}" for module, name in zip(OURS, NATIVE, strict=True)} <= found
    assert {"oxistep.cpu_features", "oxistep._explain.explain"} <= found
