"""Behaviour that every class owes its user, with SparseAdam, Muon and LBFGS beside the element-wise ones.

What other files try with `each_class` is tried here with the three others; the rest with all fifteen.
"""

import copy
import pickle
import threading
import warnings

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import optim_db

import oxistep
import oxistep.optim
from every_torch_class import (
    KWARGS,
    assert_agrees,
    bowl,
    close,
    draw,
    each_of_fifteen,
    each_other,
    each_stepping_class,
    make,
    set_gradients,
    train,
)
from scenarios import FORCED, PATH, assert_same, clone, outcome, params_of, result
from test_checkpoints import COPIES, reload
from test_errors import ODD_NUMBERS, ODD_PAIRS, ODD_TENSORS, numbers_of, pairs_of

NATIVELY = {
    "Muon": "plain CPU tensors; the matrix products are torch's",
    "LBFGS": "plain CPU tensors, one flat vector",
}


@each_of_fifteen
def test_explain_says_native(name):
    optimizer = make(oxistep.optim, name, draw(name))
    for step in range(2):
        set_gradients(name, params_of(optimizer), step)
        reason = "OXISTEP_BACKEND=torch" if FORCED else NATIVELY.get(name, "plain CPU tensors")
        expected = [(PATH, reason)] * 2
        assert [(row.path, row.reason) for row in oxistep.explain(optimizer)] == expected
        train(name, optimizer, 1, step)


# ---- closures, hooks, profiler ----


@each_other
def test_closure_runs_with_grad_enabled_and_its_loss_comes_back(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(name))
        modes = []

        def closure():
            modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            loss = bowl(optimizer)()
            if name == "SparseAdam":
                set_gradients(name, params_of(optimizer), 0)
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure), optimizer.step(closure=closure)]
            without = outcome(optimizer.step)
        return modes, losses, without, torch.is_grad_enabled(), result(optimizer)

    modes, losses, *_ = assert_agrees(name, scenario)
    assert set(modes) == {(True, False)}
    assert len(modes) == 2 or name == "LBFGS"
    assert losses[1] != losses[0]


@each_other
def test_hooks_run_in_torchs_order_with_torchs_arguments(name):
    def scenario(optim):
        make(torch.optim, name, draw(name))  # torch has wrapped its step from now on
        optimizer = make(optim, name, draw(name))
        seen = []

        def hook(label):
            def called(o, args, kwargs):
                assert o is optimizer
                assert args[0] is optimizer
                seen.append((label, len(args), sorted(kwargs), params_of(o)[0].detach().clone()))

            return called

        handles = [
            optimizer.register_step_post_hook(hook("post")),
            register_optimizer_step_post_hook(hook("global post")),
            optimizer.register_step_pre_hook(hook("pre")),
            register_optimizer_step_pre_hook(hook("global pre")),
        ]
        try:
            train(name, optimizer, 2)
            set_gradients(name, params_of(optimizer), 2)
            optimizer.step(closure=bowl(optimizer) if name == "LBFGS" else lambda: 1.0)
        finally:
            for handle in handles:
                handle.remove()
        train(name, optimizer, 1)
        return seen

    seen = assert_agrees(name, scenario)
    assert [label for label, *_ in seen] == ["global pre", "pre", "post", "global post"] * 3


@each_other
def test_hooks_run_once_in_a_subclass_that_overrides_step(name):
    class Mine(getattr(oxistep.optim, name)):
        def step(self, closure=None):
            seen.append("step")
            return super().step(closure)

    make(torch.optim, name, draw(name))
    seen = []
    optimizer, plain = Mine(draw(name), **KWARGS[name]), make(oxistep.optim, name, draw(name))
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    train(name, optimizer, 2)
    train(name, plain, 2)
    assert_same(result(optimizer), result(plain), exact=True)
    # LBFGS keeps torch's wrapper, which wraps both steps
    once = ["pre", "step", "pre", "post", "post"] if name == "LBFGS" else ["pre", "step", "post"]
    assert seen == once * 2


@each_other
def test_the_profiler_sees_one_record_of_a_step(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(name))
        with torch.autograd.profiler.profile(acc_events=True) as profile:
            train(name, optimizer, 1)
        return sorted({e.name for e in profile.function_events if e.name.startswith("Optimizer.step")}), [
            e.count for e in profile.key_averages() if e.key.startswith("Optimizer.step")
        ]

    assert assert_agrees(name, scenario) == ([f"Optimizer.step#{name}.step"], [1])


# ---- copies and checkpoints ----


@each_other
@pytest.mark.parametrize("way", COPIES)
def test_copies_continue_on_their_own(name, way):
    """(torch's copies of LBFGS lack their list of parameters, and raise.)"""
    params = draw(name)
    optimizer = make(oxistep.optim, name, params)
    train(name, optimizer)
    optimizer.zero_grad()
    before = result(optimizer)
    copied_params, copied = COPIES[way]((params, optimizer))
    assert type(copied) is type(optimizer)
    assert all(a is b for a, b in zip(params_of(copied), copied_params, strict=True))
    assert_same(result(copied), before, exact=True)
    train(name, copied, start=3)
    assert_same(result(optimizer), before, exact=True)
    train(name, optimizer, start=3)
    assert_same(result(copied), result(optimizer), exact=True)


@each_of_fifteen
@pytest.mark.parametrize("source, target", [("ours", "torch's"), ("torch's", "ours"), ("ours", "ours")])
def test_checkpoints_move_both_ways_through_a_file_of_plain_types(name, source, target):
    modules = {"ours": oxistep.optim, "torch's": torch.optim}
    reference, first = make(torch.optim, name, draw(name)), make(modules[source], name, draw(name))
    train(name, reference)
    train(name, first)
    assert_same(first.state_dict(), reference.state_dict(), close=close(name))
    second = make(modules[target], name, clone(params_of(first)), lr=123.0)
    second.load_state_dict(reload(first.state_dict(), weights_only=True))
    assert_same(result(second), result(first), exact=True)
    train(name, reference, start=3)
    train(name, second, start=3)
    assert_same(result(second), result(reference), close=close(name))
    assert_same(second.state_dict(), reference.state_dict(), close=close(name))


@each_of_fifteen
def test_a_load_makes_no_state_where_none_was_saved(name):
    """Before the first step, and of a parameter that is frozen."""

    def scenario(optim):
        params = draw(name)
        optimizer = make(optim, name, params)
        counts = []
        for step in range(2):
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            counts.append((len(optimizer.state), {k: list(v) for k, v in optimizer.state_dict()["state"].items()}))
            if name != "LBFGS" and not step:
                set_gradients(name, params, 0)
                params[1].grad = None
                optimizer.step()
        return counts

    assert_agrees(name, scenario)


# What a group of torch 2.4's classes lacks of today's keys, and what its states may hold otherwise.
NEWER_KEYS = ["decoupled_weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable", "adjust_lr_fn"]


@each_of_fifteen
@pytest.mark.parametrize("lacking", [*NEWER_KEYS, "all"])
def test_checkpoints_of_older_versions(name, lacking):
    """Keys that came later are missing, the step is a Python number: what torch makes of it, or torch's error."""

    def scenario(optim):
        kwargs = {"decoupled_weight_decay": False} if name in ("Adam", "NAdam", "RAdam") else {}
        optimizer = make(optim, name, draw(name), **kwargs)
        train(name, optimizer, 2)
        old = copy.deepcopy(optimizer.state_dict())
        for key in NEWER_KEYS if lacking == "all" else [lacking]:
            old["param_groups"][0].pop(key, None)
        for state in old["state"].values():
            if "step" in state:
                state["step"] = int(state["step"])
        again = make(optim, name, clone(params_of(optimizer)), **kwargs)
        again.load_state_dict(old)
        train(name, again, 2, start=2)
        return sorted(again.param_groups[0]), result(again)

    if name == "Adafactor" and lacking in ("maximize", "all"):  # torch's had this key from the first, and needs it
        assert outcome(scenario, torch.optim)[0] is KeyError
        assert FORCED or not isinstance(outcome(scenario, oxistep.optim)[0], type)
        return
    assert_agrees(name, scenario)


@each_of_fifteen
def test_state_dict_hooks_may_replace_what_they_are_given(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(name))
        train(name, optimizer, 2)
        calls = []
        optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "note": 7})
        saved = optimizer.state_dict()
        again = make(optim, name, clone(params_of(optimizer)))

        def halve(o, loading):
            loading = copy.deepcopy(loading)
            loading["param_groups"][0]["lr"] /= 2
            calls.append(loading.pop("note"))
            return loading

        again.register_load_state_dict_pre_hook(halve)
        again.register_load_state_dict_post_hook(lambda o: calls.append(len(o.state)))
        again.load_state_dict(saved)
        train(name, again, 2, start=2)
        return calls, again.param_groups[0]["lr"], result(again)

    calls, lr, _ = assert_agrees(name, scenario)
    assert calls[:2] == ["before saving", 7]
    assert lr == KWARGS[name]["lr"] / 2


# ---- hyperparameters ----

INFO = {info.optim_cls.__name__: info for info in optim_db}


@each_of_fifteen
def test_schedulers_that_torchs_table_names(name):
    """Every list of schedulers of `optim_db`, together on one optimizer, as torch's own tests use them."""

    def scenario(optim, schedulers):
        optimizer = make(optim, name, draw(name))
        made = [scheduler(optimizer) for scheduler in schedulers]
        rates = []
        for step in range(5):
            train(name, optimizer, 1, start=step)
            for scheduler in made:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(1.0) if plateau else scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates, result(optimizer)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for schedulers in [*INFO[name].scheduler_inputs, [lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)]]:
            assert_agrees(name, scenario, schedulers)


@each_other
@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalar", "one element"])
def test_lr_as_a_tensor_changed_in_place(name, shape):
    def scenario(optim):
        lr = torch.full(shape, 0.05)
        optimizer = make(optim, name, draw(name), lr=lr)
        train(name, optimizer, 2)
        lr.mul_(0.5)
        train(name, optimizer, 2, start=2)
        return result(optimizer)

    assert_agrees(name, scenario)


@each_of_fifteen
def test_maximize_where_torch_has_it(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(name), maximize=True)
        train(name, optimizer)
        return result(optimizer)

    came = assert_agrees(name, scenario)
    if isinstance(came, tuple):
        assert came[0] is TypeError
        assert "maximize" in came[1]


ODD = ODD_NUMBERS + ODD_TENSORS


@each_other
def test_constructors_refuse_what_torch_refuses_in_its_words(name):
    def scenario(optim, key, value):
        return repr(make(optim, name, draw(name), **{key: value}))

    refused = 0
    for key, value in [(k, v) for k in numbers_of(name) for v in ODD] + [
        (k, v) for k in pairs_of(name) for v in ODD_PAIRS
    ]:
        try:
            refused += isinstance(assert_agrees(name, scenario, key, value), tuple)
        except AssertionError as error:
            raise AssertionError(f"{key}={value!r}: {error}") from None
    assert refused > 5 or name == "LBFGS"  # whose constructor looks at nothing but lr


@each_other
def test_steps_with_odd_hyperparameters_end_as_torchs(name):
    """Set in the group, past the constructor: the same result, or the same error."""

    def scenario(optim, key, value, when):
        optimizer = make(optim, name, draw(name))
        if when:
            train(name, optimizer, 1)
        optimizer.param_groups[0][key] = value
        before = result(optimizer)
        came = outcome(train, name, optimizer, 1, 1)
        if isinstance(came, tuple):
            if optim is oxistep.optim and name != "LBFGS":
                assert_same(result(optimizer)["params"], before["params"], exact=True)
            return came
        return result(optimizer)["params"]

    odd = [-1e-9, -0.5, float("nan"), float("inf"), 2, None, "0.1", [0.1], torch.tensor(0.1), torch.tensor([0.1, 0.2])]
    for when in (0, 1):
        for key in KEYS_AT_STEP[name]:
            for value in odd:
                if key in ("max_iter", "max_eval") and value is odd[3]:
                    continue  # as many iterations as there are
                try:
                    assert_agrees(name, scenario, key, value, when)
                except AssertionError as error:
                    raise AssertionError(f"{key}={value!r}, {when}: {error}") from None


KEYS_AT_STEP = {
    "SparseAdam": ["lr", "betas", "eps", "maximize"],
    "Muon": ["lr", "weight_decay", "momentum", "eps", "ns_steps", "ns_coefficients", "adjust_lr_fn"],
    "LBFGS": ["lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "line_search_fn"],
}


# ---- parameters and groups ----


@each_other
def test_groups_late_unfreezing_and_a_group_added_later(name):
    if name == "LBFGS":
        pytest.skip("takes one group")

    def scenario(optim):
        (a, b), (c, d) = draw(name), draw(name, seed=1)
        optimizer = make(optim, name, [{"params": [a]}, {"params": [b], "lr": 0.02}])
        for step in range(5):
            if step == 2:
                optimizer.add_param_group({"params": [c, d], "lr": 0.3})
            set_gradients(name, params_of(optimizer), step)
            if step < 3:
                b.grad = None
            if step == 4:
                a.grad = None
            optimizer.step()
        return result(optimizer)

    assert_agrees(name, scenario)


@each_other
def test_data_and_states_replaced_between_steps(name):
    def scenario(optim):
        params = draw(name)
        optimizer = make(optim, name, params)
        train(name, optimizer, 2)
        for p in params:
            p.data = p.data.clone() * 0.5
        train(name, optimizer, 1, start=2)
        for state in optimizer.state.values():
            for key, value in state.items():
                if torch.is_tensor(value):
                    state[key] = value.clone() * 1.5
        train(name, optimizer, 1, start=3)
        optimizer.state.clear()
        train(name, optimizer, 2, start=4)
        return result(optimizer)

    assert_agrees(name, scenario)


@each_of_fifteen
def test_named_parameters(name):
    def scenario(optim):
        params = draw(name)
        optimizer = make(optim, name, [("first", params[0]), ("second", params[1])])
        train(name, optimizer, 2)
        return optimizer.state_dict()

    assert assert_agrees(name, scenario)["param_groups"][0]["param_names"] == ["first", "second"]
    optimizer = make(oxistep.optim, name, zip("ab", draw(name), strict=True))
    assert [row.name for row in oxistep.explain(optimizer)] == ["a", "b"]


@each_of_fifteen
def test_parameters_on_meta_and_on_the_cpu_in_one_group(name):
    def scenario(optim):
        params = draw(name)
        elsewhere = torch.ones(4, 3, device="meta", requires_grad=True)
        optimizer = make(optim, name, [params[0], elsewhere, params[1]])

        def gradients():
            set_gradients(name, params, 0)
            elsewhere.grad = torch.ones(4, 3, device="meta")
            if name == "SparseAdam":
                elsewhere.grad = None  # a sparse tensor of no memory is not for torch's Adam of rows
            return torch.tensor(1.0)

        before = [p.detach().clone() for p in params]
        gradients()
        came = outcome(optimizer.step, gradients)
        if isinstance(came, tuple):
            if optim is oxistep.optim and not FORCED:
                assert all(map(torch.equal, before, params))
            return came
        if optim is oxistep.optim:
            expected = [PATH, "skipped" if name == "SparseAdam" else "torch", PATH]
            assert [row.path for row in oxistep.explain(optimizer)] == expected
        assert elsewhere.grad is None or elsewhere.grad.device.type == "meta"
        return [p.detach() for p in params]

    assert_agrees(name, scenario)


# ---- gradient scaling, half types ----


@each_other
@pytest.mark.parametrize("infinite", [None, 0, 2])
def test_grad_scaler(name, infinite):
    def scenario(optim):
        params = draw(name)
        optimizer = make(optim, name, params)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.tensor(1.0))
        history = []
        for step in range(4):
            if name == "LBFGS":  # torch's scaler takes no closure, and LBFGS's step must have one
                history.append(outcome(scaler.step, optimizer, bowl(optimizer)))
                continue
            set_gradients(name, params, step)
            for p in params:
                p.grad = p.grad * (float("inf") if step == infinite else 8.0)
            scaler.step(optimizer)
            scaler.update()
            history.append((result(optimizer), scaler.get_scale()))
        return history, [p.grad for p in params]

    assert_agrees(name, scenario)


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.skipif(FORCED, reason="torch's own step does not mix float32 states and half parameters")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["SparseAdam", "Muon"])
def test_float32_states_of_half_parameters_survive_checkpoints_and_copies(name, dtype):
    kwargs = {"eps": 1e-3} if name == "SparseAdam" else {}
    optimizer = make(oxistep.optim, name, draw(name, dtype=dtype), state_dtype=torch.float32, **kwargs)
    train(name, optimizer)
    optimizer.zero_grad()

    def states(o):
        return [v for p in params_of(o) for v in o.state[p].values() if torch.is_tensor(v) and v.dim()]

    assert {v.dtype for v in states(optimizer)} == {torch.float32}
    assert any(not torch.equal(v, v.to(dtype).float()) for v in states(optimizer)), "a cast would go unnoticed"
    loaded = make(oxistep.optim, name, clone(params_of(optimizer)), state_dtype=torch.float32, **kwargs)
    loaded.load_state_dict(reload(optimizer.state_dict(), weights_only=True))
    copied = copy.deepcopy(optimizer)
    for other in (loaded, copied, pickle.loads(pickle.dumps(optimizer))):
        assert_same(result(other), result(optimizer), exact=True)
    for other in (optimizer, loaded, copied):
        train(name, other, 2, start=3)
        assert [row.path for row in oxistep.explain(other)] == ["native"] * 2
    assert_same(result(loaded), result(optimizer), exact=True)
    assert_same(result(copied), result(optimizer), exact=True)
    back = make(torch.optim, name, clone(params_of(optimizer)), **kwargs)
    back.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(name, back, 1, start=5)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["SparseAdam", "Muon"])
def test_mean_error_of_half_types_is_not_above_torchs(name, dtype):
    """Against torch in float64 on the same values; Muon's products are bfloat16 in all of them."""
    errors = {}
    for seed in range(12):
        runs = []
        for optim, arithmetic in ((torch.optim, torch.float64), (oxistep.optim, dtype), (torch.optim, dtype)):
            generator = torch.Generator().manual_seed(seed)
            p = torch.randn(60, 50, generator=generator).to(dtype).to(arithmetic).requires_grad_()
            extra = {"eps": 1e-3} if name == "SparseAdam" else {"ns_steps": 5}
            optimizer = getattr(optim, name)([p], lr=0.01, **extra)
            for _ in range(20):
                grad = torch.randn(60, 50, generator=generator).to(dtype).to(arithmetic)
                p.grad = (
                    torch.sparse_coo_tensor([list(range(0, 60, 2))], grad[::2], (60, 50)) if extra.get("eps") else grad
                )
                optimizer.step()
            runs.append({"parameter": p.detach(), **optimizer.state[p]})
        exact, *judged = runs
        for key in [key for key, value in exact.items() if torch.is_tensor(value)]:
            for who, run in zip(("ours", "torch's"), judged, strict=True):
                errors[key, who] = errors.get((key, who), 0.0) + (run[key].double() - exact[key]).abs().mean().item()
    for key, _ in errors:
        assert 0 < errors[key, "ours"] <= 1.02 * errors[key, "torch's"], (key, errors)


# ---- autograd, threads, compilers ----


@each_of_fifteen
def test_version_counters_move(name):
    def scenario(optim):
        params = draw(name)
        optimizer = make(optim, name, params)
        kept = sum((p * p).sum() for p in params)
        seen = [p._version for p in params]
        train(name, optimizer, 1)
        moved = [p._version > version for p, version in zip(params, seen, strict=True)]
        return moved, outcome(kept.backward)[0]

    assert assert_agrees(name, scenario) == ([True, True], RuntimeError)


class Deeper(torch.autograd.Function):
    """Its backward runs a backward, which runs one ...: beyond a depth of 60 autograd does so in threads of its own."""

    @staticmethod
    def forward(ctx, x, box, depth):
        ctx.box, ctx.depth = box, depth
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            if ctx.depth:
                Deeper.apply(torch.zeros((), requires_grad=True), ctx.box, ctx.depth - 1).backward()
            else:
                (leaf,) = ctx.box
                (leaf * leaf).sum().backward()
        return grad, None, None


@each_stepping_class
def test_stepping_in_backward_from_autograds_own_threads(name):
    if name == "SparseAdam":
        pytest.skip("its gradients are sparse: see the next test")

    def scenario(optim):
        params = draw(name)
        optimizers = {p: make(optim, name, [p]) for p in params}
        stepped_in = set()

        def step(p):
            stepped_in.add(threading.get_ident())
            optimizers[p].step()
            p.grad = None

        for p in params:
            p.register_post_accumulate_grad_hook(step)
        for p in params * 3:
            Deeper.apply(torch.zeros((), requires_grad=True), [p], 70).backward()
        return [result(o) for o in optimizers.values()], threading.get_ident() in stepped_in, bool(stepped_in)

    *_, in_this_thread, stepped = assert_agrees(name, scenario)
    assert stepped
    assert not in_this_thread, "autograd called the hook in the caller's thread: the test shows nothing"


def test_stepping_in_backward_of_an_embedding():
    def scenario(optim):
        torch.manual_seed(0)
        table = torch.nn.Embedding(9, 3, sparse=True)
        optimizer = optim.SparseAdam(table.parameters(), lr=0.1)

        def step(p):
            optimizer.step()
            p.grad = None

        table.weight.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            table(torch.tensor([1, 4, 1])).square().sum().backward()
        return result(optimizer)

    assert_agrees("SparseAdam", scenario)


@each_of_fifteen
def test_inside_a_compiled_function(name):
    def run(compiled):
        params = draw(name)
        optimizer = make(oxistep.optim, name, params)

        def train_step(scale):
            for p, grad in zip(params, gradients, strict=True):
                p.grad = grad * scale if name != "SparseAdam" else grad
            if name == "LBFGS":
                return optimizer.step(lambda: bowl(optimizer)().detach())
            optimizer.step()
            return scale * 2

        torch._dynamo.reset()
        step = torch.compile(train_step, backend="eager") if compiled else train_step
        came = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler warns of much that is its own
            for k in range(3):
                set_gradients(name, params, k)
                gradients = [p.grad for p in params]
                came.append(step(torch.tensor(k + 1.0)))
        return came, result(optimizer)

    assert_same(run(True), run(False), exact=True)


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="importing this torch's compiler warns")
def test_inside_a_function_compiled_by_torchs_default_compiler(monkeypatch):
    """Not only traced: inductor's code around the step."""

    from torch._inductor import config

    # one function is compiled: processes that would do it side by side only cost their start
    monkeypatch.setattr(config, "compile_threads", 1)

    def run(compiled):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        optimizer = oxistep.optim.AdamW(model.parameters(), lr=0.1)

        def train_step(x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        torch._dynamo.reset()
        step = torch.compile(train_step) if compiled else train_step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [step(torch.full((3, 4), k + 1.0)) for k in range(3)], result(optimizer)

    assert_same(run(True), run(False))


@pytest.mark.skipif(not hasattr(torch.optim, "swap_in_optimizer_params_and_state"), reason="this torch lacks it")
@each_other
def test_parameters_and_state_swapped_in_for_a_while(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(name))
        train(name, optimizer, 2)
        before = result(optimizer)
        state = copy.deepcopy(optimizer.state_dict())
        with optim.swap_in_optimizer_params_and_state(optimizer, dict(enumerate(draw(name, seed=1))), state):
            train(name, optimizer, 2, start=2)
            swapped = result(optimizer)
        after = result(optimizer)
        if name != "LBFGS":  # whose list of parameters, made once, is not swapped back: as in torch
            assert_same(after, before, exact=True)
        train(name, optimizer, 2, start=2)
        return swapped, after, result(optimizer)

    assert_agrees(name, scenario)


@each_other
def test_inside_inference_mode_and_refused_outside(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(name))
        if name == "LBFGS":

            def closure():
                for p in params_of(optimizer):
                    p.grad = p.detach() * 2
                return torch.tensor(1.0)

        else:
            set_gradients(name, params_of(optimizer), 0)
            closure = None
        with torch.inference_mode():
            optimizer.step(closure)
        before = result(optimizer)
        refused = outcome(optimizer.step, closure)
        if optim is oxistep.optim and isinstance(refused, tuple):
            assert_same(result(optimizer)["params"], before["params"], exact=True)
        return refused[0] if isinstance(refused, tuple) else "taken"

    assert_agrees(name, scenario)
