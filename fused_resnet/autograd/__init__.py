"""Residual blocks and the stem as autograd Functions: they put raw ops in order and keep what the backward needs."""

from .chain import ResidualFunction
from .residual import BlockPlan
from .stem import ConvBnActFunction, StemPlan
from .unit import Geometry

__all__ = ["BlockPlan", "ConvBnActFunction", "Geometry", "ResidualFunction", "StemPlan"]
