"""Pictures and texts to model input, without torch."""

from d4c.inputs.encoder import Encoder
from d4c.inputs.pictures import PICTURE_SUFFIXES, read_pixels
from d4c.inputs.preprocess import Preprocess
from d4c.inputs.tokenizer import Tokenizer

__all__ = ["PICTURE_SUFFIXES", "Encoder", "Preprocess", "Tokenizer", "read_pixels"]
