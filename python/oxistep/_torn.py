"""What is left of an optimizer when a step broke off after its first write.

That takes a defect in a kernel or, for Muon, which works in several rounds, an operation of torch's that fails between
two of them. From then on the optimizer refuses to step, until ``load_state_dict`` has replaced its states. This module
knows nothing of torch.
"""

from typing import Any

__all__ = ["Torn", "text_of"]


class Torn:
    """Stands where the native plan of an optimizer stood, and refuses to step."""

    def __init__(self, text: str) -> None:
        self.text = text

    def step(self, *_: Any) -> None:
        """Refuses.

        Raises:
            RuntimeError: always, with what happened and the remedy.
        """
        raise RuntimeError(f"this optimizer takes no step: {self.text}")


def text_of(cause: str, names: str) -> str:
    """What happened, to which parameters, and the remedy."""
    return (
        f"{cause}, and may have left half written or not updated: {names or 'nothing that has a name'}, with their "
        "states. Load the parameters and then, with load_state_dict, the optimizer from a checkpoint; until then this "
        "optimizer refuses to step"
    )
