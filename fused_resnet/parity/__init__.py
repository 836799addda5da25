"""Does this machine's fused model give what torchvision's gives?  For a user's CI: `python -m fused_resnet.parity`.

Both models get the same parameters and statistics and the same images.  At every stage our error against float64 must
be one that rounding explains: what rounding does to torchvision's model in the same dtype is sampled, by running it
with every operation's result disturbed (`rounding`), and ours is held to that spread (`rule`).  Where torchvision is
absent its place is taken by our own model through the `reference` backend, which computes step by step as torchvision
does, and the verdict says so.
"""

from .check import check_model, check_modules
from .report import Report, junit
from .rounding import Rounding, sampled
from .rule import Row, compare, table
from .stages import randomize, stage_outputs

__all__ = [
    "Report",
    "Rounding",
    "Row",
    "check_model",
    "check_modules",
    "compare",
    "junit",
    "randomize",
    "sampled",
    "stage_outputs",
    "table",
]
