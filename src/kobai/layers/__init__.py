"""Kinds of layers: what their parameters are, and what their calls say about gradients."""

from kobai.layers.capture import Call, Capture, attach, capture

__all__ = ["Call", "Capture", "attach", "capture"]
