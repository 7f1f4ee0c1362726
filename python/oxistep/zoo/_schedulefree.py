"""What the schedule-free optimizers share: the average's weights, and the two points between which parameters move."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import checked_betas
from oxistep.zoo._group_counts import GroupCounts

__all__ = ["ScheduleFree", "begin", "checked_momentum", "checked_weights", "warmed_up", "weight_of"]


_NOT_IN_TRAIN_MODE = (
    "Optimizer was not in train mode when step is called. Call optimizer.train() before training, and "
    "optimizer.eval() before the parameters are tested or saved."
)


class ScheduleFree(GroupCounts):
    """``train()``, ``eval()``, and a step that is taken in train mode alone."""

    def train(self) -> None:
        """Moves the parameters to the point at which gradients are taken: call it before training.

        What is in train mode already stays where it is.
        """
        self._zoo_turn(True)

    def eval(self) -> None:
        """Moves the parameters to the average, which is what is to be tested and saved.

        What is in eval mode already stays where it is.
        """
        self._zoo_turn(False)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Perform a single optimization step.

        Raises:
            RuntimeError: in eval mode. (Not where nothing can move, with learning rates and gradients of zero: so
                distributed checkpoints have the states made.)
        """
        if self.param_groups[0]["train_mode"]:
            for group in self.param_groups:
                if not group["train_mode"]:  # it was added since
                    self._zoo_turn(True)
                    break
        elif not self._zoo_moves_nothing(*args, **kwargs):
            raise RuntimeError(_NOT_IN_TRAIN_MODE)
        return super().step(*args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]

    def _zoo_refuse(self, group: dict[str, Any]) -> None:
        """Called before a parameter is stepped in backward.

        Raises:
            RuntimeError: in eval mode.
        """
        if not group["train_mode"]:
            raise RuntimeError(_NOT_IN_TRAIN_MODE)

    def _zoo_turn(self, train: bool) -> None:
        groups = [group for group in self.param_groups if bool(group["train_mode"]) != train]
        if not groups:
            return
        self._zoo_refuse_in_averaged("train" if train else "eval")
        weights = {id(group): _weight(group, train) for group in groups}
        for group, p, state in self._zoo_entries():
            if id(group) in weights and "z" in state:
                self._zoo_lerp(p, state["z"], weights[id(group)])
        for group in groups:
            group["train_mode"] = train

    def _zoo_moves_nothing(self, *args: Any, **kwargs: Any) -> bool:
        if any(argument is not None for argument in kwargs.values()) or any(callable(argument) for argument in args):
            return False  # a closure
        rates = (group["lr"] for group in self.param_groups)
        return not any(callable(lr) or float(lr) != 0 for lr in rates) and self._zoo_is_zero(*args)


def _weight(group: dict[str, Any], train: bool) -> float:
    """How far parameters go towards ``z``: from the average to where gradients are taken, or back."""
    momentum = float(group["momentum"] if "momentum" in group else group["betas"][0])
    return 1 - momentum if train else 1 - 1 / momentum


def begin(**defaults: Any) -> dict[str, Any]:
    """The hyperparameters of a schedule-free optimizer, and the numbers that its groups begin with."""
    return {**defaults, "k": 0, "train_mode": False, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}


def warmed_up(s: Any, lr: Any, warmup_steps: Any) -> Any:
    """The learning rate, which grows in the first steps of the group."""
    k = s.group.get("k", 0)
    return lr * rules.where(k < warmup_steps, (k + 1) / warmup_steps, 1.0)


def weight_of(s: Any, lr: Any, r: Any, power: Any) -> Any:
    """The weight that the average gives to this step; counts it in the group.

    Args:
        s: the states.
        lr: the learning rate of this step.
        r: steps count with their number to this power.
        power: and with the largest learning rate so far to this one.
    """
    k = s.group.get("k", 0)
    lr_max = rules.maximum(lr, s.group.get("lr_max", -1.0))
    weight = (k + 1) ** r * lr_max**power
    weight_sum = s.group.get("weight_sum", 0.0) + weight
    s.group.get("scheduled_lr", 0.0)
    s.group.k, s.group.lr_max, s.group.weight_sum, s.group.scheduled_lr = k + 1, lr_max, weight_sum, lr
    return rules.where(weight_sum != 0, weight / weight_sum, 0.0)


def checked_momentum(momentum: Any) -> Any:
    """The momentum, by which ``eval()`` divides.

    Raises:
        ValueError: if it is not between 0 and 1.
    """
    if isinstance(momentum, (int, float)) and not 0 < momentum < 1:
        raise ValueError(f"Momentum must be between 0 and 1 exclusive: {momentum}")
    return momentum


def checked_weights(betas: Any) -> Any:
    """The weights of means, of which the first is the momentum.

    Raises:
        ValueError: if they are out of range.
    """
    checked_momentum(betas[0])
    return checked_betas(betas)
