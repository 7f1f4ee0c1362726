"""Muon."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz
from torch.optim.optimizer import ParamsT

from oxistep import _core
from oxistep.optim import _modes
from oxistep.optim._all_or_nothing import tear
from oxistep.optim._averages import left_to_torch
from oxistep.optim._definition import Definition, Rows, all_torchs, define
from oxistep.optim._kept import GradNormGroup, keep_settings
from oxistep.optim._max_grad_norm import guarded_by_torch
from oxistep.optim._native import NativeStep
from oxistep.optim._ranks import joining
from oxistep.optim._storages import check_storages

__all__ = ["Muon"]

# Matrices of at most this many elements together are updated in one go. More at once would gain nothing, and hold their
# products all at the same time.
_AT_ONCE = 1 << 18

_increment_version = torch._C._increment_version

# torch's class, whatever may be put under its name later
_Muon = torch.optim.Muon


class Muon(NativeStep, _Muon):
    r"""Momentum made orthogonal, for the matrices of hidden layers.

    .. math::
        b &\leftarrow b + (1 - \mu) (g - b), \quad u = g + \mu (b - g) \\
        \theta &\leftarrow (1 - \gamma \lambda) \theta - \gamma' O(u)

    where :math:`O` brings the singular values of a matrix near one by ``ns_steps`` Newton-Schulz iterations in
    bfloat16. Their matrix products are torch's; momentum, decay and update are native.

    Args:
        params: matrices (2-dimensional parameters), named parameters, or dicts of parameter groups. Biases,
            embeddings and the like belong to another optimizer.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-3).
        weight_decay: :math:`\lambda`, decoupled (default: 0.1).
        momentum: :math:`\mu` (default: 0.95).
        nesterov: look ahead; else :math:`u = b` (default: True).
        ns_coefficients: of the polynomial of degree five that is iterated (default: (3.4445, -4.7750, 2.0315)).
        eps: the least norm that a matrix is divided by (default: 1e-7).
        ns_steps: number of iterations, below 100 (default: 5).
        adjust_lr_fn: how :math:`\gamma'` follows from :math:`\gamma` and the shape (A, B): ``"original"``
            (times :math:`\sqrt{\max(1, A/B)}`), ``"match_rms_adamw"`` (times :math:`0.2 \sqrt{\max(A, B)}`) or
            ``"spectral_unclamped"`` (times :math:`\sqrt{A/B}`) (default: None, the original).
        state_dtype: ``torch.float32`` keeps the states of half-precision parameters in float32 (default: None, as
            torch).
        ema: decay of a running average of the parameters, which each step updates (default: None, no average).
        ema_warmup: start the average with small decays, as timm's ``ModelEmaV3`` does (default: False).
        max_grad_norm: clip the norm of all gradients in place, before they are used (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks to sum the norm over, if each rank holds a part of the parameters: ``"world"``, a
            process group, or a function that sums a small tensor over ranks (default: None, for ranks that hold all
            parameters, or DTensors).

    State:
        momentum_buffer: :math:`b`, in the gradient's shape and dtype.
        param_ema: the average, with ``ema``.

    Native:
        Momentum, decay and update of CPU tensors that are real. The matrix products of :math:`O` are torch's.
        Everything else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite`` or
            ``ema`` has the wrong type.
        ValueError: if ``torch.optim.Muon`` rejects an argument; if ``state_dtype`` is not float32; if ``max_grad_norm``
            is not above zero; in ``step`` for ``ns_steps`` of 100 or more.
        RuntimeError: in ``step``, for complex parameters and sparse gradients.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.zeros(2, 2, requires_grad=True)
        >>> optimizer = optim.Muon([w], lr=0.1)
        >>> (w * torch.tensor([[3.0, 0.0], [0.0, 0.02]])).sum().backward()
        >>> optimizer.step()
        >>> (w[0, 0].item() < -0.05, w[1, 1].item() < 0)
        (True, True)

    Reference:
        Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
        Liu and others, "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        state_dtype: torch.dtype | None = None,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: GradNormGroup = None,
    ) -> None:
        keep_settings(
            self,
            state_dtype,
            max_grad_norm,
            skip_nonfinite,
            grad_norm_group,
            ema=ema,
            ema_warmup=ema_warmup,
            element_wise=False,
        )
        _Muon.__init__(
            self,
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(grad, memory_format=torch.preserve_format)}


class _MuonDefinition(Definition):
    """Muon looks at whole matrices, between whose products its native work is done: its steps are no plan's."""

    def new_plan(self, optimizer: Any) -> Any:
        return _Steps(self)

    def explain(self, optimizer: Any) -> Rows:
        rows = all_torchs(_lines(optimizer), _modes.because() or self.overridden(optimizer))
        return rows if any(path != "skipped" for _, _, path, _ in rows) else self.last_step(optimizer, rows)


class _Steps:
    """Takes the steps of one optimizer, as a native plan does for other classes."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._last: list[tuple[int, int, str | None]] = []
        """Group and place of each parameter of the last step, and why it was left to torch."""
        self._moved: int | None = None

    # What a plan does for averages: here Python moves them all.

    def average(self, weight: float) -> None:
        """``move_all`` computes the weight itself."""

    def averaged(self) -> int | None:
        """How many averages the last step moved; ``None``: there was no step."""
        return self._moved

    def averaged_ids(self) -> list[int]:
        """The ids of their parameters."""
        return []

    def note(self, params: list[Tensor]) -> None:
        """Nothing stands beside these parameters."""

    def last(self) -> Rows:
        """What became of each parameter that had a gradient in the last step."""
        return [_line(*one) for one in self._last]

    @torch.no_grad()
    def step(
        self,
        optimizer: Any,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        unscale: Callable[[], None] | None = None,
        has_group: bool = False,
    ) -> Tensor | None:
        """A step; what is to be done with the gradients first is read where it is kept."""
        definition = self.definition
        self._moved = None
        if definition.overridden(optimizer):
            return definition.leave_everything(optimizer, unscale)
        with joining(optimizer) as ranks:
            rows = _rows(optimizer)
            native: list[_Row] = []
            left: list[tuple[int, Tensor]] = []
            reasons = _reasons(optimizer, rows)
            for row, reason in zip(rows, reasons, strict=True):
                if reason:
                    left.append((row.g, row.p))
                else:
                    native.append(row)
            check_storages(optimizer, left)
            definition.check_left(optimizer, left)
            for g, p in left:
                definition.rehearse_tensors(optimizer, g, p)
            self._last = [(row.g, row.i, reason) for row, reason in zip(rows, reasons, strict=True)]
            step_it_is, norm = guarded_by_torch(optimizer, unscale, ranks)
        if not step_it_is:
            return norm
        store_averages = left_to_torch(optimizer, (row.p for row in native))
        if left:
            definition.torch_step(optimizer, left)
        fresh = [row for row in native if "momentum_buffer" not in row.state]
        made = [definition.make_state(optimizer, row.p, row.grad, row.group) for row in fresh]
        had_entry = [row.p in optimizer.state for row in fresh]
        begun: list[_Row] = []
        try:
            for row, state in zip(fresh, made, strict=True):
                row.state = optimizer.state[row.p]
                row.state.update(state)
            start, elements = 0, 0
            for end, row in enumerate(native, 1):
                elements += row.p.numel()
                if elements >= _AT_ONCE or end == len(native):
                    _update_matrices(native[start:end], begun)
                    start, elements = end, 0
        except BaseException as error:
            if not begun:
                for row, had in zip(fresh, had_entry, strict=True):
                    if had:
                        optimizer.state[row.p].pop("momentum_buffer", None)
                    else:
                        optimizer.state.pop(row.p, None)
                raise
            # The matrix products are torch's, which may run out of memory, and made one round after the other, since no
            # more of them are to be held at once: a part of the matrices is updated.
            torn = tear(optimizer, f"a step of Muon broke off ({error!r})", [row.p for row in native])
            if isinstance(error, Exception):
                raise torn from error
            raise
        store_averages()
        self._moved = 0
        return norm


def _rows(optimizer: Any) -> list["_Row"]:
    """The parameters that have a gradient; makes no entry in ``state``."""
    rows = []
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            grad = p.grad
            if grad is not None:
                state = optimizer.state[p] if p in optimizer.state else {}
                rows.append(_Row(g, i, p, grad, state, group))
    return rows


def _reasons(optimizer: Any, rows: list["_Row"]) -> list[str | None]:
    """For each row why it is left to torch; None: it is native."""
    by_group = [_group_because(group) for group in optimizer.param_groups]
    unfit = _core.muon_unfit([row.p for row in rows], [row.grad for row in rows], [row.buffer() for row in rows])
    return [by_group[row.g] or reason or row.because() for row, reason in zip(rows, unfit, strict=True)]


def _lines(optimizer: Any) -> Rows:
    """Rows for ``oxistep.explain``."""
    rows = _rows(optimizer)
    found = {(row.g, row.i): reason for row, reason in zip(rows, _reasons(optimizer, rows), strict=True)}
    places = [(g, i) for g, group in enumerate(optimizer.param_groups) for i in range(len(group["params"]))]
    return [_line(g, i, found[g, i]) if (g, i) in found else (g, i, "skipped", "it has no gradient") for g, i in places]


def _line(g: int, i: int, reason: str | None) -> tuple[int, int, str, str]:
    """A row for ``oxistep.explain`` of a parameter with a gradient."""
    return (g, i, "torch", reason) if reason else (g, i, "native", "plain CPU tensors; the matrix products are torch's")


class _Row:
    """One parameter of a step."""

    __slots__ = ("g", "grad", "group", "i", "p", "state")

    def __init__(self, g: int, i: int, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        self.g, self.i, self.p, self.grad, self.group = g, i, p, grad, group
        self.state: Any = state  # which somebody may have made anything but a dict

    def buffer(self) -> Any:
        """The momentum buffer, if there is one."""
        return self.state.get("momentum_buffer") if isinstance(self.state, dict) else None

    def because(self) -> str | None:
        """Why its state is left to torch, which refuses it."""
        if not isinstance(self.state, dict):
            return "its entry in optimizer.state is no dict"
        if "momentum_buffer" not in self.state:
            return None
        buffer = self.state["momentum_buffer"]
        if buffer is None:
            return 'its state lacks "momentum_buffer"'
        return "its state was made in inference mode" if buffer.is_inference() else None


def _update_matrices(rows: list[_Row], begun: list[_Row]) -> None:
    """Updates some matrices; they are in ``begun`` when anything is written."""
    params = [row.p for row in rows]
    buffers = [row.state["momentum_buffer"] for row in rows]
    updates: list[Tensor | None] = [
        torch.empty_like(row.grad, dtype=torch.bfloat16) if row.group["nesterov"] else None for row in rows
    ]
    momenta, decays, alphas, settings = [], [], [], []
    for row in rows:  # whatever a group may lack is found before anything is written
        group = row.group
        lr: Any = group["lr"]
        lr = lr.squeeze() if isinstance(lr, Tensor) else lr
        momenta.append(float(group["momentum"]))
        decays.append(float(1 - lr * group["weight_decay"]))
        alphas.append(float(-_adjust_lr(lr, group["adjust_lr_fn"], row.p.shape)))
        settings.append((group["ns_coefficients"], group["ns_steps"], group["eps"]))
    begun += rows
    _core.muon_momentum([row.grad for row in rows], buffers, updates, momenta)
    products = []
    for i, setting in enumerate(settings):
        update = updates[i]
        matrix = buffers[i] if update is None else update
        products.append(_zeropower_via_newtonschulz(matrix, *setting))
        del matrix, update
        updates[i] = None  # its memory is free for the next product
    _increment_version(params)
    _core.muon_update(params, products, decays, alphas)


def _group_because(group: dict[str, Any]) -> str | None:
    """Why a whole group is left to torch, which raises for it or decides what it means."""
    coefficients = group["ns_coefficients"]
    plain = isinstance(group["ns_steps"], int) and group["ns_steps"] < 100 and len(coefficients) == 3
    numbers = (*coefficients, group["eps"], group["momentum"], group["weight_decay"])
    if not plain or not all(isinstance(number, (int, float)) for number in numbers):
        return "a hyperparameter is no plain number, torch decides what that means"
    if not isinstance(group["lr"], (int, float)) and not (isinstance(group["lr"], Tensor) and group["lr"].numel() == 1):
        return "lr is no plain number, torch decides what that means"
    return None


define(Muon, "muon", _Muon, _new_state, kind=_MuonDefinition)
