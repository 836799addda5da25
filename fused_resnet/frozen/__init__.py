"""What a frozen model is made of; `fused_resnet.freeze` makes it."""

from .graphs import Graphs
from .modules import FrozenBlock, FrozenConv, FrozenStem, SafeRange

__all__ = ["FrozenBlock", "FrozenConv", "FrozenStem", "Graphs", "SafeRange"]
