"""Benchmark commands: `python -m benchmarks.inference`, `.layers`, `.roofline`, `.complexity` and `.kernels`."""
