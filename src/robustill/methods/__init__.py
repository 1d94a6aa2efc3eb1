"""Methods: what the adversary maximises and what the student minimises. Each paper has a file of its own.

`base` defines what a method is and builds the training targets that methods share, `registry` finds one by name.
"""

from __future__ import annotations

from robustill.methods.absld import ABSLD
from robustill.methods.adaad import AdaAD
from robustill.methods.adaiad import AdaIAD
from robustill.methods.adr import ADR
from robustill.methods.akd import AKD
from robustill.methods.ard import ARD
from robustill.methods.at import AT
from robustill.methods.base import Batch, Method, Network, Outcome
from robustill.methods.clean import Clean
from robustill.methods.dgad import DGAD
from robustill.methods.dkl import DKL
from robustill.methods.fair_ard import FairARD
from robustill.methods.hat import HAT
from robustill.methods.iad import IAD
from robustill.methods.iad2 import IAD2
from robustill.methods.igdm import IGDM
from robustill.methods.image_state import ImageState
from robustill.methods.kd import KD
from robustill.methods.kdswa import KDSWA
from robustill.methods.lbgat import LBGAT
from robustill.methods.mart import MART
from robustill.methods.mtard import MTARD
from robustill.methods.peerad import PeerAD
from robustill.methods.rebat import ReBAT
from robustill.methods.registry import METHODS, build_method, method_class, method_options
from robustill.methods.rslad import RSLAD
from robustill.methods.saad import SAAD
from robustill.methods.sgls import SGLS
from robustill.methods.te import TE
from robustill.methods.trades import TRADES

__all__ = [
    "ABSLD",
    "ADR",
    "AKD",
    "ARD",
    "AT",
    "DGAD",
    "DKL",
    "HAT",
    "IAD",
    "IAD2",
    "IGDM",
    "KD",
    "KDSWA",
    "LBGAT",
    "MART",
    "METHODS",
    "MTARD",
    "RSLAD",
    "SAAD",
    "SGLS",
    "TE",
    "TRADES",
    "AdaAD",
    "AdaIAD",
    "Batch",
    "Clean",
    "FairARD",
    "ImageState",
    "Method",
    "Network",
    "Outcome",
    "PeerAD",
    "ReBAT",
    "build_method",
    "method_class",
    "method_options",
]
