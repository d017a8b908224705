"""Image sets: synthetic, procedural or from a folder."""

from d4c.images.contact_sheet import contact_sheet
from d4c.images.crops import with_crops
from d4c.images.folder import load_image_folder
from d4c.images.image_set import ImageSet
from d4c.images.procedural import PROCEDURES, clamp_valid, procedural_pixels, procedural_set

__all__ = [
    "PROCEDURES",
    "ImageSet",
    "clamp_valid",
    "contact_sheet",
    "load_image_folder",
    "procedural_pixels",
    "procedural_set",
    "with_crops",
]
