"""Does this machine's fused model give what torchvision's gives?  For a user's CI: `python -m fused_resnet.parity`.

Both models get the same parameters and statistics and the same image, and both are held against float64: at every stage
our error may be at most twice torchvision's in the same dtype, plus a rounding floor.  Where torchvision is absent its
place is taken by our own model through the `reference` backend, which computes step by step as torchvision does.
"""

from .check import Report, check_model, randomize, stage_outputs
from .errors import Row, compare, table

__all__ = ["Report", "Row", "check_model", "compare", "randomize", "stage_outputs", "table"]
