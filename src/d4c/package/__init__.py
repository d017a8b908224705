"""The stage that freezes a quantized model to integers, and the way back."""

from d4c.package.card import model_card
from d4c.package.freeze import freeze
from d4c.package.size import stored_bytes
from d4c.package.thaw import thaw, thaw_integers

__all__ = ["freeze", "model_card", "stored_bytes", "thaw", "thaw_integers"]
