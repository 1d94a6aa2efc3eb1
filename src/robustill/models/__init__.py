"""Models: networks by name, [B,C,H,W] in [0,1] to logits [B,K], and networks loaded by specification."""

from robustill.models.layers import ImageSize, Normalize
from robustill.models.registry import MODELS, ModelEntry, build

__all__ = ["MODELS", "ImageSize", "ModelEntry", "Normalize", "build"]
