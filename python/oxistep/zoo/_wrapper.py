"""What the wrappers around other optimizers share: to everybody they are optimizers with the groups of the base."""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer as TorchOptimizer
else:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        TorchOptimizer = object
    else:
        TorchOptimizer = torch.optim.Optimizer

__all__ = ["Wrapper"]

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Wrapper(TorchOptimizer):
    """An optimizer that has another one take the steps.

    ``param_groups``, ``state`` and ``defaults`` are those of the base. What the wrapper keeps of a parameter stands
    beside it, where no base can stumble over it, and in ``state_dict`` among the parameter's states.
    """

    base_optimizer: Any
    """The optimizer that takes the steps."""

    _kept_as: str | None = None
    """What ``state_dict`` calls the tensor that the wrapper keeps of a parameter; None: there is none."""

    def __init__(self, base_optimizer: Any, keys: dict[str, Any]) -> None:
        """Args:
        base_optimizer: any optimizer of oxistep or torch.
        keys: what the wrapper keeps in the param groups.
        """
        if not hasattr(TorchOptimizer, "step"):
            raise ModuleNotFoundError(
                f"oxistep.zoo.{type(self).__name__} needs PyTorch: pip install 'torch>=2.10'",
                name="torch",
            )
        if not isinstance(base_optimizer, TorchOptimizer):
            raise TypeError(
                f"{type(self).__name__} goes around an optimizer, got {type(base_optimizer).__name__}: "
                f"{type(self).__name__}(torch.optim.AdamW(model.parameters()))"
            )
        self._begin(base_optimizer, keys, {})

    def _begin(self, base_optimizer: Any, keys: dict[str, Any], kept: "dict[Tensor, Tensor]") -> None:
        self.base_optimizer, self._keys, self._kept = base_optimizer, keys, kept
        for name in HOOKS:
            setattr(self, name, OrderedDict())
        self._patch_step_function()
        self._complete()

    @property
    def _steps(self) -> Any:
        """The optimizer that takes the steps: the innermost, if wrappers go around wrappers."""
        base = self.base_optimizer
        return base._steps if isinstance(base, Wrapper) else base

    def _dtype_kept(self, p: "Tensor") -> Any:
        """The dtype of the tensor that the wrapper keeps of a parameter."""
        return p.dtype

    def _complete(self) -> None:
        """The keys of the wrapper in groups that came without them."""
        for name, value in self._keys.items():
            self.defaults.setdefault(name, value)
            for group in self.param_groups:
                group.setdefault(name, value)

    # As torch's attributes of these names, which somebody may set.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the base."""
        return self.base_optimizer.param_groups  # type: ignore[no-any-return]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The states of the base."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the base."""
        return self.base_optimizer.defaults  # type: ignore[no-any-return]

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base_optimizer.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # `train()` of a schedule-free base, `last_grad_norm` and what else a base has
        if name.startswith("_") or name == "base_optimizer":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base_optimizer, name)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters to the base.

        Args:
            param_group: ``{"params": tensors}``, and hyperparameters of this group.
        """
        self.base_optimizer.add_param_group(param_group)
        self._complete()

    def state_dict(self) -> dict[str, Any]:
        """That of the base; what the wrapper keeps of a parameter is among its states.

        Returns:
            what ``load_state_dict`` takes.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved: dict[str, Any] = self.base_optimizer.state_dict()
        if self._kept_as is not None and self._kept:
            state = dict(saved["state"])
            for saved_id, p in self._ids(saved):
                if p in self._kept:
                    state[saved_id] = {**state.get(saved_id, {}), self._kept_as: self._kept[p]}
            saved = {**saved, "state": state}
        for after in self._optimizer_state_dict_post_hooks.values():
            changed: Any = after(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Gives the base its states back, and the wrapper what it kept. A state dict of a base alone loads too.

        Args:
            state_dict: what ``state_dict`` of this class, or of a base, returned.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed: Any = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        kept = {}
        state = dict(state_dict["state"])
        for saved_id, p in self._ids(state_dict):
            if self._kept_as in state.get(saved_id, {}):
                entry = dict(state[saved_id])
                kept[p] = entry.pop(self._kept_as).detach().to(device=p.device, dtype=self._dtype_kept(p), copy=True)
                state[saved_id] = entry
                if not entry:
                    del state[saved_id]
        self.base_optimizer.load_state_dict({**state_dict, "state": state})
        self._kept = kept
        self._complete()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _ids(self, state_dict: dict[str, Any]) -> "list[tuple[Any, Tensor]]":
        """The parameters, each with what it is called in a state dict."""
        params = [p for group in self.param_groups for p in group["params"]]
        ids = [saved_id for group in state_dict["param_groups"] for saved_id in group["params"]]
        return list(zip(ids, params, strict=False))

    def __getstate__(self) -> dict[str, Any]:
        return {"base_optimizer": self.base_optimizer, "keys": self._keys, "kept": self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["base_optimizer"], state["keys"], state["kept"])

    def _refuse_release(self) -> None:
        """Refuses a base whose parameters are stepped in backward.

        Raises:
            RuntimeError: if they are.
        """
        kept = getattr(self.base_optimizer, "__dict__", {}).get("_oxistep")
        if getattr(kept, "release", None) is not None:
            raise RuntimeError(
                f"{type(self).__name__} looks at gradients before or after the step of its base, and "
                "step_in_backward(base) has stepped and freed them already; call remove() of what it returned"
            )

    def _was_skipped(self) -> bool:
        """Whether the base skipped its step, because a gradient held NaN or infinity."""
        norm = getattr(self.base_optimizer, "last_grad_norm", None)
        skips = getattr(self.base_optimizer, "skip_nonfinite", False) is True
        return skips and norm is not None and not bool(norm.isfinite())
