"""Parameters of all layouts, and steps of rules by kernels or by torch's operations."""

import torch

from oxistep.optim._definition import definition_of

SHAPES = [(), (7,), (64,), (130, 3), (5, 4, 3)]


def lie(tensor, layout):
    """The same values, laid out in memory in another way."""
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor.clone()
    if layout == "transposed":
        return tensor.permute(*reversed(range(tensor.dim()))).contiguous().permute(*reversed(range(tensor.dim())))
    if layout == "every second":
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    columns = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
    columns[..., : tensor.shape[-1]] = tensor
    return columns[..., : tensor.shape[-1]]


def draw(shapes, dtype=torch.float32, layout="contiguous", seed=0):
    made = torch.Generator().manual_seed(seed)
    return [lie(torch.randn(shape, generator=made, dtype=torch.float64).to(dtype), layout) for shape in shapes]


def params(shapes, dtype=torch.float32, layout="contiguous"):
    return [tensor.requires_grad_() for tensor in draw(shapes, dtype, layout)]


def train(optimizer, steps, layout="contiguous", by_torch=False, late=True):
    """Steps, in which the last parameter has its first gradient in the third; by kernels or by torch's operations."""
    all_params = [p for group in optimizer.param_groups for p in group["params"]]
    for k in range(steps):
        grads = draw([p.shape for p in all_params], all_params[0].dtype, layout, 100 + k)
        for p, g in zip(all_params, grads, strict=True):
            p.grad = None if late and k < 2 and p is all_params[-1] else g
        if by_torch:
            definition_of(type(optimizer)).leave_everything(optimizer)
        else:
            optimizer.step()
            assert {path for *_, path, _ in definition_of(type(optimizer)).explain(optimizer)} <= {"native", "skipped"}
    return optimizer


def everything(optimizer):
    """Parameters and states, by name."""
    found = {}
    for k, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        found[k, "p"] = p.detach()
        found |= {(k, name): torch.as_tensor(value) for name, value in optimizer.state[p].items()}
    return found


def same_bits(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype and torch.equal(value, other[key]), key
