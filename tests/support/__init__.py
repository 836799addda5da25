"""What tests share: cases, judges, the emulated kernels, and how processes are started and watched."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
