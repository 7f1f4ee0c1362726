"""A step that raises has changed no native parameter, state or counter, wherever it raises; nor has a load.

The faults inside the native code are injected by test_faults; here every line of Python that a step runs raises in
turn, torch's own among them.
"""

import ast
import copy
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import pytest
import torch

import brief
import oxistep.optim
from failing_steps import COMPACT, SCENARIOS
from oxistep.optim import muon
from scenarios import draw, make, outcome, set_gradients
from seeing import Seeing
from snapshots import difference, outcome_of, snapshot

OXISTEP = str(Path(oxistep.__file__).parent)
TORCH_OPTIM = str(Path(torch.optim.__file__).parent)


class InjectedError(Exception):
    """What the lines raise."""


@cache
def cleaning_up(file: str) -> frozenset[int]:
    """Lines that run when something else has failed, or to put things back: nobody can promise anything of them."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.Try):
            for statement in [*node.finalbody, *(s for handler in node.handlers for s in handler.body)]:
                lines |= set(range(statement.lineno, statement.end_lineno + 1))
        if isinstance(node, ast.With):  # leaving it passes by its own line again
            lines.add(node.lineno)
    return frozenset(lines)


class Lines:
    """Counts the lines that are run in some folders, and raises instead of running the nth."""

    def __init__(self, folders: list[str], n: int = 0) -> None:
        self.folders, self.n, self.count, self.at = tuple(folders), n, 0, ""

    def calls(self, frame, event, arg):
        file = frame.f_code.co_filename
        # the constructors of classes and what Dynamo wraps are no part of a step
        return self.lines if file.startswith(self.folders) and "torch.compiler" not in file else None

    def lines(self, frame, event, arg):
        file, line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and line not in cleaning_up(file):
            self.count += 1
            if self.count == self.n:
                self.at = f"{file}:{line}"
                raise InjectedError(self.at)
        return self.lines

    @contextmanager
    def active(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self.calls)
        try:
            yield
        finally:
            sys.settrace(before)


def take(scenario, folders, n):
    """Steps with the nth line raising; the lines and what was raised."""
    lines = Lines(folders, n)
    try:
        with lines.active():
            scenario.optimizer.step()
    except InjectedError as error:
        return lines, error
    except RuntimeError as error:
        assert isinstance(error.__cause__, InjectedError), error
        return lines, error
    return lines, None


@pytest.mark.parametrize("name", SCENARIOS)
def test_any_line_may_raise(name):
    build = SCENARIOS[name]
    folders = [OXISTEP, TORCH_OPTIM]
    reference = build()
    reference.ready()
    _, error = take(reference, folders, 0)
    assert error is None
    expected = outcome_of(reference.ours, reference.optimizer)

    # Every line of each scenario, or every third, beginning at another one in the next scenario: they share most lines.
    # Those with fewer bytes are many and share nearly all.
    stride = brief.number(whole=1, brief=13 if name in COMPACT else 3)
    n, unchanged = list(SCENARIOS).index(name) % stride + 1 - stride, 0
    while True:
        n += stride
        scenario = build()
        scenario.ready()
        ours = scenario.ours
        before = scenario.snapshot()
        lines, error = take(scenario, folders, n)
        if error is None:
            break
        if outcome_of(ours, scenario.optimizer) == expected:
            continue  # raised when all was written: a hook that fails, a norm that is noted
        changed = difference(before, scenario.snapshot())
        assert not changed, f"{lines.at} raised, and changed {changed}"
        unchanged += 1
        if lines.at.startswith(TORCH_OPTIM):
            continue  # torch's own states may be half made
        scenario.ready()
        scenario.optimizer.step()
        assert outcome_of(ours, scenario.optimizer) == expected, f"after {lines.at} had raised"
    assert n > 3 and unchanged > 2 // stride


MUON_SHAPES = [(10, 30), (10, 30), (4, 3)]


def test_any_line_of_muon_may_raise(monkeypatch):
    """Muon works in rounds: before the first nothing is changed, later the optimizer refuses to go on."""
    monkeypatch.setattr(muon, "_AT_ONCE", 250)  # elements of a round: each of the large matrices is one

    def build():
        params = draw(*MUON_SHAPES)
        optimizer = oxistep.optim.Muon(params, lr=0.1, ns_steps=1)
        set_gradients(params[1:], 0)
        optimizer.step()
        set_gradients(params, 1)
        return params, optimizer

    class Both:
        pass

    folders = [OXISTEP]
    params, optimizer = build()
    optimizer.step()
    expected = outcome_of(params, optimizer)
    n, kinds = 0, set()
    while True:
        n += 1
        params, optimizer = build()
        scenario = Both()
        scenario.optimizer = optimizer
        before = snapshot(optimizer, params)
        lines, error = take(scenario, folders, n)
        if error is None:
            break
        if not difference(before, snapshot(optimizer, params)):
            kinds.add("unchanged")
            if "broke off" not in str(error):
                optimizer.step()
                assert outcome_of(params, optimizer) == expected, lines.at
                continue
        if outcome_of(params, optimizer) == expected and "broke off" not in str(error):
            kinds.add("done")
            continue
        kinds.add("broke off")
        assert "a step of Muon broke off" in str(error) and "param_groups[0]['params'][0:3]" in str(error)
        with pytest.raises(RuntimeError, match="takes no step: a step of Muon broke off"):
            optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
    assert kinds >= {"unchanged", "broke off"}


# ---- torch's part ----


def test_torchs_part_raising_half_way_through_its_own_parameters():
    """What is promised: ours untouched. What torch has updated before it raised is updated; that is torch's own."""

    class Refuses(Seeing, torch.Tensor):
        pass

    class RefusesToBeWritten(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func in (torch.Tensor.add_, torch.Tensor.addcdiv_):
                raise InjectedError("no")
            return super().__torch_function__(func, types, args, kwargs)

    ours = draw((4, 3), (5,))
    theirs = [torch.ones(3).as_subclass(c).requires_grad_() for c in (Refuses, RefusesToBeWritten)]
    optimizer = oxistep.optim.SGD([{"params": [ours[0], *theirs]}, {"params": [ours[1]]}], lr=0.1)
    set_gradients(ours, 0)
    for p in theirs:
        p.grad = torch.ones(3).as_subclass(type(p))
    before = snapshot(optimizer, ours)
    with pytest.raises(InjectedError):
        optimizer.step()
    assert not difference(before, snapshot(optimizer, ours))
    assert torch.equal(theirs[0].as_subclass(torch.Tensor), torch.full((3,), 0.9))
    assert torch.equal(theirs[1].as_subclass(torch.Tensor), torch.ones(3))


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_what_torch_does_with_a_state_of_another_shape(name):
    """For the page: earlier parameters of the group are updated (and Adam's counters all), later ones are not."""
    changed = {}
    for optim in (torch.optim, oxistep.optim):
        params = draw((3,), (4,), (5,))
        optimizer = make(optim, name, params)
        set_gradients(params, 0)
        optimizer.step()
        key = next(k for k, v in optimizer.state[params[1]].items() if v.dim())
        optimizer.state[params[1]][key] = torch.zeros(7)
        before = [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError):
            optimizer.step()
        changed[optim] = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
    assert changed[torch.optim][0] and not changed[torch.optim][2]
    assert not any(changed[oxistep.optim])


def test_what_torch_does_when_a_line_of_its_step_raises():
    """For the page: an exception, or Ctrl-C, between two operations leaves a part of the parameters updated."""
    half = 0
    n = 0
    while True:
        n += 1
        params = draw((3,), (4,), (5,))
        optimizer = torch.optim.Adam(params, lr=0.1, foreach=False)
        set_gradients(params, 0)
        before = [p.detach().clone() for p in params]
        lines = Lines([TORCH_OPTIM], n)
        try:
            with lines.active():
                optimizer.step()
        except InjectedError:
            changed = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
            half += any(changed) and not all(changed)
        else:
            break
    assert half > 5


# ---- Ctrl-C ----


@pytest.mark.skipif(not hasattr(signal, "raise_signal") or sys.platform == "win32", reason="needs signals of POSIX")
def test_ctrl_c_while_kernels_run_is_delivered_after_the_step(request):
    """The signal is sent by a thread that gets the interpreter only because the kernels have released it."""
    params = draw((6_000_000,), (3,))
    optimizer = make(oxistep.optim, "Adam", params)
    reference_params = draw((6_000_000,), (3,))
    reference = make(oxistep.optim, "Adam", reference_params)
    for _ in range(3):
        set_gradients(params, 0)
        set_gradients(reference_params, 0)
        optimizer.step()
        reference.step()
    # a shell that starts programs in the background has them ignore the signal
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whatever moment the signal comes in: the step was taken whole, or (it came before) not at all.
    steps, caught = 3, 0
    for _ in range(12):
        go = threading.Event()

        def interrupt(go=go):
            go.wait()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            go.set()
            optimizer.step()
            thread.join()
        except KeyboardInterrupt:
            caught += 1
        thread.join()
        counts = [optimizer.state[p]["step"].item() for p in params]
        assert counts in ([steps, steps], [steps + 1, steps + 1])
        if counts[0] > steps:
            reference.step()
        steps = int(counts[0])
        assert all(torch.equal(p, q) for p, q in zip(params, reference_params, strict=True))
        for p, q in zip(params, reference_params, strict=True):
            pairs = zip(optimizer.state[p].values(), reference.state[q].values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    assert caught


# ---- states and dicts that do not fit ----


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.update(exp_avg=torch.zeros(5, 7)),
        lambda state: state.update(exp_avg=torch.zeros(4, 3, dtype=torch.int64)),
        lambda state: state.update(exp_avg_sq="nonsense"),
        lambda state: state.update(step=torch.ones(2)),
        lambda state: state.pop("exp_avg_sq"),
    ],
    ids=["shape", "dtype", "type", "two steps", "missing"],
)
def test_states_that_do_not_fit_are_refused_before_anything_is_written(damage):
    params = draw((4, 3), (4, 3), (5,))
    optimizer = oxistep.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    set_gradients(params, 0)
    optimizer.step()
    damage(optimizer.state[params[1]])
    # by name: why it is not native is told for that parameter, and torch, which is asked, raises
    row = [row for row in oxistep.explain(optimizer) if row.path != "native"]
    assert [r[:2] for r in row] == [(1, 0)]
    before = snapshot(optimizer, [params[0], params[2]])
    assert isinstance(outcome(optimizer.step), tuple)
    assert not difference(before, snapshot(optimizer, [params[0], params[2]]))


BAD_DICTS = {
    "empty": lambda d: {},
    "no groups": lambda d: {**d, "param_groups": []},
    "a group too many": lambda d: {**d, "param_groups": d["param_groups"] * 2},
    "a parameter too few": lambda d: {**d, "param_groups": [{**d["param_groups"][0], "params": [0]}]},
    "groups of a wrong type": lambda d: {**d, "param_groups": 3},
    "a group of a wrong type": lambda d: {**d, "param_groups": [[0, 1]]},
    "states of a wrong type": lambda d: {**d, "state": [1]},
    "a step that is no number": lambda d: {**d, "state": {0: {**d["state"].get(0, {}), "step": "three"}}},
    "a step that is None": lambda d: {**d, "state": {0: {**d["state"].get(0, {}), "step": None}}},
    "not a dict": lambda d: None,
}


@pytest.mark.parametrize("bad", BAD_DICTS)
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam", "ASGD", "Adafactor", "LBFGS", "Muon"])
@pytest.mark.parametrize("kwargs", [{}, {"state_dtype": torch.float32}], ids=["plain", "state_dtype"])
def test_load_state_dict_refuses_what_torch_refuses_and_leaves_the_optimizer_alone(name, bad, kwargs):
    if name == "LBFGS" and kwargs:
        pytest.skip("LBFGS takes no state_dtype")

    def build(optim, kwargs):
        params = draw((4, 3), (2, 2))
        optimizer = getattr(optim, name)(params, lr=0.1, **kwargs)

        def closure():
            set_gradients(params, 0)
            return torch.tensor(1.0)

        optimizer.step(closure)
        return params, optimizer

    _, theirs = build(torch.optim, {})
    refusal = outcome(theirs.load_state_dict, BAD_DICTS[bad](theirs.state_dict()))
    params, optimizer = build(oxistep.optim, kwargs)
    before = snapshot(optimizer, params)
    came = outcome(optimizer.load_state_dict, BAD_DICTS[bad](optimizer.state_dict()))
    assert came == refusal or (came is None) == (refusal is None)
    if came is not None:
        assert came[0] is refusal[0]
        assert not difference(before, snapshot(optimizer, params))
        set_gradients(params, 1)
        outcome(optimizer.step, lambda: torch.tensor(1.0))
