"""Benchmark commands, each `python -m benchmarks.NAME`.

Inference: inference, layers, roofline, complexity, kernels.
Training: training, traffic, memory, convergence, degradation.
On a GPU, all of it in one go: gpu; its results as tables and pictures: report.
"""
