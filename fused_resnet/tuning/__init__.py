"""Which algorithm and which tile a convolution gets: measured tables, or a documented default.

`lookup` is pure: it reads a JSON table (once) and computes, and never times, compiles or touches a GPU, so it may be
called while a CUDA graph is being captured.  Tables are written by `python -m fused_resnet.tuner` on the GPU at hand;
none is shipped for hardware on which nothing was measured, and there `heuristics.default` answers.
"""

from .config import ALGORITHMS, Choice, TileConfig, TuningTableError
from .tables import forced, lookup, table_path

__all__ = ["ALGORITHMS", "Choice", "TileConfig", "TuningTableError", "forced", "lookup", "table_path"]
