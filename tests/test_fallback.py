"""What goes to torch's own step, and what must not: dense CPU tensors, in whatever layout."""

import os
import subprocess
from collections import UserDict

import pytest
import torch

import fresh
import oxistep
import oxistep.optim
from scenarios import (
    CLOSE,
    NATIVE,
    WHOLE,
    assert_agrees,
    assert_same,
    draw,
    each_class,
    each_elementwise_class,
    make,
    outcome,
    params_of,
    result,
    set_gradients,
    torch_updates_raise,
)
from seeing import Seeing

# ---- what is left to torch ----
# Each function returns parameters with gradients; the pattern is what `explain` says about them.


def sparse_gradient():
    p = torch.ones(4, 2, requires_grad=True)
    p.grad = torch.sparse_coo_tensor([[1, 3, 1]], torch.arange(6.0).reshape(3, 2), (4, 2))
    return [p]


def complex_parameter():
    p = torch.tensor([1 + 2j, -0.5j], requires_grad=True)
    p.grad = torch.tensor([0.5 - 1j, 2j])
    return [p]


class Labelled(Seeing, torch.nn.Parameter):
    """A subclass that changes nothing; torch's for-loop treats it as any tensor."""


def subclass():
    p = Labelled(torch.ones(3))
    p.grad = torch.arange(3.0)
    return [p]


def gradient_of_a_subclass():
    p = torch.ones(3)
    p.grad = torch.arange(3.0).as_subclass(type("Wrapped", (Seeing, torch.Tensor), {}))
    return [p]


def expanded_parameter():
    p = torch.ones(1).expand(4)
    p.grad = torch.arange(4.0)
    return [p]


def overlapping_windows():
    p = torch.arange(5.0).unfold(0, 2, 1)
    p.grad = torch.ones(4, 2)
    return [p]


def gradient_that_is_its_parameter():
    p = torch.arange(4.0) + 1
    p.grad = p.detach()
    return [p]


def gradient_that_is_another_parameter():
    p, q = torch.arange(4.0) + 1, torch.arange(8.0)
    p.grad = q[2:6]
    q.grad = torch.ones(8)
    return [p, q]


def lazily_conjugated_gradient():
    p = torch.tensor([1 + 2j, -0.5j], requires_grad=True)
    p.grad = torch.tensor([0.5 - 1j, 2j]).conj()
    return [p]


def small_floats():
    p = torch.ones(3).to(torch.float8_e4m3fn)
    p.grad = torch.ones(3).to(torch.float8_e4m3fn)
    return [p]


def gradient_of_another_shape():
    p = torch.ones(3)
    p.grad = torch.ones(3)
    p.data = torch.arange(6.0).reshape(2, 3)
    return [p]


def gradient_of_another_dtype():
    p = torch.ones(3)
    p.grad = torch.arange(3.0)
    p.data = torch.ones(3, dtype=torch.float64)
    return [p]


def integer_parameter():
    p = torch.arange(3)
    p.grad = torch.arange(3)
    return [p]


def lazily_negated_gradient():
    p = torch.ones(3)
    p.grad = torch.tensor([1 + 2j, 3 - 1j, 0.5j]).conj().imag
    assert p.grad.is_neg()
    return [p]


def lazily_zero_gradient():
    p = torch.ones(3)
    p.grad = torch._efficientzerotensor((3,))
    return [p]


def mkldnn():
    p = torch.ones(3).to_mkldnn()
    p.grad = torch.ones(3).to_mkldnn()
    return [p]


def on_meta():
    p = torch.ones(3, device="meta")
    p.grad = torch.ones(3, device="meta")
    return [p]


OVERLAPS = "overlaps memory of another tensor in the step"
NO_MEMORY = "has no plain memory"
LEFT_TO_TORCH = {
    subclass: "the parameter is of a subclass of Tensor",
    gradient_of_a_subclass: "the gradient is of a subclass of Tensor",
    expanded_parameter: "several elements of the parameter share memory",
    overlapping_windows: "several elements of the parameter share memory",
    gradient_that_is_its_parameter: OVERLAPS,
    gradient_that_is_another_parameter: OVERLAPS,
    gradient_of_another_shape: "the gradient has another shape than the parameter",
    gradient_of_another_dtype: "no kernel for this combination of dtypes",
    integer_parameter: "dtype",
    small_floats: "dtype",
    lazily_negated_gradient: "the gradient is a lazily negated",
    lazily_conjugated_gradient: "the gradient is a lazily negated or conjugated view",
    lazily_zero_gradient: f"the gradient {NO_MEMORY}",
    mkldnn: f"the parameter {NO_MEMORY}",
    on_meta: f"the parameter {NO_MEMORY}",
}
# Some classes serve these.
ODD = [sparse_gradient, complex_parameter, *LEFT_TO_TORCH]

each_left_to_torch = pytest.mark.parametrize("odd", LEFT_TO_TORCH, ids=lambda odd: odd.__name__)


def visible(p):
    """A parameter's values in a form that compares."""
    if p.device.type == "meta":
        return tuple(p.shape)
    p = p.detach().as_subclass(torch.Tensor)
    return (p.to_dense() if p.layout is not torch.strided else p).clone()


def mixed(optim, name, odd):
    """An optimizer with odd parameters between ordinary ones, and the ordinary ones."""
    first, last = draw((4, 3), (5,))
    set_gradients([first, last], 0)
    groups = [{"params": [first, *odd()]}, {"params": [last], "lr": 0.05}]
    return make(optim, name, groups), [first, last]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.__name__)
@each_class
def test_beside_native_parameters_the_result_or_the_error_is_torchs(name, odd):
    def scenario(optim):
        optimizer, ordinary = mixed(optim, name, odd)
        odd_params = optimizer.param_groups[0]["params"][1:]
        for _ in range(2):
            before = result_of(optimizer, ordinary)
            refused = outcome(optimizer.step)
            if refused:
                if optim is oxistep.optim:
                    assert_same(result_of(optimizer, ordinary), before, exact=True)
                return refused
        states = [sorted(optimizer.state[p]) for p in odd_params if p in optimizer.state]
        return [visible(p) for p in odd_params], states, result_of(optimizer, ordinary)

    assert_agrees(scenario)


@each_left_to_torch
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_what_torch_does_is_torchs_to_the_bit(name, odd):
    def scenario(optim):
        optimizer = make(optim, name, odd())
        optimizer.step()
        return [visible(p) for p in params_of(optimizer)]

    assert_agrees(scenario, exact=True)


def result_of(optimizer, params):
    everything = result(optimizer)
    places = [i for i, p in enumerate(params_of(optimizer)) if any(p is q for q in params)]
    return {key: [values[i] for i in places] for key, values in everything.items()}


@each_left_to_torch
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_explain_tells_path_and_reason_before_and_after_the_first_step(name, odd):
    optimizer, ordinary = mixed(oxistep.optim, name, odd)
    unfit = LEFT_TO_TORCH[odd]

    def check():
        rows = oxistep.explain(optimizer)
        assert [(row.group, row.position) for row in rows] == [
            (g, i) for g, group in enumerate(optimizer.param_groups) for i in range(len(group["params"]))
        ]
        for row, p in zip(rows, params_of(optimizer), strict=True):
            if any(p is q for q in ordinary):
                assert (row.path, row.reason) == ("native", "plain CPU tensors")
            else:
                assert row.path == "torch"
        assert any(unfit in row.reason for row in rows), rows

    before = result(optimizer)["state"]
    check()
    assert_same(result(optimizer)["state"], before)
    if not outcome(optimizer.step):
        check()


# ---- whole groups left to torch ----


@each_class
def test_differentiable(name):
    def scenario(optim):
        leaf = torch.arange(1.0, 4.0, requires_grad=True)
        p = leaf.clone()
        p.retain_grad()
        optimizer = make(optim, name, [p], differentiable=True, **({"amsgrad": False} if name == "Adam" else {}))
        if optim is oxistep.optim:
            p.grad = torch.ones(3)
            (row,) = oxistep.explain(optimizer)
            assert (row.path, row.reason) == ("torch", "differentiable=True: autograd goes through the step")
        p.grad = torch.arange(1.0, 4.0)
        optimizer.step()
        p.sum().backward()
        return p, leaf.grad

    _, gradient = assert_agrees(scenario, exact=True)
    assert gradient is not None


@pytest.mark.parametrize("name", sorted(set(NATIVE) - {"SGD", "Adagrad", "Adafactor"}))
def test_capturable(name):
    def scenario(optim):
        w, v = draw((4,), (3,))
        optimizer = make(optim, name, [{"params": [w], "capturable": True}, {"params": [v]}])
        set_gradients([w, v], 0)
        if optim is oxistep.optim:
            assert [row.path for row in oxistep.explain(optimizer)] == ["torch", "native"]
            before = v.detach().clone()
            came = outcome(optimizer.step)
            assert torch.equal(v, before)
            assert v not in optimizer.state
            return came
        return outcome(optimizer.step)

    error, text = assert_agrees(scenario)
    assert error is AssertionError
    assert "capturable=True" in text


@each_class
def test_lr_that_requires_grad(name):
    def scenario(optim):
        optimizer = make(optim, name, draw((4,)), lr=torch.tensor(0.1, requires_grad=True))
        set_gradients(params_of(optimizer), 0)
        if optim is oxistep.optim and name != "Rprop":  # which reads lr only when it makes its states
            (row,) = oxistep.explain(optimizer)
            assert row.path == "torch"
            assert "lr requires grad" in row.reason
        optimizer.step()
        return result(optimizer)["params"]

    assert_agrees(scenario, exact=True)


class Entry(dict):
    """A dict all the same."""


@pytest.mark.parametrize("kind, path", [(Entry, "native"), (UserDict, "torch")])
def test_a_state_entry_of_another_type(kind, path):
    def scenario(optim):
        (w,) = draw((4,))
        optimizer = make(optim, "Adam", [w])
        set_gradients([w], 0)
        optimizer.step()
        optimizer.state[w] = kind(optimizer.state[w])
        optimizer.step()
        if optim is oxistep.optim:
            assert [row.path for row in oxistep.explain(optimizer)] == [path]
        return type(optimizer.state[w]).__name__, dict(optimizer.state[w]), w

    assert_agrees(scenario)


# ---- explain ----


def test_explain_names_parameters_and_prints_a_summary():
    model = torch.nn.Linear(2, 2)
    optimizer = oxistep.optim.SGD(model.named_parameters(), lr=0.1)
    model.weight.grad = torch.ones(2, 2)
    rows = oxistep.explain(optimizer)
    assert [tuple(row) for row in rows] == [
        (0, 0, "weight", "native", "plain CPU tensors"),
        (0, 1, "bias", "skipped", "it has no gradient"),
    ]
    assert str(rows) == "2 parameters: 1 native, 1 skipped\n  bias  skipped  it has no gradient"


def test_explain_without_names():
    optimizer = oxistep.optim.SGD([{"params": [torch.ones(1)]}, {"params": [torch.ones(2), torch.ones(3)]}])
    names = [row.name for row in oxistep.explain(optimizer)]
    assert names == [f"param_groups[{g}]['params'][{i}]" for g, i in [(0, 0), (1, 0), (1, 1)]]
    optimizer.param_groups.clear()
    assert str(oxistep.explain(optimizer)) == "no parameters"


def test_explain_of_torchs_own_optimizers():
    p, q = torch.ones(2), torch.ones(2)
    p.grad = torch.ones(2)
    rows = oxistep.explain(torch.optim.LBFGS([p, q]))
    assert [(row.path, row.reason) for row in rows] == [
        ("torch", "LBFGS is torch's own class"),
        ("skipped", "it has no gradient"),
    ]


def test_explain_of_no_optimizer():
    with pytest.raises(TypeError, match=r"expected an optimizer .*, or what wraps one, got list"):
        oxistep.explain([torch.ones(1)])


# ---- OXISTEP_BACKEND ----


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return fresh.python(code, env={**os.environ, **environment})


def test_the_environment_can_force_torchs_path():
    done = run(
        """
import torch, oxistep, oxistep.optim
w, v = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
for name in ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW"):
    a, b = getattr(oxistep.optim, name)([w], lr=0.1), getattr(torch.optim, name)([v], lr=0.1, foreach=False)
    for step in range(5):
        w.grad, v.grad = torch.full((3,), step - 1.7), torch.full((3,), step - 1.7)
        a.step()
        b.step()
    assert torch.equal(w, v)
(row,) = oxistep.explain(a)
assert (row.path, row.reason) == ("torch", "OXISTEP_BACKEND=torch"), row
import torch.optim.adam as functions
def refuse(*args, **kwargs): raise ZeroDivisionError
functions.adam = refuse
try:
    a.step()
except ZeroDivisionError:
    print("torch's")
""",
        OXISTEP_BACKEND="torch",
    )
    assert done.stdout == "torch's\n", done.stderr


# ---- a torch that describes tensors otherwise ----

# A table of DLPack's version 2: what follows the version is nothing that version 1 knows.
FORGED = """
import ctypes, warnings
import torch
make = ctypes.pythonapi.PyCapsule_New
make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
table = (ctypes.c_uint32 * 64)(2, 1)
torch.Tensor.__dlpack_c_exchange_api__ = make(ctypes.addressof(table), b"dlpack_exchange_api", None)
"""


def test_an_unknown_version_of_dlpack_leaves_everything_to_torch_and_warns_once():
    done = run(
        FORGED
        + """
with warnings.catch_warnings(record=True) as shown:
    warnings.simplefilter("always")
    import oxistep
    from oxistep import optim, zoo

    @oxistep.rule
    def momentum(p, g, s, lr=0.01, beta=0.9):
        s.v = beta * s.v - lr * g
        return p + s.v

    def trained(make):
        p = torch.arange(12.0).reshape(3, 4).requires_grad_()
        optimizer = make([p])
        for _ in range(3):
            p.grad = p.detach() - 2
            optimizer.step(lambda: (p - 2).square().sum())
        return p, optimizer

    for name in ("SGD", "Adam", "NAdam", "Adafactor", "Muon", "LBFGS"):
        p, optimizer = trained(getattr(optim, name))
        assert torch.equal(p, trained(getattr(torch.optim, name))[0]), name
        assert [row.path for row in oxistep.explain(optimizer)] == ["torch"], name
    for make in (momentum, zoo.Lion, lambda ps: optim.AdamW(ps, max_grad_norm=1.0, ema=0.9)):
        p, optimizer = trained(make)
        (row,) = oxistep.explain(optimizer)
        assert row.path == "torch" and "DLPack" in row.reason, row
        assert not torch.equal(p, torch.arange(12.0).reshape(3, 4))
    total = p.grad.norm()
    assert torch.equal(oxistep.clip_grad_norm_([p], 1.0), total) and p.grad.norm() < 1.001
    try:
        trained(lambda ps: optim.AdamW(ps, state_dtype="8bit"))
    except RuntimeError as refused:
        assert "nothing was updated" in str(refused)
(warning,) = shown
print(warning.category.__name__, warning.message)
"""
    )
    assert done.stdout.startswith("UserWarning this torch describes tensors by version 2 of DLPack"), done.stderr
    assert "understands version 1" in done.stdout and "Upgrade oxistep" in done.stdout


def test_where_warnings_are_errors_an_unknown_version_of_dlpack_raises_before_anything_is_written():
    done = run(
        FORGED
        + """
warnings.simplefilter("error")
import oxistep.optim as optim
p = torch.ones(3, requires_grad=True)
p.grad = torch.ones(3)
optimizer = optim.Adam([p])
for _ in range(2):
    try:
        optimizer.step()
    except UserWarning as warning:
        assert "version 2 of DLPack" in str(warning)
        print(p.tolist(), dict(optimizer.state))
"""
    )
    assert done.stdout == "[1.0, 1.0, 1.0] {}\n" * 2, done.stderr


@pytest.mark.parametrize("what", ["parameter", "gradient", "state"])
@pytest.mark.parametrize("name", ["Adam", "Muon"])
def test_a_shrunk_storage_is_refused_on_torchs_path_too(name, what, monkeypatch):
    """torch's for-loop would write where no memory is."""
    p, q = torch.ones(50, 20), torch.ones(5, 4)
    optimizer = getattr(oxistep.optim, name)([q, p], lr=0.1)
    p.grad, q.grad = torch.ones(50, 20), torch.ones(5, 4)
    optimizer.step()
    monkeypatch.setattr("oxistep.optim._modes.FORCED", True)
    optimizer.step()
    before = q.clone()
    state = next(value for value in optimizer.state[p].values() if value.dim())
    shrunk = {"parameter": p, "gradient": p.grad, "state": state}[what]
    shrunk.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]\['params'\]\[1\].*storage of 8 bytes"):
        optimizer.step()
    assert torch.equal(q, before)


def test_what_is_no_tensor_is_refused_in_torchs_words(monkeypatch):
    monkeypatch.setattr("oxistep.optim._modes.FORCED", True)
    texts = []
    for optim in (oxistep.optim, torch.optim):
        optimizer = optim.Adam([torch.ones(3)], lr=0.1)
        optimizer.param_groups[0]["params"].append(7)
        texts.append(outcome(optimizer.step))
    assert texts[0] == texts[1]


def test_an_unknown_backend_is_refused():
    done = run("import oxistep.optim", OXISTEP_BACKEND="cuda")
    assert "ValueError: OXISTEP_BACKEND: expected 'native' or 'torch', got 'cuda'" in done.stderr


# ---- what must not be left to torch ----

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]


def strided(*shape):
    return torch.zeros(*(2 * n for n in shape))[tuple(slice(None, None, 2) for _ in shape)]


# name: (an empty parameter, an empty gradient), to be filled
LAYOUTS = {
    "contiguous": lambda: (torch.zeros(6, 5), torch.zeros(6, 5)),
    "scalar": lambda: (torch.zeros(()), torch.zeros(())),
    "no elements": lambda: (torch.zeros(0, 3), torch.zeros(0, 3)),
    "transposed": lambda: (torch.zeros(5, 6).t(), torch.zeros(5, 6).t()),
    "transposed gradient": lambda: (torch.zeros(6, 5), torch.zeros(5, 6).t()),
    "transposed parameter": lambda: (torch.zeros(5, 6).t(), torch.zeros(6, 5)),
    "strided": lambda: (strided(6, 5), strided(6, 5)),
    "strided gradient": lambda: (torch.zeros(6, 5), strided(6, 5)),
    "strided parameter": lambda: (strided(6, 5), torch.zeros(5, 6).t()),
    "column": lambda: (torch.zeros(7, 3)[:, 1], torch.zeros(7)),
    "inside a larger tensor": lambda: (torch.zeros(50)[3:33].view(6, 5), torch.zeros(50)[5:35].view(6, 5)),
    "channels last": lambda: tuple(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last) for _ in "pg"),
    "channels last parameter": lambda: (
        torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 4),
    ),
    "permuted": lambda: (torch.zeros(3, 4, 5).permute(2, 0, 1), torch.zeros(4, 5, 3).permute(1, 2, 0)),
    "expanded gradient": lambda: (torch.zeros(6, 5), None),
}


def laid_out(layout, dtype):
    """A parameter with its gradient in the layout, filled with drawn values."""
    p, grad = LAYOUTS[layout]()
    generator = torch.Generator().manual_seed(4)

    def fill(like):
        values = torch.randn(like.shape, generator=generator, dtype=dtype if dtype.is_complex else torch.float32)
        return torch.empty_strided(like.shape, like.stride(), dtype=dtype).copy_(values)

    p = fill(p)
    p.grad = fill(torch.zeros(5)).expand(p.shape) if grad is None else fill(grad)
    return p


@each_elementwise_class
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense_training_runs_though_torchs_updates_raise(name, dtype):
    # eps: 1e-8 is zero in float16, and where denominators all but vanish torch's roundings decide
    eps = {} if name in ("SGD", "ASGD", "Rprop") else {"eps": 1e-2}
    kwargs = {"foreach": False, **eps}
    ours, theirs = ([laid_out(layout, dtype) for layout in LAYOUTS] for _ in range(2))
    a, b = make(oxistep.optim, name, ours, **kwargs), make(torch.optim, name, theirs, **kwargs)
    with torch_updates_raise():
        for _ in range(3):
            a.step()
        with pytest.raises(AssertionError, match="torch's own update ran"):
            b.step()
    b = make(torch.optim, name, theirs, **kwargs)
    for _ in range(3):
        b.step()
    for layout, p, q in zip(LAYOUTS, ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **CLOSE[dtype], msg=lambda m, layout=layout: f"{layout}: {m}")
        assert a.state[p].keys() == b.state[q].keys()
        for key, value in b.state[q].items():
            if dtype.itemsize > 2:
                torch.testing.assert_close(a.state[p][key], value, **CLOSE[dtype])
            assert (a.state[p][key].dtype, a.state[p][key].shape) == (value.dtype, value.shape)


@each_class
@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_are_laid_out_as_torchs(name, layout):
    if name in WHOLE and layout == "no elements":
        pytest.skip("torch divides by zero")

    def strides(optim):
        p = laid_out(layout, torch.float32)
        optimizer = make(optim, name, [p])
        optimizer.step()
        return {key: value.stride() for key, value in optimizer.state[p].items()}

    assert strides(oxistep.optim) == strides(torch.optim)


@each_class
def test_elements_between_those_of_a_strided_parameter_stay_as_they_are(name):
    base = torch.full((8, 9), 7.0)
    p = base[::2, 1::3]
    p.grad = torch.ones(4, 3)
    optimizer = make(oxistep.optim, name, [p])
    with torch_updates_raise():
        optimizer.step()
    untouched = torch.ones(8, 9, dtype=torch.bool)
    untouched[::2, 1::3] = False
    assert (base[untouched] == 7.0).all()
    assert (p != 7.0).all()


def test_float32_parameters_take_half_gradients_natively():
    """torch's for-loop takes these gradients in some classes and refuses them in others."""
    for dtype in (torch.bfloat16, torch.float16):
        for name in ("Adagrad", "RMSprop", "Adam", "AdamW"):
            p, q = torch.ones(5), torch.ones(5)
            grad = torch.linspace(-1, 1, 5).to(dtype)
            q.grad = grad.float()
            p.data, p.grad = p.data.to(dtype), grad
            p.data = torch.ones(5)
            a, b = make(oxistep.optim, name, [p]), make(oxistep.optim, name, [q])
            with torch_updates_raise():
                a.step()
                b.step()
            assert p.grad.dtype is dtype
            assert torch.equal(p, q)


def test_cuda_parameters_take_torchs_path():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    p = torch.ones(3, device="cuda", requires_grad=True)
    w = torch.ones(3, requires_grad=True)
    optimizer = oxistep.optim.Adam([p, w], lr=0.1)
    (p.sum().cpu() + w.sum()).backward()
    assert [row.path for row in oxistep.explain(optimizer)] == ["torch", "native"]
    optimizer.step()
    torch.testing.assert_close(p.cpu(), w)


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="storages are not known")
def test_a_dense_lazily_negated_gradient():
    """A view of the imaginary parts of a conjugated tensor that looks like any dense one."""
    for optim in (torch.optim, oxistep.optim):
        p = torch.zeros(4, requires_grad=True)
        p.grad = torch.complex(torch.ones(4), torch.ones(4)).conj().imag.as_strided((4,), (1,), 0)
        assert p.grad.is_neg()
        optim.SGD([p], lr=1.0).step()
        assert p.tolist() == [1.0] * 4
