"""Residual blocks and the stem as autograd Functions: they put raw ops in order and keep what the backward needs."""

from .chain import ResidualFunction
from .residual import BlockPlan, Geometry
from .stem import ConvBnActFunction, StemPlan

__all__ = ["BlockPlan", "ConvBnActFunction", "Geometry", "ResidualFunction", "StemPlan"]
