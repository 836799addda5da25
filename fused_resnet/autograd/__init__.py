"""Residual blocks and the stem as autograd Functions: they put raw ops in order and keep what the backward needs."""

from .chain import ResidualFunction
from .residual import BlockPlan
from .stem import ConvBnActFunction, StemPlan
from .unit import Geometry

# One Function for both blocks: a plan says which, and a chain may hold several of either.
BasicBlockFunction = BottleneckFunction = ResidualFunction

__all__ = [
    "BasicBlockFunction",
    "BlockPlan",
    "BottleneckFunction",
    "ConvBnActFunction",
    "Geometry",
    "ResidualFunction",
    "StemPlan",
]
