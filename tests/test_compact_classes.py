"""Fewer bytes in every class: torch's, the zoo's, and rules. Runs that go on to the bit, checkpoints between settings,
and what else a step does: closures, scaled gradients, clipping, monitors.
"""

import copy
import io

import numpy as np
import pytest
import torch

import oxistep
import oxistep.optim as optim
from oxistep import diagnostics, zoo
from oxistep.optim._kept import WEIGHTS
from test_compact import BF16, STATE_DTYPES, bits, ready, train, values
from test_compact import CLASSES as OF_TORCH

SHAPES = [(33, 130), (40,)]  # the first is kept in codes, its last block is not full; the second is not
WRAPPERS = ("Grokfast", "Lookahead", "SAM")  # whose optimizer has the settings


@oxistep.rule
def signed_and_not(p, g, s, lr=1e-3, decay=0.9):
    """A mean with a sign, and sums that are never negative."""
    s.m = decay * s.m + (1 - decay) * g
    s.v = s.v + g * g
    return p - lr * s.m / (np.sqrt(s.v) + 1e-8)


@oxistep.rule
def multiplied(p, g, s, lr=1.0, rho=0.9, eps=1e-6):
    """A mean of its own updates, as Adadelta has."""
    s.square_avg = rho * s.square_avg + (1 - rho) * g * g
    delta = np.sqrt(s.acc_delta + eps) / np.sqrt(s.square_avg + eps) * g
    s.acc_delta = rho * s.acc_delta + (1 - rho) * delta * delta
    return p - lr * delta


RULES = {"a rule": signed_and_not.torch, "a rule like Adadelta": multiplied.torch}
# One begins to move in the sixth step otherwise, the other has a compensation of its own beside bfloat16.
OF_ZOO = {"RAdamScheduleFree": {"silent_sgd_phase": False}}
ZOO = sorted(set(zoo.__all__) - {*WRAPPERS})
NAMES = [*OF_TORCH, *ZOO, *RULES]
each_class = pytest.mark.parametrize("name", NAMES)
each_class_but_torchs = pytest.mark.parametrize("name", [*ZOO, *RULES])
each_mode = pytest.mark.parametrize("weights", WEIGHTS)


def params(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def make(name, ps, **settings):
    if name in OF_TORCH:
        return getattr(optim, name)(ps, **{**OF_TORCH[name], **settings})
    if name in RULES:
        return RULES[name](ps, **settings)
    own = OF_ZOO.get(name, {})
    return ready(getattr(zoo, name)(ps, **{"lr": 1e-3, **own, **settings}))


def type_for(settings):
    return BF16 if settings.get("weights") else torch.float32


def numbers(optimizer):
    """What groups hold besides parameters; some of the zoo keep counters and estimates there."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def through_a_file(optimizer):
    file = io.BytesIO()
    torch.save([values(optimizer), optimizer.state_dict()], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def with_values(ps, saved):
    with torch.no_grad():
        for p, value in zip(ps, saved, strict=True):
            p.copy_(value)
    return ps


# ---- checkpoints ----

RESUMED = [
    {"state_dtype": "8bit"},
    {"state_dtype": BF16},
    {"state_dtype": BF16, "weights": "stochastic"},
    {"state_dtype": "8bit", "weights": "residual8", "ema": 0.9},
    {"state_dtype": torch.float32, "weights": "kahan"},
    {"state_dtype": BF16, "weights": "residual16"},
    {"state_dtype": "8bit", "weights": "master"},
]


@pytest.mark.covers(("name", "settings"))
@each_class_but_torchs
@pytest.mark.parametrize("settings", RESUMED, ids=str)
def test_a_resumed_run_goes_on_to_the_bit(name, settings):
    """As test_compact has it for torch's classes."""
    whole = train(make(name, params(type_for(settings)), **settings), 6)
    first = train(make(name, params(type_for(settings)), **settings), 3)
    saved, state = through_a_file(first)
    second = make(name, with_values(params(type_for(settings)), saved), **settings)
    second.load_state_dict(state)
    for resumed in (second, copy.deepcopy(first)):
        train(resumed, 3, first=3)
        assert {row.path for row in oxistep.explain(resumed)} == {"native"}
        assert bits(resumed) == bits(whole)
        assert numbers(resumed) == numbers(whole)


def keeps_all(saved_as, loaded_as):
    """Whether the numbers of states stay the same."""
    return saved_as == loaded_as or loaded_as in (None, torch.float32)


@each_class
@pytest.mark.parametrize("saved_as", STATE_DTYPES, ids=str)
@pytest.mark.parametrize("loaded_as", STATE_DTYPES, ids=str)
def test_checkpoints_load_into_every_setting(name, saved_as, loaded_as):
    first = train(make(name, params(), state_dtype=saved_as), 3)
    plain = oxistep.plain_state_dict(first)
    for state in (first.state_dict(), plain):
        second = make(name, with_values(params(), values(first)), state_dtype=loaded_as)
        second.load_state_dict(copy.deepcopy(state))
        like = train(make(name, params(), state_dtype=loaded_as), 1)
        for entry, wanted in zip(second.state.values(), like.state.values(), strict=True):
            kept = {key: (value.dtype, value.shape) for key, value in entry.items() if isinstance(value, torch.Tensor)}
            assert kept == {k: (v.dtype, v.shape) for k, v in wanted.items() if isinstance(v, torch.Tensor)}
            assert entry.keys() == wanted.keys()
        again = oxistep.plain_state_dict(second)["state"]
        for number, entry in plain["state"].items():
            assert entry.keys() == again[number].keys()
            for key, value in entry.items():
                if not isinstance(value, torch.Tensor) or not value.dim() or keeps_all(saved_as, loaded_as):
                    torch.testing.assert_close(again[number][key], value, rtol=0, atol=0, msg=key)
                else:
                    assert torch.dist(again[number][key], value) <= 0.06 * torch.linalg.vector_norm(value), key
        before = values(second)
        train(second, 1, first=3)
        assert all(p.isfinite().all() for p in values(second))
        assert not torch.equal(values(second)[0], before[0])


@each_class_but_torchs
def test_plain_checkpoints_are_those_of_float32_states(name):
    plain_run = train(make(name, params()), 2)
    wanted = plain_run.state_dict()
    for settings in ({"state_dtype": "8bit"}, {"state_dtype": BF16}, {"weights": "residual8", "state_dtype": "8bit"}):
        plain = oxistep.plain_state_dict(train(make(name, params(type_for(settings)), **settings), 2))
        assert [group.keys() for group in plain["param_groups"]] == [g.keys() for g in wanted["param_groups"]]
        for number, entry in wanted["state"].items():
            found = plain["state"][number]
            assert entry.keys() == found.keys()
            for key, value in entry.items():
                if isinstance(value, torch.Tensor):
                    assert found[key].shape == value.shape, key
                    # a parameter of bfloat16 has states of bfloat16, but for numbers of one element
                    assert found[key].dtype == (type_for(settings) if value.dim() else value.dtype), key
        other = make(name, params())
        other.load_state_dict(plain)
        train(other, 1)


@each_class
@each_mode
def test_weights_go_from_mode_to_mode_and_back(name, weights):
    first = train(make(name, params(BF16), weights="residual16", state_dtype="8bit"), 4)
    second = make(name, with_values(params(BF16), values(first)), weights=weights, state_dtype=BF16)
    second.load_state_dict(first.state_dict())
    third = make(name, with_values(params(BF16), values(first)), weights="residual16", state_dtype="8bit")
    third.load_state_dict(second.state_dict())
    # relative to a weight, what is lost on the way
    units = {"residual16": 0, "master": 0, "residual8": 2**-15, "kahan": 2**-16, "stochastic": 2**-7}[weights]
    for ps in zip(*(optimizer.param_groups[0]["params"] for optimizer in (first, second, third)), strict=True):
        wanted = first.master(ps[0])
        assert not torch.equal(wanted, ps[0].detach().float()), "there is something to keep"
        found = third.master(ps[2])
        assert torch.all((found - wanted).abs() <= units * wanted.abs())
        between = ps[1].detach().float() if weights == "stochastic" else second.master(ps[1])
        # a compensation of half a unit is one more than a residual goes to
        assert torch.all((found - between).abs() <= (2**-23 if weights == "kahan" else 0) * between.abs())
    for optimizer in (second, third):
        train(optimizer, 1, first=4)
        assert {row.path for row in oxistep.explain(optimizer)} == {"native"}


# ---- what else a step does ----

STEPPED = ["AdamW", "SGD", "Lion", "LAMB", "a rule"]
SETTINGS = [
    {"state_dtype": "8bit"},
    {"state_dtype": BF16},
    *({"weights": weights, "state_dtype": "8bit"} for weights in WEIGHTS),
]
some_classes = pytest.mark.parametrize("name", STEPPED)
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)
every_pair = pytest.mark.covers(("name", "settings"))


def gradient(p, step):
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(p.dtype)


def set_gradients(ps, step, factor=1.0):
    for p in ps:
        p.grad = gradient(p, step) * factor


@every_pair
@some_classes
@each_setting
def test_a_step_with_a_closure_is_the_step_after_it(name, settings):
    one, other = (make(name, params(type_for(settings)), **settings) for _ in "ab")
    ps = one.param_groups[0]["params"]
    for step in range(3):

        def closure(step=step):
            one.zero_grad()
            loss = sum((p * gradient(p, step)).sum() for p in ps)
            loss.backward()
            return loss

        loss = one.step(closure)
        assert loss.item() == sum((p * gradient(p, step)).sum() for p in values(other)).item()
        set_gradients(other.param_groups[0]["params"], step)
        other.step()
        assert bits(one) == bits(other)


@pytest.mark.covers(("name", "fused", "settings"))
@pytest.mark.parametrize("name, fused", [*((name, False) for name in STEPPED), ("AdamW", True), ("SGD", True)])
@each_setting
def test_scaled_gradients_are_unscaled_and_an_infinite_one_skips_the_step(name, settings, fused):
    """A scale is a power of two, so the bits are those without one."""
    more = {"fused": True} if fused else {}
    one, other = (make(name, params(type_for(settings)), **settings, **more) for _ in "ab")
    ps = one.param_groups[0]["params"]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(5):
        one.zero_grad()
        (scaler.scale(sum((p * gradient(p, step)).sum() for p in ps)) * (torch.inf if step == 2 else 1)).backward()
        seen = bits(one)
        scaler.step(one)
        scaler.update()
        if step == 2:
            assert bits(one) == seen
            assert scaler.get_scale() == 4.0
        else:
            set_gradients(other.param_groups[0]["params"], step)
            other.step()
    assert bits(one) == bits(other)


@every_pair
@some_classes
@each_setting
def test_clipping_is_a_step_on_smaller_gradients(name, settings):
    most = 0.5
    if name == "LAMB":  # which has a max_grad_norm of its own
        one, other = (make(name, params(type_for(settings)), max_grad_norm=m, **settings) for m in (most, None))
    else:
        one = make(name, params(type_for(settings)), max_grad_norm=most, **settings)
        other = make(name, params(type_for(settings)), **settings)
    for step in range(3):
        set_gradients(one.param_groups[0]["params"], step)
        ps = other.param_groups[0]["params"]
        set_gradients(ps, step)
        norm = torch.linalg.vector_norm(torch.cat([p.grad.double().flatten() for p in ps]))
        set_gradients(ps, step, factor=most / norm.item())
        one.step()
        other.step()
        if name != "LAMB":
            assert one.last_grad_norm.item() == pytest.approx(norm.item(), rel=torch.finfo(ps[0].dtype).eps)
    plain, wanted = (oxistep.plain_state_dict(optimizer)["state"] for optimizer in (one, other))
    for number, entry in wanted.items():
        for key, value in entry.items():
            # Gradients of bfloat16 that were made smaller have been rounded, and another code is drawn then: they are
            # up to a sixty-fourth apart, and smaller gradients are a hundredth of the others.
            difference = torch.dist(plain[number][key].float(), value.float())
            assert difference <= 0.04 * torch.linalg.vector_norm(value.float()), key


@every_pair
@some_classes
@each_setting
def test_a_gradient_that_is_not_finite_skips_the_step_whole(name, settings):
    optimizer = train(make(name, params(type_for(settings)), skip_nonfinite=True, **settings), 2)
    other = train(make(name, params(type_for(settings)), **settings), 2)
    seen = bits(optimizer)
    for bad in (torch.nan, torch.inf):
        set_gradients(optimizer.param_groups[0]["params"], 7)
        optimizer.param_groups[0]["params"][1].grad[3] = bad
        optimizer.step()
        assert bits(optimizer) == seen
    assert bits(train(optimizer, 2, first=2)) == bits(train(other, 2, first=2))


@every_pair
@some_classes
@each_setting
def test_a_monitor_tells_how_far_the_full_weights_move_and_changes_nothing(name, settings):
    """Before they are rounded to what is kept: a master has all digits, and the same states."""
    optimizer = train(make(name, params(type_for(settings)), **settings), 2)
    other = train(make(name, params(type_for(settings)), **settings), 3)
    with_digits = {**settings, "weights": "master"} if settings.get("weights") else settings
    exact = make(name, with_values(params(type_for(settings)), values(optimizer)), **with_digits)
    exact.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ps = exact.param_groups[0]["params"]

    def full():
        return [exact.master(p) if settings.get("weights") else p.detach().clone() for p in ps]

    start = full()
    train(exact, 1, first=2)
    monitor = diagnostics.UpdateMonitor(optimizer)
    train(optimizer, 1, first=2)
    for row, now, before in zip(monitor.rows(), full(), start, strict=True):
        assert row["update"] > 0
        assert row["update"] == pytest.approx(torch.dist(now.double(), before.double()).item(), rel=1e-4)
    assert bits(optimizer) == bits(other)


@every_pair
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lion", "NAdamW", "a rule"])  # LAMB counts the steps of its group
@each_setting
def test_a_parameter_unfrozen_late_begins_as_in_a_run_of_its_own(name, settings):
    """What is drawn depends on the parameter's own steps, too."""
    optimizer = make(name, params(type_for(settings)), **settings)
    large, small = optimizer.param_groups[0]["params"]
    for step in range(3):
        set_gradients([small], step)
        optimizer.step()
    assert not optimizer.state[large]
    other = make(name, params(type_for(settings)), **settings)
    alone, _ = other.param_groups[0]["params"]
    for step in range(3, 5):
        set_gradients([large, small], step)
        set_gradients([alone], step)
        optimizer.step()
        other.step()
    assert {row.path for row in oxistep.explain(optimizer)} == {"native"}
    assert torch.equal(large, alone)
    for key, value in other.state[alone].items():
        assert torch.equal(optimizer.state[large][key], value), key


# ---- files of others, and float16 ----


@pytest.mark.covers(("name", "settings"))
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adadelta", "Lion", "LAMB", "a rule"])
@pytest.mark.parametrize("settings", RESUMED, ids=str)
def test_safetensors_keep_codes_headers_and_digits(name, settings):
    safetensors = pytest.importorskip("safetensors.torch")
    whole = train(make(name, params(type_for(settings)), **settings), 5)
    first = train(make(name, params(type_for(settings)), **settings), 3)
    state = first.state_dict()
    tensors = {
        f"{number}.{key}": value
        for number, entry in state["state"].items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }
    if settings["state_dtype"] == "8bit":
        assert {tensors[key].dtype for key in tensors if key.endswith("_codes")} == {torch.uint8}
    weights = {f"weight{i}": value for i, value in enumerate(values(first))}
    loaded = safetensors.load(safetensors.save({**tensors, **weights}))
    for number, entry in state["state"].items():
        entry.update({key: loaded[f"{number}.{key}"] for key in entry if f"{number}.{key}" in loaded})
    ps = with_values(params(type_for(settings)), [loaded[key] for key in weights])
    second = make(name, ps, **settings)
    second.load_state_dict(state)
    assert bits(train(second, 2, first=3)) == bits(whole)


F16 = torch.float16


@pytest.mark.parametrize("weights", ["stochastic", "residual8", "residual16"])
@each_class
def test_float16_has_no_other_half_to_keep(name, weights):
    """Its exponent is not that of float32."""
    with pytest.raises(ValueError, match=rf"weights='{weights}': expected parameters of .*, got torch.float16 for .*"):
        make(name, params(F16), weights=weights)
    optimizer = make(name, params(BF16), weights=weights)
    with pytest.raises(ValueError, match=r"expected parameters of .*bfloat16.*, got torch.float16"):
        optimizer.add_param_group({"params": params(F16)})
    assert len(optimizer.param_groups) == 1


IN_FLOAT16 = ["Adam", "AdamW", "Adadelta", "RMSprop", "SGD", "Lion", "ADOPT", "a rule"]


def in_both(name, state_dtype, steps, **settings):
    """A run of float16 parameters, and one of float32 from the same start with the same gradients."""
    runs = []
    for dtype in (F16, torch.float32):
        ps = [p.detach().to(dtype).requires_grad_() for p in params(F16)]
        optimizer = make(name, ps, state_dtype=state_dtype, **(settings if dtype == F16 else {}))
        for step in range(steps):
            for p, like in zip(ps, params(F16), strict=True):
                p.grad = gradient(like, step).to(dtype)
            optimizer.step()
        assert {row.path for row in oxistep.explain(optimizer)} == {"native"}
        runs.append(optimizer)
    return runs


@pytest.mark.parametrize("name", IN_FLOAT16)
@pytest.mark.parametrize("state_dtype", ["8bit", BF16], ids=str)
def test_states_of_float16_parameters_with_masters_are_those_of_float32_ones(name, state_dtype):
    halves, whole = in_both(name, state_dtype, 4, weights="master")
    for p, q in zip(*(optimizer.param_groups[0]["params"] for optimizer in (halves, whole)), strict=True):
        assert torch.equal(halves.master(p), q.detach())
        assert torch.equal(p, q.detach().half())
        for key, value in whole.state[q].items():
            assert torch.equal(halves.state[p][key], value), key


@pytest.mark.parametrize("name", IN_FLOAT16)
@pytest.mark.parametrize("state_dtype", ["8bit", BF16], ids=str)
def test_states_of_float16_parameters_are_those_of_float32_ones(name, state_dtype):
    """Gradients do not depend on parameters here, so states have the same bits; parameters are rounded in each step."""
    for steps in (1, 6):
        halves, whole = in_both(name, state_dtype, steps)
        for p, q, start in zip(*(o.param_groups[0]["params"] for o in (halves, whole)), params(F16), strict=True):
            assert {k: (v.dtype, v.tolist()) for k, v in halves.state[p].items()} == {
                k: (v.dtype, v.tolist()) for k, v in whole.state[q].items()
            }
            if steps == 1:
                assert torch.equal(p, q.detach().half())
            assert steps == 1 or not torch.equal(p, start)  # ADOPT begins to move in the second step
            largest = (q.abs() + (q - start.float()).abs()).clamp(min=2**-14)  # below, numbers are as far apart
            assert torch.all((p.float() - q).abs() <= steps * 2**-10 * largest)
