"""Benchmark commands, each `python -m benchmarks.NAME`.

Inference: inference, layers, roofline, complexity, kernels.
Training: training, traffic, memory, convergence, degradation.
"""
