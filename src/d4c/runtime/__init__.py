"""An exported folder at work, without torch."""

from d4c.runtime.encoder import GraphEncoder, open_encoder
from d4c.runtime.session import Session

__all__ = ["GraphEncoder", "Session", "open_encoder"]
