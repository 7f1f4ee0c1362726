"""SophiaG."""

from collections.abc import Callable
from typing import Any

from oxistep import rules
from oxistep.rules._source import Source
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._parts import refused

__all__ = ["SophiaG"]


class SophiaG(Optimizer):
    r"""SophiaG: a mean of gradients over an estimate of the curvature, clipped: where that is small, steps of one size.

    .. math::
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        \theta &\leftarrow \theta - \gamma\, \mathrm{clip}\left(\frac{m}{\rho B h + 10^{-15}}, -1, 1\right) \\
        h &\leftarrow \beta_2 h + (1 - \beta_2) g^2 \text{ in update\_hessian()}

    ``update_hessian()`` is called every ten steps or so, with gradients of the loss of labels that the model itself
    draws. As ``sophia_opt.SophiaG``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-4).
        betas: :math:`\beta_1, \beta_2` (default: (0.965, 0.99)).
        rho: :math:`\rho`, the larger the fewer elements are clipped (default: 0.04).
        weight_decay: :math:`\lambda`, decoupled (default: 0.1).
        maximize: ascend instead of descend (default: False).
        capturable: False; True is refused, because steps cannot be captured in CUDA graphs (default: False).
        foreach: a key of the param groups, as in torch; it changes nothing (default: None).
        state_dtype: how to store the states: ``torch.float32`` for half-precision parameters, ``torch.bfloat16``, or
            ``"8bit"`` (default: None).
        weights: how to keep the digits that bfloat16 parameters cannot hold: ``"stochastic"``, ``"kahan"``,
            ``"residual8"``, ``"residual16"`` or ``"master"``; float16 takes ``"kahan"`` and ``"master"`` only
            (default: None, round to nearest).
        seed: seed of the random rounding that ``weights`` and ``state_dtype`` use (default: 0).
        ema: decay of a running average of the parameters, which each step updates (default: None, no average).
        ema_warmup: start the average with small decays, as timm's ``ModelEmaV3`` does (default: False).
        max_grad_norm: clip the norm of all gradients inside the step, without modifying them (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks to sum the norm over, if each rank holds a part of the parameters (default: None).

    State:
        step: steps done, 0-dimensional float32.
        exp_avg, hessian: :math:`m, h`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        ``param_groups[k]["bs"]`` is the :math:`B` of the last step.

    Raises:
        ValueError: for a hyperparameter out of range, in sophia_opt's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.SophiaG([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.update_hessian()
        >>> optimizer.step(bs=1)
        >>> round(w.item(), 6)
        0.89

    Reference:
        Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training", 2023.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 1e-1,
        *,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        state_dtype: Any = None,
        weights: Any = None,
        seed: int = 0,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: Any = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "betas": checked_betas(betas),
                "rho": checked_rate(rho, "rho parameter"),
                "weight_decay": checked_rate(weight_decay, "weight_decay value"),
                "bs": 5120,
                "capturable": refused("capturable", capturable),
                "foreach": foreach,
            },
            maximize=maximize,
            state_dtype=state_dtype,
            weights=weights,
            seed=seed,
            ema=ema,
            ema_warmup=ema_warmup,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            grad_norm_group=grad_norm_group,
        )

    _zoo_not_alone = "its step is told the batch size, and update_hessian reads the gradients"

    def step(self, closure: Callable[[], float] | None = None, bs: int = 5120) -> float | None:  # type: ignore[override]
        """Perform a single optimization step.

        Args:
            closure: a function that evaluates the model again and returns the loss (default: None).
            bs: how many labels a gradient of ``update_hessian`` is the mean of: the batch size, times the length of a
                sequence in language models (default: 5120).

        Returns:
            The loss that ``closure`` returned, else ``None``.
        """
        before = [group.get("bs", bs) for group in self.param_groups]
        for group in self.param_groups:
            group["bs"] = bs
        try:
            return super().step() if closure is None else super().step(closure)
        except BaseException:  # a step that was not taken leaves the groups as they were, too
            for group, earlier in zip(self.param_groups, before, strict=False):
                group["bs"] = earlier
            raise

    # torch must not wrap it for hooks: the step that it calls has them called (with the closure, not with `bs`).
    step.hooked = True  # type: ignore[attr-defined]

    def update_hessian(self) -> None:
        """Takes the gradients as those of the loss of labels that the model drew: their squares go into ``hessian``.

        Parameters and counters stay. Gradients count as they are: ``max_grad_norm`` is for steps.

        Raises:
            RuntimeError: for gradients and states that ``step`` would refuse; nothing was changed.
        """
        from oxistep.rules._torch_step import rows_of, take

        take(self, HESSIAN, rows_of(self, HESSIAN), 1.0, counts=False)

    @staticmethod
    def hessian_update(p: Any, g: Any, s: Any, betas: Any = (0.965, 0.99)) -> Any:
        """The rule of ``update_hessian``."""
        s.hessian = rules.addcmul(s.hessian * betas[1], g, g, 1 - betas[1])
        return p

    @staticmethod
    def update(p: Any, g: Any, s: Any, lr: Any, betas: Any, rho: Any, weight_decay: Any, bs: Any) -> Any:
        p = p * (1 - lr * weight_decay)
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - betas[0])
        return p - lr * rules.clip(s.exp_avg / (rho * bs * s.hessian + 1e-15), -1, 1)


HESSIAN = Source(SophiaG.hessian_update, "SophiaG.update_hessian")
