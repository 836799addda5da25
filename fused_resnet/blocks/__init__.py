"""The residual blocks, and what stands before and after them: they own parameters and choose ops."""

from .residual import BasicBlock, Bottleneck, OptionAShortcut, conv1x1, conv3x3, conv_norm_act, small_reason

__all__ = ["BasicBlock", "Bottleneck", "OptionAShortcut", "conv1x1", "conv3x3", "conv_norm_act", "small_reason"]
