"""The optimizers people use that ``torch.optim`` lacks, each one pass over memory."""

from oxistep.zoo.lion import Lion

__all__ = ["Lion"]
