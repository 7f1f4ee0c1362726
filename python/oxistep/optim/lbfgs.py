"""LBFGS."""

import inspect
from collections.abc import Callable
from ctypes import c_float
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.lbfgs import _strong_wolfe
from torch.optim.optimizer import ParamsT

from oxistep import _core
from oxistep.optim import _modes
from oxistep.optim._all_or_nothing import refuse_if_torn, tear
from oxistep.optim._definition import Definition, Rows, define, definition_of
from oxistep.optim._kept import kept_of
from oxistep.optim._native import DropIn
from oxistep.optim._storages import check_storages
from oxistep.optim._telling import TELLS, tell

__all__ = ["LBFGS"]

# torch's class, whatever may be put under its name later
_LBFGS = torch.optim.LBFGS
_HAS_MAXIMIZE = "maximize" in inspect.signature(_LBFGS).parameters  # torch >= 2.12
_is_compiling = torch.compiler.is_compiling
_increment_version = torch._C._increment_version


class LBFGS(DropIn, _LBFGS):
    r"""A quasi-Newton method: it estimates the curvature from the last steps.

    .. math::
        d_t = -H_t g_t, \qquad \theta \leftarrow \theta + t\, d_t

    where :math:`H_t` approximates the inverse Hessian by the last ``history_size`` differences of gradients
    :math:`y` and of parameters :math:`s`; it is applied by the two-loop recursion and never formed. The vector work is
    native: gradients are gathered into one flat vector, and each entry of the history costs two sweeps over memory.

    Args:
        params: tensors or ``(name, tensor)`` pairs; one group only. Those without a gradient count as having zeros.
        lr: length :math:`t` of a step, or the line search's first guess; a number or a tensor of one element
            (default: 1).
        max_iter: the most iterations of one ``step`` (default: 20).
        max_eval: the most calls of the closure in one ``step`` (default: None,
            which is ``max_iter * 5 // 4``).
        tolerance_grad: ``step`` ends where no gradient's absolute value is above this (default: 1e-7).
        tolerance_change: ``step`` ends where loss or parameters change by no more than this (default: 1e-9).
        history_size: how many differences are kept, each as long as all parameters, twice (default: 100).
        line_search_fn: ``"strong_wolfe"`` or None, a fixed step (default: None).
        maximize: ascend instead of descend (default: False; torch >= 2.12).

    State:
        func_evals, n_iter: calls of the closure and iterations so far, integers. All of the state is under the first
            parameter.
        d, prev_flat_grad: the direction and the last gradient, flat vectors as long as all parameters together.
        old_dirs, old_stps: :math:`y` and :math:`s`, lists of at most ``history_size`` such vectors.
        ro, al: :math:`1 / (y \cdot s)` of each pair and the coefficients of the recursion, lists of scalars.
        H_diag, t, prev_loss: scale of the first :math:`H`, length of the last step, last loss.

    Native:
        The step, if all parameters are contiguous CPU tensors of float32, or all of float64 (complex ones count as
        pairs). Otherwise it falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why. With
        ``line_search_fn`` the search itself is torch's function.

    Raises:
        TypeError: if ``params`` holds something other than tensors; in ``step``, if the closure is missing.
        ValueError: if ``torch.optim.LBFGS`` rejects an argument, such as a second parameter group.
        RuntimeError: in ``step``, for a ``line_search_fn`` that is not known, as in torch.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor([-1.5, 2.0], requires_grad=True)
        >>> optimizer = optim.LBFGS([w], line_search_fn="strong_wolfe", max_iter=100)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> w.detach().round(decimals=3)
        tensor([1., 1.])

    Reference:
        Liu, Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
        Nocedal, Wright, "Numerical Optimization", 2006, algorithms 3.5, 3.6 and 7.4.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        _LBFGS.__init__(
            self,
            params,
            lr=lr,
            max_iter=max_iter,
            max_eval=max_eval,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
            history_size=history_size,
            line_search_fn=line_search_fn,
            **({"maximize": maximize} if _HAS_MAXIMIZE or maximize else {}),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Perform a single optimization step.

        Args:
            closure: a function that evaluates the model again and returns the loss. Runs with grad enabled, several
                times: at most ``max_eval``.

        Returns:
            The loss that the first call of ``closure`` returned.
        """
        if _is_compiling():
            return _step_outside_graph(self, closure)
        refuse_if_torn(self)
        if TELLS and type(self) not in kept_of(self).plans:
            kept_of(self).plans[type(self)] = None  # it has no plan; once is enough
            tell(self, definition_of(type(self)).explain)
        if len(self.param_groups) != 1 or not self._params or _torch_because(self) is not None:
            check_storages(self, [(0, p) for p in self._params])
            return _torchs_step(self, closure)
        state = self.state[self._params[0]]  # the closure may look at the counters
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        with torch.enable_grad():
            orig_loss = closure()
        if _torch_because(self) is not None:  # what the closure has made of the parameters
            return _torchs_step(self, _resume(closure, orig_loss))
        try:
            _Run(self, closure, orig_loss).iterate()
        except _core.KernelError as panic:
            raise tear(self, str(panic), self._params) from None
        return orig_loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Finds the parameters again: deepcopy and pickle keep three attributes, and torch's copies cannot step."""
        super().__setstate__(state)
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None

    # torch's own names: its line search calls them.

    def _gather_flat_grad(self) -> Tensor:
        first = self._params[0]
        dtype = first.dtype.to_real() if first.is_complex() else first.dtype
        numel: int = self._numel()  # type: ignore[no-untyped-call]
        flat = torch.empty(numel, dtype=dtype, device="cpu")
        if _core.lbfgs_gather(self._params, flat, bool(self.param_groups[0].get("maximize", False))):
            return flat
        return super()._gather_flat_grad()  # type: ignore[no-untyped-call,no-any-return]

    def _add_grad(self, step_size: Any, update: Tensor) -> None:
        if _is_one_number(step_size) and _core.lbfgs_move(self._params, update, float(step_size)):
            _increment_version(self._params)
        else:
            super()._add_grad(step_size, update)


class _LBFGSDefinition(Definition):
    """All parameters are one vector and take one path."""

    def explain(self, optimizer: Any) -> Rows:
        params = optimizer._params
        reason = _torch_because(optimizer) if params else None
        path = "native" if reason is None else "torch"
        return [(0, i, path, reason or "plain CPU tensors, one flat vector") for i in range(len(params))]


def _torch_because(optimizer: Any) -> str | None:
    """Why a step now would be torch's; None if it is native."""
    if (reason := _modes.because() or definition_of(type(optimizer)).overridden(optimizer)) is not None:
        return reason
    group = optimizer.param_groups[0]
    for key in ("max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size"):
        if not isinstance(group[key], (int, float)):
            return f"{key} is no plain number, torch decides what that means"
    if not _is_one_number(group["lr"]):
        return "lr is no plain number, torch decides what that means"
    params, state = optimizer._params, optimizer.state.get(optimizer._params[0], {})
    if any(p.is_inference() for p in params):
        return "a parameter was made in inference mode"
    if not isinstance(state, dict):
        return "its state is not what a step leaves behind"
    vectors, scalars = [], []
    if state.get("n_iter"):
        try:
            vectors = [state["d"], state["prev_flat_grad"], *state["old_dirs"], *state["old_stps"]]
            scalars = [*state["ro"]]
            float(state["t"]), float(state["H_diag"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            return "its state is not what a step leaves behind"
        if not len(state["old_dirs"]) == len(state["old_stps"]) == len(scalars):
            return "the lists of its state differ in length"
        if not all(isinstance(vector, Tensor) for vector in vectors):
            return "its state is not what a step leaves behind"
        if any(vector.is_inference() for vector in vectors):
            return "its state was made in inference mode"
    return _core.lbfgs_unfit(params, vectors, scalars)


class _Run:
    """One step: the loop of iterations, as torch's goes, on native vector work."""

    def __init__(self, optimizer: LBFGS, closure: Callable[[], Any], orig_loss: Any) -> None:
        self.optimizer = optimizer
        self.closure = closure
        self.group = optimizer.param_groups[0]
        self.sign = -1.0 if self.group.get("maximize", False) else 1.0
        self.loss = self.sign * float(orig_loss)
        self.flat_grad = optimizer._gather_flat_grad()
        self.state = optimizer.state[optimizer._params[0]]

    def iterate(self) -> None:
        group, state, optimizer = self.group, self.state, self.optimizer
        state["func_evals"] += 1
        if self.is_small(self.flat_grad, 1.0, "tolerance_grad"):
            return
        lr = group["lr"]
        lr = lr.squeeze() if isinstance(lr, Tensor) else lr
        max_iter, max_eval = group["max_iter"], group["max_eval"]
        evals, n_iter = 1, 0
        kept: dict[str, Any] = {key: state.get(key) for key in _KEPT}

        while n_iter < max_iter:
            n_iter += 1
            state["n_iter"] += 1
            slope = self.new_direction(kept)
            kept["prev_loss"] = self.loss
            kept["t"] = lr
            if state["n_iter"] == 1:
                inverse: Any = 1.0 / self.flat_grad.new_tensor(_core.lbfgs_sum_abs(self.flat_grad))
                kept["t"] = min(1.0, inverse) * lr
            if slope > -self.rounded(group["tolerance_change"]):
                break

            here = 0
            if group["line_search_fn"] is not None:
                here = self.search(kept, slope, max_eval - evals)
            else:
                optimizer._add_grad(kept["t"], kept["d"])
                if n_iter != max_iter:  # where the last iteration leads is for the next step to find out
                    self.evaluate()
                    here = 1
            evals += here
            state["func_evals"] += here

            if n_iter == max_iter or evals >= max_eval:
                break
            if self.is_small(self.flat_grad, 1.0, "tolerance_grad"):
                break
            if self.is_small(kept["d"], float(kept["t"]), "tolerance_change"):
                break
            if abs(self.loss - kept["prev_loss"]) < group["tolerance_change"]:
                break

        state.update(kept)

    def new_direction(self, kept: dict[str, Any]) -> float:
        """Sets ``d`` from what is known of the curvature; returns its product with the gradient."""
        grad = self.flat_grad
        if self.state["n_iter"] == 1:
            kept.update(d=grad.neg(), old_dirs=[], old_stps=[], ro=[], H_diag=1)
            if kept["prev_flat_grad"] is None:
                kept["prev_flat_grad"] = grad.clone(memory_format=torch.contiguous_format)
            else:
                kept["prev_flat_grad"].copy_(grad)
            return _core.lbfgs_dot(grad, kept["d"])

        old_dirs, old_stps, ro = kept["old_dirs"], kept["old_stps"], kept["ro"]
        history_size = self.group["history_size"]
        y, s, inverse, scale = torch.empty_like(grad), torch.empty_like(grad), grad.new_empty(()), grad.new_empty(())
        if _core.lbfgs_differences(grad, kept["prev_flat_grad"], kept["d"], float(kept["t"]), y, s, inverse, scale):
            if len(old_dirs) == history_size:
                for oldest in (old_dirs, old_stps, ro):
                    oldest.pop(0)
            old_dirs.append(y)
            old_stps.append(s)
            ro.append(inverse)
            kept["H_diag"] = scale
        if "al" not in self.state:
            self.state["al"] = [None] * history_size
        kept["d"] = torch.empty_like(grad)
        return _core.lbfgs_direction(grad, old_dirs, old_stps, ro, float(kept["H_diag"]), self.state["al"], kept["d"])

    def evaluate(self) -> None:
        """Calls the closure: loss and gradient where the parameters are now."""
        with torch.enable_grad():
            loss = self.closure()
        self.loss = self.sign * float(loss)
        self.flat_grad = self.optimizer._gather_flat_grad()

    def search(self, kept: dict[str, Any], slope: float, max_ls: int) -> int:
        """Moves along ``d`` as far as torch's line search finds good; returns how often that called the closure."""
        if self.group["line_search_fn"] != "strong_wolfe":
            raise RuntimeError("only 'strong_wolfe' is supported")
        optimizer: Any = self.optimizer
        closure = torch.enable_grad()(self.closure)
        search: Any = _strong_wolfe
        self.loss, self.flat_grad, kept["t"], evals = search(
            lambda x, t, d: optimizer._directional_evaluate(closure, x, t, d),
            optimizer._clone_param(),
            kept["t"],
            kept["d"],
            self.loss,
            self.flat_grad,
            self.flat_grad.new_tensor(slope),
            max_ls=max_ls,
        )
        optimizer._add_grad(kept["t"], kept["d"])
        return evals  # type: ignore[no-any-return]

    def is_small(self, vector: Tensor, factor: float, tolerance: str) -> bool:
        """Whether no absolute value of ``factor`` times ``vector`` is above a tolerance of the group."""
        return _core.lbfgs_max_abs(vector, factor) <= self.rounded(self.group[tolerance])

    def rounded(self, tolerance: float) -> float:
        """A tolerance in the precision of the vectors, in which torch compares."""
        return c_float(tolerance).value if self.flat_grad.dtype == torch.float32 else tolerance


_KEPT = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss")
"""What a step leaves to the next, in the order in which torch stores it; ``al`` is only scratch space."""


def _torchs_step(optimizer: Any, closure: Callable[[], Any]) -> Any:
    """torch's whole step. If it raises before it has moved a parameter, the state is what it was."""
    params = optimizer._params
    entry = optimizer.state.get(params[0], {}) if params else {}
    before = {k: [*v] if isinstance(v, list) else v for k, v in entry.items()} if isinstance(entry, dict) else None
    versions = [p._version for p in params if not p.is_inference()]
    try:
        return definition_of(type(optimizer)).torchs_step(optimizer, closure)
    except Exception:
        if before is not None and versions == [p._version for p in params if not p.is_inference()]:
            for key, value in before.items():
                if isinstance(value, list) and isinstance(entry.get(key), list):
                    entry[key][:] = value  # the list itself may be somebody's
                else:
                    entry[key] = value
            for key in [key for key in entry if key not in before]:
                del entry[key]
        raise


def _is_one_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _resume(closure: Callable[[], Any], loss: Any) -> Callable[[], Any]:
    """A closure whose first call has been made already, with this loss."""
    first = [loss]
    return lambda: first.pop() if first else closure()


# As torch has it for its own functions: `torch.compiler.disable` imports the compiler at once, which takes as long as
# importing torch.
@_disable_dynamo
def _step_outside_graph(optimizer: LBFGS, closure: Callable[[], Any]) -> Any:
    return optimizer.step(closure)


define(LBFGS, "lbfgs", _LBFGS, lambda *_: {}, kind=_LBFGSDefinition)
