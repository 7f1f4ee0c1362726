"""What torch optimizers do when a step or a load goes wrong: see ``oxistep._torn``."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from oxistep._torn import Torn, names_of, text_of

__all__ = ["AllOrNothing"]


class AllOrNothing(torch.optim.Optimizer):
    """An optimizer that refuses to step after one that broke off half-way, and loads a state dict whole or not at all.

    The refusal stands where the plan of the native step would, so that asking for it costs no step anything.
    """

    def _tear(self, cause: str, params: Iterable[Tensor]) -> RuntimeError:
        """Lets no step be taken from now on; returns the error that says why."""
        text = text_of(cause, names_of(self.param_groups, params))
        self.__dict__["_plan"] = Torn(text)
        return RuntimeError(text)

    def _torn(self) -> Torn | None:
        plan = self.__dict__.get("_plan")
        return plan if type(plan) is Torn else None

    def _refuse_if_torn(self) -> None:
        torn = self._torn()
        if torn is not None:
            torn.step()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        torn = self._torn()
        if torn is not None:  # a copy is as torn
            state["_plan"] = torn
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's. A dict that is refused, or fails to load, leaves the optimizer as it was."""
        before: dict[str, Any] = {
            key: self.__dict__[key] for key in ("state", "param_groups", "defaults") if key in self.__dict__
        }
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            self.__dict__.update(before)
            raise
        if self._torn() is not None:
            del self.__dict__["_plan"]
