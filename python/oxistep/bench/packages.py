"""Packages that keep the states of AdamW in 8 bits, and run on the CPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Package:
    """Where a class is, and what its package is called by pip."""

    module: str
    cls: str
    pip: str

    def missing(self) -> str | None:
        """Why it cannot take part, or None."""
        try:
            self.load()
        except ModuleNotFoundError as error:
            return f"{self.pip} is not installed ({error}): make bench PEERS=1 has an environment with it"
        except Exception as error:  # a library of its own that does not load, and what else there may be
            return f"{self.pip} does not import: {type(error).__name__}: {error}"
        return None

    def load(self) -> type[Any]:
        found: type[Any] = getattr(importlib.import_module(self.module), self.cls)
        return found


PACKAGES = {
    "bitsandbytes": Package("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "pytorch_optimizer": Package("pytorch_optimizer", "FlashAdamW", "pytorch_optimizer"),
}
