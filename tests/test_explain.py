"""``oxistep.explain`` where people stand: at a wrapper, and, with ``OXISTEP_EXPLAIN=1``, at the first step.

The stand-ins keep the optimizer where the packages named keep it; torch's own wrappers are the real ones.
"""

import os
from unittest import mock

import pytest
import torch
from torch import distributed

import fresh
import oxistep
import oxistep.optim
from scenarios import PATH
from seeing import Seeing

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

distributed_here = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch is built without it"
)


def params():
    """Two parameters, one of which torch has to update."""
    found = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, device="meta"))]
    for p in found:
        p.grad = torch.ones_like(p)
    return found


class AsOptimizer(torch.optim.Optimizer):
    """A wrapper that is an optimizer and hands on what it is asked for, as accelerate's AcceleratedOptimizer."""

    def __init__(self, where, inside):
        setattr(self, where, inside)

    @property
    def param_groups(self):
        return next(iter(vars(self).values())).param_groups


class AsObject:
    """A wrapper that is no optimizer and keeps its groups to itself, as DeepSpeed's."""

    def __init__(self, where, inside):
        setattr(self, where, inside)


# accelerate, DeepSpeed; torch.distributed; timm's Lookahead; Opacus
each_place = pytest.mark.parametrize(
    "where", ["optimizer", "optim", "_base_optimizer", "base_optimizer", "original_optimizer"]
)
each_kind = pytest.mark.parametrize("kind", [AsOptimizer, AsObject])


@each_place
@each_kind
def test_ours_in_a_wrapper(where, kind):
    ours = oxistep.optim.SGD([("w", p) for p in params()[:1]] + [("on meta", p) for p in params()[1:]], lr=0.1)
    expected = oxistep.explain(ours)
    assert [row.path for row in expected] == [PATH, "torch"]
    assert oxistep.explain(kind(where, ours)) == expected
    assert oxistep.explain(AsObject("optimizer", kind(where, AsOptimizer("optim", ours)))) == expected


@each_place
@each_kind
def test_torchs_in_a_wrapper(where, kind):
    rows = oxistep.explain(kind(where, torch.optim.Adam(params(), lr=0.1)))
    assert {(row.path, row.reason) for row in rows} == {
        ("torch", f"Adam, which {kind.__name__} wraps, is torch's own class")
    }
    assert len(rows) == 2


def test_a_class_that_is_neither():
    class Lion(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    assert {row.reason for row in oxistep.explain(Lion(params()))} == {"Lion is no class of oxistep's"}


def test_wrappers_that_lead_back_to_themselves():
    a, b = AsObject("optim", None), AsObject("optimizer", None)
    a.optim, b.optimizer = b, a
    with pytest.raises(TypeError, match="or what wraps one, got AsObject"):
        oxistep.explain(a)
    b.base_optimizer = oxistep.optim.SGD(params(), lr=0.1)
    assert [row.path for row in oxistep.explain(a)] == [PATH, "torch"]


def test_an_attribute_of_that_name_that_is_no_optimizer():
    ours = oxistep.optim.SGD(params(), lr=0.1)
    wrapper = AsOptimizer("optim", ours)
    wrapper.optimizer = "sgd"
    assert oxistep.explain(wrapper) == oxistep.explain(ours)


def test_a_property_that_raises_is_passed_over():
    class Wrapper:
        original_optimizer = oxistep.optim.SGD(params(), lr=0.1)

        @property
        def optimizer(self):
            raise RuntimeError("not prepared yet")

    assert [row.path for row in oxistep.explain(Wrapper())] == [PATH, "torch"]


@pytest.mark.parametrize("what", [None, 3, object(), mock.MagicMock(), torch, torch.optim.SGD])
def test_what_wraps_no_optimizer_is_refused(what):
    with pytest.raises(TypeError, match=r"expected an optimizer of oxistep\.optim or torch\.optim, or what wraps one"):
        oxistep.explain(what)


@pytest.fixture
def alone():
    """A process group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@distributed_here
def test_zero_redundancy_optimizer(alone):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for optim, expected in (oxistep.optim, PATH), (torch.optim, "torch"):
        wrapper = ZeroRedundancyOptimizer(params()[:1], optimizer_class=optim.AdamW, lr=0.1)
        (row,) = oxistep.explain(wrapper)
        assert row.path == expected
    assert row.reason == "AdamW, which ZeroRedundancyOptimizer wraps, is torch's own class"


@distributed_here
def test_post_local_sgd_optimizer(alone):
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    for optim, expected in (oxistep.optim, PATH), (torch.optim, "torch"):
        averager = PeriodicModelAverager(period=4, warmup_steps=10)
        (row,) = oxistep.explain(PostLocalSGDOptimizer(optim.SGD(params()[:1], lr=0.1), averager))
        assert row.path == expected
    assert row.reason == "SGD, which PostLocalSGDOptimizer wraps, is torch's own class"


def test_a_wrapper_that_inherits_from_our_class_is_looked_through():
    class Fabrics(oxistep.optim.SGD):
        def __init__(self, optimizer):
            self.__dict__.update({key: value for key, value in vars(optimizer).items() if key != "_oxistep"})
            self.optimizer = optimizer

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = oxistep.optim.SGD([p], lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    assert list(oxistep.explain(Fabrics(optimizer))) == list(oxistep.explain(optimizer))


# ---- OXISTEP_EXPLAIN ----

BEGINNING = """
import warnings
warnings.simplefilter("ignore")
import torch, oxistep.optim as optim
def parameter(*shape, **kwargs):
    p = torch.nn.Parameter(torch.ones(*shape, **kwargs))
    p.grad = torch.ones_like(p)
    return p
"""


def said(program, **environment):
    """What a program writes to stderr."""
    clean = {key: value for key, value in os.environ.items() if key not in ("OXISTEP_BACKEND", "OXISTEP_EXPLAIN")}
    done = fresh.python(BEGINNING + program, env=clean | environment)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


SEVERAL = """
optimizers = [
    optim.AdamW([parameter(3), parameter(2, 2)]),
    optim.SGD([("w", parameter(3)), ("off", parameter(3)), ("far", parameter(3, device="meta"))], lr=0.1),
    optim.Adam([parameter(3), parameter(3)]),
    optim.Muon([parameter(2, 2)]),
]
optimizers[1].param_groups[0]["params"][1].grad = None
optimizers[2].param_groups[0]["params"][1].grad = None
for _ in range(3):
    for optimizer in optimizers:
        optimizer.step()
p = parameter(3)
lbfgs = optim.LBFGS([p])
for _ in range(3):
    lbfgs.step(lambda: p.square().sum())
"""


def test_one_line_at_the_first_step_of_each_optimizer():
    far = torch.nn.Parameter(torch.ones(3, device="meta"))
    far.grad = torch.ones_like(far)
    definition = oxistep.optim._definition.definition_of(oxistep.optim.SGD)
    other = oxistep.optim.SGD([far], lr=0.1)
    ((*_, reason),) = definition.new_plan(other).explain(other)
    assert said(SEVERAL, OXISTEP_EXPLAIN="1") == [
        "AdamW: 2 of 2 native",
        f"SGD: 1 of 3 native; far is torch's: {reason}",
        "Adam: 1 of 2 native; param_groups[0]['params'][1] is skipped: it has no gradient",
        "Muon: 1 of 1 native",
        "LBFGS: 1 of 1 native",
    ]


@pytest.mark.parametrize("environment", [{}, {"OXISTEP_EXPLAIN": "0"}, {"OXISTEP_EXPLAIN": ""}])
def test_nothing_is_said_unasked(environment):
    assert said(SEVERAL, **environment) == []


def test_when_everything_is_torchs():
    lines = said("optim.Adam([parameter(3), parameter(2)]).step()", OXISTEP_EXPLAIN="1", OXISTEP_BACKEND="torch")
    assert lines == ["Adam: 0 of 2 native; param_groups[0]['params'][0] is torch's: OXISTEP_BACKEND=torch"]


def test_the_gradients_are_those_that_the_closure_makes():
    program = """
p = torch.nn.Parameter(torch.ones(3))
def closure():
    loss = p.sum()
    loss.backward()
    return loss
optim.SGD([p], lr=0.1).step(closure)
"""
    assert said(program, OXISTEP_EXPLAIN="1") == ["SGD: 1 of 1 native"]


def test_a_monitor_does_not_hide_the_first_step():
    program = """
from oxistep.diagnostics import UpdateMonitor
p = torch.nn.Parameter(torch.ones(3))
optimizer = optim.SGD([p], lr=0.1)
monitor = UpdateMonitor(optimizer)
def closure():
    loss = p.sum()
    loss.backward()
    return loss
optimizer.step(closure)
"""
    assert said(program, OXISTEP_EXPLAIN="1") == ["SGD: 1 of 1 native"]


class Seen(Seeing, torch.Tensor):
    """Sees every function, and changes nothing."""


has_steps_of_its_own = pytest.mark.skipif(PATH == "torch", reason="everything is torch's")


@has_steps_of_its_own
def test_after_the_step_it_tells_what_the_step_did():
    plain, odd = (torch.nn.Parameter(torch.ones(3)) for _ in "ab")
    plain.grad, odd.grad = torch.ones(3), torch.ones(3).as_subclass(Seen)
    optimizer = oxistep.optim.SGD([("plain", plain), ("odd", odd), ("idle", torch.nn.Parameter(torch.ones(1)))], lr=0.1)
    before = [row.path for row in oxistep.explain(optimizer)]
    optimizer.step()
    optimizer.zero_grad()
    rows = oxistep.explain(optimizer)
    assert [row.path for row in rows] == before
    assert [row.name for row in rows] == ["plain", "odd", "idle"]
    assert all(row.reason.endswith("(in the last step: it has no gradient now)") for row in rows[:2])
    assert rows[2].reason == "it has no gradient"
    optimizer.param_groups[0]["params"] = []  # as ZeRO-3 leaves it between steps
    assert [row.path for row in oxistep.explain(optimizer)] == before[:2]
    # what was added since then was in no step
    optimizer.add_param_group({"params": [("new", torch.nn.Parameter(torch.ones(1)))]})
    assert oxistep.explain(optimizer)[-1].path == "skipped"
    # a gradient that is there now says more than the last step
    plain.grad = torch.ones(3)
    optimizer.param_groups[0]["params"] = [plain]
    assert "in the last step" not in oxistep.explain(optimizer)[0].reason


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor", "SparseAdam", "Muon"])
def test_before_the_first_backward_it_tells_what_a_step_would_do(name):
    w, frozen = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3, 2), requires_grad=False)
    optimizer = getattr(oxistep.optim, name)([("w", w), ("frozen", frozen)])
    foreseen = oxistep.explain(optimizer)
    assert w.grad is None and frozen.grad is None and not optimizer.state
    assert foreseen[0].path == PATH
    assert foreseen[1].path == "skipped"
    w.grad = torch.ones(3, 2).to_sparse(1) if name == "SparseAdam" else torch.ones(3, 2)
    now = oxistep.explain(optimizer)[0].reason
    assert foreseen[0].reason == f"{now} (after the first backward: it has no gradient yet)"


def test_what_would_fall_back_is_foreseen():
    far, odd = torch.nn.Parameter(torch.ones(2, device="meta")), torch.nn.Parameter(torch.ones(3).as_subclass(Seen))
    rows = oxistep.explain(oxistep.optim.SGD([("far", far), ("odd", odd)], lr=0.1))
    assert [row.path for row in rows] == ["torch", "torch"]
    assert str(rows).splitlines()[0] == "2 parameters: 2 would fall back to torch"
    assert "first backward" not in str(rows)
    rows = oxistep.explain(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    assert str(rows).splitlines()[0] == "1 parameter: 1 would fall back to torch"


def test_a_parameter_that_takes_no_gradient_is_no_error():
    class Stubborn(torch.nn.Parameter):
        @property
        def grad(self):
            return None

        @grad.setter
        def grad(self, value):
            raise RuntimeError("no gradient, please")

    (row,) = oxistep.explain(oxistep.optim.SGD([Stubborn(torch.ones(2))], lr=0.1))
    assert row.path == "skipped"


def test_a_summary_comes_first_and_lists_what_is_not_native():
    params = [(f"layer.{i}", torch.nn.Parameter(torch.ones(2))) for i in range(300)]
    for name, p in params:
        p.grad = torch.ones(2).as_subclass(Seen) if name == "layer.7" else torch.ones(2)
    optimizer = oxistep.optim.SGD(params, lr=0.1)
    lines = str(oxistep.explain(optimizer)).splitlines()
    if PATH == "native":
        assert lines[0] == "300 parameters: 299 native, 1 by torch"
        assert len(lines) == 2 and lines[1].startswith("  layer.7  torch    the gradient is of a subclass of Tensor")
        optimizer.step()
        optimizer.zero_grad()
        assert str(oxistep.explain(optimizer)).startswith("300 parameters: 299 native in the last step, 1 by torch\n")
    else:
        assert lines[0] == "300 parameters: 300 by torch"
    for _, p in params[:30]:
        p.grad = None
    params[40][1].grad = torch.ones(2)
    lines = str(oxistep.explain(optimizer)).splitlines()
    if PATH == "native":
        assert lines[0] == "300 parameters: 1 native, 299 skipped"
    assert len(lines) == 22 and lines[-1].startswith("  and 27")


@has_steps_of_its_own
def test_muon_tells_of_its_last_step_too():
    w = torch.nn.Parameter(torch.ones(3, 2))
    w.grad = torch.ones(3, 2)
    optimizer = oxistep.optim.Muon([w])
    optimizer.step()
    w.grad = None
    (row,) = oxistep.explain(optimizer)
    assert row.path == "native"
    assert "in the last step" in row.reason


def test_copies_and_other_classes_begin_anew():
    program = """
import copy
class Mine(optim.SGD):
    pass
optimizer = optim.SGD([parameter(3)], lr=0.1)
optimizer.step()
copy.deepcopy(optimizer).step()
optimizer.__class__ = Mine
optimizer.step()
optimizer.step()
"""
    lines = said(program, OXISTEP_EXPLAIN="1")
    assert [line.partition(":")[0] for line in lines] == ["SGD", "SGD", "Mine"]


def test_a_step_that_raises_raises_its_own_error():
    program = """
optimizer = optim.SGD([parameter(3)], lr=0.1)
optimizer.param_groups[0]["params"] = 3
try:
    optimizer.step()
except TypeError as error:
    assert "int" in str(error), error
else:
    raise AssertionError
"""
    (line,) = said(program, OXISTEP_EXPLAIN="1")
    assert line.startswith("SGD: nothing to tell, TypeError: ")
    assert "int" in line


def test_no_stderr_is_no_error():
    program = "import sys; stderr, sys.stderr = sys.stderr, None\np = parameter(3)\noptim.SGD([p], lr=1.0).step()\n"
    program += "assert p.tolist() == [0.0] * 3\nsys.stderr = stderr"
    assert said(program, OXISTEP_EXPLAIN="1") == []
