"""The optimizers people use that ``torch.optim`` lacks, each one pass over memory."""

from oxistep.zoo.adabelief import AdaBelief
from oxistep.zoo.adabound import AdaBound
from oxistep.zoo.adamatan2 import AdamAtan2
from oxistep.zoo.adamw import AdamW
from oxistep.zoo.adamwschedulefree import AdamWScheduleFree
from oxistep.zoo.adan import Adan
from oxistep.zoo.ademamix import AdEMAMix
from oxistep.zoo.adopt import ADOPT
from oxistep.zoo.grokfast import Grokfast
from oxistep.zoo.lamb import LAMB
from oxistep.zoo.laprop import LaProp
from oxistep.zoo.lars import LARS
from oxistep.zoo.lion import Lion
from oxistep.zoo.lookahead import Lookahead
from oxistep.zoo.madgrad import MADGRAD
from oxistep.zoo.mars import MARS
from oxistep.zoo.nadamw import NAdamW
from oxistep.zoo.novograd import NovoGrad
from oxistep.zoo.prodigy import Prodigy
from oxistep.zoo.radamschedulefree import RAdamScheduleFree
from oxistep.zoo.rmsproptf import RMSpropTF
from oxistep.zoo.sam import SAM
from oxistep.zoo.sgdschedulefree import SGDScheduleFree
from oxistep.zoo.sgdw import SGDW
from oxistep.zoo.signsgd import SignSGD
from oxistep.zoo.sophiag import SophiaG
from oxistep.zoo.stableadamw import StableAdamW
from oxistep.zoo.tiger import Tiger

__all__ = [
    "ADOPT",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdamAtan2",
    "AdamW",
    "AdamWScheduleFree",
    "Adan",
    "Grokfast",
    "LAMB",
    "LARS",
    "LaProp",
    "Lion",
    "Lookahead",
    "MADGRAD",
    "MARS",
    "NAdamW",
    "NovoGrad",
    "Prodigy",
    "RAdamScheduleFree",
    "RMSpropTF",
    "SAM",
    "SGDScheduleFree",
    "SGDW",
    "SignSGD",
    "SophiaG",
    "StableAdamW",
    "Tiger",
]
