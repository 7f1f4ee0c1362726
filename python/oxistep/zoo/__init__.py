"""The optimizers people use that ``torch.optim`` lacks, each one pass over memory."""

from oxistep.zoo.adamw_schedule_free import AdamWScheduleFree
from oxistep.zoo.ademamix import AdEMAMix
from oxistep.zoo.lamb import LAMB
from oxistep.zoo.lars import LARS
from oxistep.zoo.lion import Lion
from oxistep.zoo.mars import MARS
from oxistep.zoo.novograd import NovoGrad
from oxistep.zoo.prodigy import Prodigy
from oxistep.zoo.radam_schedule_free import RAdamScheduleFree
from oxistep.zoo.sgd_schedule_free import SGDScheduleFree
from oxistep.zoo.stable_adamw import StableAdamW

__all__ = [
    "AdEMAMix",
    "AdamWScheduleFree",
    "LAMB",
    "LARS",
    "Lion",
    "MARS",
    "NovoGrad",
    "Prodigy",
    "RAdamScheduleFree",
    "SGDScheduleFree",
    "StableAdamW",
]
