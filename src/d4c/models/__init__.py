"""CLIP models: many forms in, one canonical form, and its quantized counterpart."""

from d4c.models.clip import Clip, TorchEncoder
from d4c.models.load import load
from d4c.models.quantized import QuantizedClip, sites_of, wrap

__all__ = ["Clip", "QuantizedClip", "TorchEncoder", "load", "sites_of", "wrap"]
