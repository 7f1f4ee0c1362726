"""The optimizers people use that ``torch.optim`` lacks, each one pass over memory."""

from oxistep.zoo.adabelief import AdaBelief
from oxistep.zoo.adabound import AdaBound
from oxistep.zoo.adamatan2 import AdamAtan2
from oxistep.zoo.adamw import AdamW
from oxistep.zoo.adan import Adan
from oxistep.zoo.adopt import ADOPT
from oxistep.zoo.laprop import LaProp
from oxistep.zoo.lion import Lion
from oxistep.zoo.madgrad import MADGRAD
from oxistep.zoo.nadamw import NAdamW
from oxistep.zoo.rmsproptf import RMSpropTF
from oxistep.zoo.sgdw import SGDW
from oxistep.zoo.signsgd import SignSGD
from oxistep.zoo.sophiag import SophiaG
from oxistep.zoo.tiger import Tiger

__all__ = [
    "ADOPT",
    "AdaBelief",
    "AdaBound",
    "AdamAtan2",
    "AdamW",
    "Adan",
    "LaProp",
    "Lion",
    "MADGRAD",
    "NAdamW",
    "RMSpropTF",
    "SGDW",
    "SignSGD",
    "SophiaG",
    "Tiger",
]
