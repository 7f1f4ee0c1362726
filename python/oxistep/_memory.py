"""``oxistep.memory``: what an optimizer and its parameters take in memory, and what other settings would take."""

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["GroupMemory", "Memory", "OtherSetting", "in_words", "memory"]


@dataclass(frozen=True)
class GroupMemory:
    """What one param group takes, in bytes."""

    group: int
    """Its place in ``param_groups``."""
    elements: int
    """How many numbers its parameters have."""
    parameters: int
    gradients: int
    """When backward is done; with :func:`oxistep.step_in_backward` of the largest parameter alone."""
    states: int
    residuals: int
    """What ``weights=`` keeps beside the parameters."""
    averages: int
    """Running averages of the parameters."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.states + self.residuals + self.averages


@dataclass(frozen=True)
class OtherSetting:
    """What everything would take under a setting, in bytes."""

    setting: str
    """As it is written in the call of the constructor, ``"none"`` for none; or ``"step_in_backward(optimizer)"``, with
    the settings that there are."""
    is_now: bool
    """Whether it is what the optimizer has."""
    states: int
    residuals: int
    total: int
    """With parameters, gradients and averages."""


@dataclass(frozen=True)
class Memory:
    """What :func:`memory` returns; ``print`` shows it as a table.

    Example:
        >>> import torch, oxistep
        >>> w = torch.zeros(1000, 1000, requires_grad=True)
        >>> print(oxistep.memory(oxistep.optim.SGD([w], momentum=0.9)).total)
        12000000
    """

    optimizer: str
    """The class."""
    groups: tuple[GroupMemory, ...]
    gradients: int
    """As in each group; with :func:`oxistep.step_in_backward` of the largest parameter of all."""
    steps_in_backward: bool
    """Whether gradients are freed one by one."""
    is_estimate: bool
    """Whether there are parameters that have no states yet, whose bytes are what a first step will make."""
    settings: tuple[OtherSetting, ...]
    """What other settings would take, and the one that there is; empty for optimizers that are not oxistep's."""

    @property
    def parameters(self) -> int:
        """Bytes of all parameters."""
        return sum(group.parameters for group in self.groups)

    @property
    def states(self) -> int:
        """Bytes of all states."""
        return sum(group.states for group in self.groups)

    @property
    def residuals(self) -> int:
        """Bytes of what stands beside the parameters."""
        return sum(group.residuals for group in self.groups)

    @property
    def averages(self) -> int:
        """Bytes of the parameters' running averages."""
        return sum(group.averages for group in self.groups)

    @property
    def total(self) -> int:
        """All bytes."""
        return self.parameters + self.gradients + self.states + self.residuals + self.averages

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts and lists, for JSON.

        Returns:
            dict: the fields, and ``"total"``.
        """
        return asdict(self) | {"total": self.total}

    def __str__(self) -> str:
        from oxistep.diagnostics._table import table

        kinds = ["parameters", "gradients", "states"] + [k for k in ("residuals", "averages") if getattr(self, k)]
        rows = [
            [str(group.group), f"{group.elements:,}", *(in_words(getattr(group, kind)) for kind in (*kinds, "total"))]
            for group in self.groups
        ]
        if len(self.groups) != 1:
            elements = sum(group.elements for group in self.groups)
            rows.append(["all", f"{elements:,}", *(in_words(getattr(self, kind)) for kind in (*kinds, "total"))])
        notes = ["states estimated"] * self.is_estimate + ["steps in backward"] * self.steps_in_backward
        title = f"{self.optimizer}: {in_words(self.total)}" + (f" ({', '.join(notes)})" if notes else "")
        text = table(title, ["group", "elements", *kinds, "total"], rows)
        if len(self.settings) > 1:
            columns = ["setting", "states", "residuals", "total"]
            others = [
                [
                    one.setting + (" (as it is)" if one.is_now else ""),
                    *(in_words(getattr(one, column)) for column in columns[1:]),
                ]
                for one in self.settings
            ]
            text += "\n\n" + table("with other settings", columns, others, left=["setting"])
        return text


def memory(optimizer: Any) -> Memory:
    """Tells what an optimizer and its parameters take in memory, and what other settings would take. Changes nothing.

    States that are there are counted; what a first step will make is estimated. Gradients are counted as they are when
    backward is done. Of a DTensor this rank's shard counts. Activations, and what else a model holds, are not in it.

    Args:
        optimizer: an optimizer of ``oxistep.optim``, ``oxistep.zoo`` or a rule, or what wraps one, as for
            :func:`oxistep.explain`; of ``torch.optim`` too, of which only what is there is counted.

    Returns:
        Memory: bytes by group and kind, and by setting; ``print`` shows it as a table.

    Raises:
        TypeError: if ``optimizer`` is no torch optimizer and wraps none.

    Example:
        >>> import torch, oxistep
        >>> w = torch.zeros(1000, 1000, requires_grad=True)
        >>> found = oxistep.memory(oxistep.optim.AdamW([w]))
        >>> found.parameters, found.gradients, found.states, found.is_estimate
        (4000000, 4000000, 8000004, True)
        >>> {one.setting: one.total for one in found.settings}["state_dtype='8bit'"]
        10031260
    """
    import torch

    from oxistep._explain import unwrapped
    from oxistep.optim._native import DropIn
    from oxistep.optim._release import release_of
    from oxistep.optim._sizes import (
        Setting,
        Sizes,
        bytes_of_average,
        bytes_of_gradient,
        bytes_of_tensor,
        default_state_dtype,
        kept_now,
        settings_for,
    )

    wrapper, optimizer = optimizer, unwrapped(optimizer, DropIn, torch.optim.Optimizer)
    if optimizer is None:
        raise TypeError(
            "memory: expected an optimizer of oxistep.optim or torch.optim, or what wraps one, got "
            f"{type(wrapper).__name__}"
        )
    sizes = Sizes(optimizer) if isinstance(optimizer, DropIn) else None
    kept = optimizer.__dict__.get("_oxistep")
    now = Setting(None, None) if kept is None else Setting(kept.state_dtype, kept.weights)
    in_backward = isinstance(optimizer, DropIn) and release_of(optimizer) is not None
    groups, is_estimate, largest = [], False, 0
    for g, group in enumerate(optimizer.param_groups):
        states = residuals = 0
        gradients = [bytes_of_gradient(p) for p in group["params"]]
        for p in group["params"]:
            found = kept_now(optimizer, p)
            if found is None and sizes is not None and sizes.will_have(p):
                found = sizes.under(g, p, now)
                is_estimate |= found != (0, 0)
            states, residuals = (a + b for a, b in zip((states, residuals), found or (0, 0), strict=True))
        largest = max(largest, *gradients, 0)
        groups.append(
            GroupMemory(
                group=g,
                elements=sum(getattr(p, "_local_tensor", p).numel() for p in group["params"]),
                parameters=sum(map(bytes_of_tensor, group["params"])),
                gradients=max(gradients, default=0) if in_backward else sum(gradients),
                states=states,
                residuals=residuals,
                averages=sum(bytes_of_average(optimizer, p) for p in group["params"]),
            )
        )
    told = Memory(
        optimizer=type(optimizer).__name__,
        groups=tuple(groups),
        gradients=largest if in_backward else sum(group.gradients for group in groups),
        steps_in_backward=in_backward,
        is_estimate=is_estimate,
        settings=(),
    )
    if sizes is None:
        return told
    rest = told.parameters + told.gradients + told.averages
    settings, default = [], default_state_dtype(optimizer)
    for setting in settings_for(optimizer):
        each = [
            sizes.under(g, p, setting)
            for g, group in enumerate(optimizer.param_groups)
            for p in group["params"]
            if sizes.will_have(p)
        ]
        states, residuals = sum(s for s, _ in each), sum(r for _, r in each)
        settings.append(
            OtherSetting(_written(setting, default), setting == now, states, residuals, rest + states + residuals)
        )
    if sizes.has_single_steps and not in_backward:
        total = told.total - told.gradients + largest
        settings.append(OtherSetting("step_in_backward(optimizer)", False, told.states, told.residuals, total))
    return Memory(**{**vars(told), "settings": tuple(settings)})


def _written(setting: Any, default: Any) -> str:
    """A setting as it is written in a call: what is not its constructor's default."""
    words = [f"weights={setting.weights!r}"] if setting.weights is not None else []
    if setting.state_dtype != default:
        words.append(f"state_dtype={setting.state_dtype!r}")
    return ", ".join(words) or "none"


def in_words(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
