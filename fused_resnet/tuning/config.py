"""The values that tuning deals in: a tile, a choice, and the error of a table that makes no sense."""

from __future__ import annotations

from dataclasses import asdict, dataclass

ALGORITHMS = ("implicit_gemm", "implicit_gemm_tma", "aten")

_POWERS_OF_TWO = {
    "block_m": (16, 512),
    "block_n": (16, 256),
    "block_k": (16, 256),
    "num_warps": (1, 16),
}
_RANGES = {"num_stages": (1, 8), "group_m": (1, 64)}


class TuningTableError(ValueError):
    """A tuning table that does not parse, or an entry in it that cannot be meant."""


@dataclass(frozen=True)
class TileConfig:
    """What one program of an implicit GEMM computes, and with what.

    `block_m` output pixels x `block_n` filters, `block_k` products a step; `num_warps` warps; `num_stages` steps in
    flight; `group_m` tiles of pixels that share a sweep over the filters.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8

    def __post_init__(self) -> None:
        for name, (least, most) in (_POWERS_OF_TWO | _RANGES).items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be an integer from {least} to {most}, got {value!r}")
            if name in _POWERS_OF_TWO and value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")

    def shared_bytes(self, itemsize: int) -> int:
        """Bytes of shared memory that the operands of all stages take."""
        return (self.block_m + self.block_n) * self.block_k * itemsize * self.num_stages

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """How to run a convolution: `algorithm`, one of ALGORITHMS; its `tile`, None for "aten"; `measured` or reasoned."""

    algorithm: str
    tile: TileConfig | None = None
    measured: bool = False

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}")
        if (self.tile is None) != (self.algorithm == "aten"):
            raise ValueError(f"a tile goes with every algorithm but 'aten', got {self.algorithm!r} and {self.tile}")
