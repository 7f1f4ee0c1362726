"""The table of the NumPy optimizers: each row is a rule with hyperparameters that no other row covers."""

from copy import deepcopy

import numpy as np

from oxistep.numpy import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop

ROWS = {
    "gradient descent": (SGD, {"lr": 0.1}),
    "SGD, decay, maximize": (SGD, {"lr": 0.1, "weight_decay": 0.01, "maximize": True}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "momentum, dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    "Nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adagrad": (Adagrad, {"lr": 0.1}),
    "Adagrad, all": (
        Adagrad,
        {
            "lr": 0.1,
            "lr_decay": 0.01,
            "weight_decay": 0.01,
            "initial_accumulator_value": 0.1,
            "maximize": True,
        },
    ),
    "RMSprop": (RMSprop, {"lr": 0.01}),
    "RMSprop, centered": (RMSprop, {"lr": 0.01, "alpha": 0.9, "centered": True}),
    "RMSprop, all": (
        RMSprop,
        {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.01, "maximize": True},
    ),
    "Adam": (Adam, {"lr": 0.01}),
    "Adam, all": (
        Adam,
        {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.01, "amsgrad": True, "maximize": True},
    ),
    "AdamW": (AdamW, {"lr": 0.01}),
    "AdamW, all": (AdamW, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True}),
    "Adadelta": (Adadelta, {}),
    "Adadelta, all": (Adadelta, {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.01, "maximize": True}),
    "Adamax": (Adamax, {"lr": 0.01}),
    "Adamax, all": (Adamax, {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.01, "maximize": True}),
    "NAdam": (NAdam, {"lr": 0.01}),
    "NAdam, all": (
        NAdam,
        {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.01, "momentum_decay": 0.1, "maximize": True},
    ),
    "NAdam, decoupled": (NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "RAdam": (RAdam, {"lr": 0.01}),
    "RAdam, all": (RAdam, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.01, "maximize": True}),
    "RAdam, decoupled": (RAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "ASGD": (ASGD, {"lr": 0.01}),
    "ASGD, all": (
        ASGD,
        {"lr": 0.01, "lambd": 0.1, "alpha": 0.5, "t0": 3.0, "weight_decay": 0.01, "maximize": True},
    ),
    "Rprop": (Rprop, {"lr": 0.01}),
    "Rprop, all": (Rprop, {"lr": 0.01, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.1), "maximize": True}),
}

# One row of each class, for what is about the classes and not about the formulas.
CLASSES = {
    name: ROWS[name]
    for name in (
        "momentum",
        "Adagrad",
        "RMSprop, all",
        "Adam, all",
        "AdamW",
        "Adadelta, all",
        "Adamax, all",
        "NAdam, all",
        "RAdam, all",
        "ASGD, all",
        "Rprop, all",
    )
}

# The states of one number.
SCALARS = ("step", "mu_product", "eta", "mu")


def snapshot(optimizer):
    """All that a step or a load may change, copied."""
    return deepcopy(
        {
            "params": [
                [(array.dtype.str, array.tobytes()) for array in group["params"]] for group in optimizer.param_groups
            ],
            "groups": [
                {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
            ],
            "state": [
                [{key: value.tobytes() for key, value in state.items()} for state in states]
                for states in optimizer.state
            ],
            "step_count": optimizer.step_count,
        }
    )


def same_bits(one, other):
    """Whether two arrays hold the same bits, whatever their layout."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def assert_same_state(one, other):
    """All states of two optimizers are the same bits."""
    for left, right in zip(one.state, other.state, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert same_bits(a[key], b[key]), key


def layouts(array):
    """Seven pairs of a buffer and a view into it that equals `array`, one for each kind of memory layout."""
    shape, dtype = array.shape, array.dtype

    def pair(buffer, view):
        buffer[...] = 77
        view[...] = array
        return buffer, view

    c_order, fortran = np.empty(shape, dtype), np.empty(shape, dtype, order="F")
    yield pair(c_order, c_order)
    yield pair(fortran, fortran)
    buffer = np.empty([3 * n + 2 for n in shape], dtype)
    yield pair(buffer, buffer[..., *(slice(1, 1 + 3 * n, 3) for n in shape)])
    buffer = np.empty(shape, dtype)
    yield pair(buffer, buffer[..., *[slice(None, None, -1)] * len(shape)])
    buffer = np.empty(shape[::-1], dtype)
    yield pair(buffer, buffer.T)
    buffer = np.empty((*shape, 2), dtype)
    yield pair(buffer, buffer[..., 1])
    # Not aligned to a vector register.
    buffer = np.empty(array.size + 1, dtype)
    yield pair(buffer, buffer[1:].reshape(shape))
