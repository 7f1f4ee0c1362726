"""A program of steps for `make valgrind`: every optimizer, layouts, dtypes, sparse rows, clipping, NumPy.

Small, since everything takes fifty times as long there. What comes out is judged elsewhere; here it is enough to run.
"""

import numpy as np
import torch

import oxistep
import oxistep.numpy
import oxistep.optim


def layouts(dtype):
    yield torch.ones(300, dtype=dtype)
    yield torch.ones(7, 9, dtype=dtype).t()
    yield torch.ones(40, 6, dtype=dtype)[::2, ::3]
    yield torch.ones((), dtype=dtype)
    yield torch.ones(0, 3, dtype=dtype)
    yield torch.ones(5, 1, 4, dtype=dtype).expand(5, 1, 4)


def torch_steps(name, dtype, **settings):
    matrices = name in ("Adafactor", "Muon")
    tensors = [torch.ones(30, 20, dtype=dtype)] if matrices else list(layouts(dtype))
    params = [t.requires_grad_() for t in tensors]
    optimizer = getattr(oxistep.optim, name)(params, lr=0.01, **settings)
    for _ in range(3):
        for p in params:
            p.grad = torch.full_like(p, 0.5, memory_format=torch.contiguous_format)
        oxistep.clip_grad_norm_(params, 1.0)
        oxistep.clip_grad_value_(params, 0.1)
        optimizer.step()


def main():
    torch.manual_seed(0)
    names = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "ASGD", "RMSprop", "Rprop"]
    for name in names:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            torch_steps(name, dtype)
        torch_steps(name, torch.float32, max_grad_norm=1.0)
        print(name, flush=True)
    for name in ("Adafactor", "Muon"):
        torch_steps(name, torch.float32)
        print(name, flush=True)

    large = torch.ones(150_000, requires_grad=True)  # several threads
    optimizer = oxistep.optim.Adam([large], lr=0.01)
    for _ in range(2):
        large.grad = torch.ones_like(large)
        optimizer.step()

    rows = torch.ones(50, 4, requires_grad=True)
    optimizer = oxistep.optim.SparseAdam([rows], lr=0.01)
    for _ in range(3):
        index = torch.tensor([[3, 1, 3, 49]])
        rows.grad = torch.sparse_coo_tensor(index, torch.ones(4, 4), rows.shape)
        optimizer.step()
    print("SparseAdam", flush=True)

    p = torch.ones(200, requires_grad=True)
    optimizer = oxistep.optim.LBFGS([p], max_iter=4, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (p - torch.arange(200.0)).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    print("LBFGS", flush=True)

    for cls in (oxistep.numpy.SGD, oxistep.numpy.Adam):
        base = np.ones((20, 30), np.float32)
        arrays = [base[::2, ::-1], np.ones(100, np.float64), *np.ones((9, 4), np.float32).T]
        optimizer = cls(arrays, lr=0.01)
        for _ in range(3):
            optimizer.step([np.ones_like(a) for a in arrays])
    print("NumPy", flush=True)


if __name__ == "__main__":
    main()
