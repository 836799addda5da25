"""What measures the choices that `fused_resnet.tuning` looks up: `python -m fused_resnet.tuner`."""
