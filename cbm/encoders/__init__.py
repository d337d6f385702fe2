"""Frozen encoders of images (and phrases), made by ``create_encoder``."""

from cbm.encoders.factory import create_encoder, load_encoder
from cbm.encoders.image_only import ImageEncoder
from cbm.encoders.open_clip import ClipEncoder

__all__ = ["ClipEncoder", "ImageEncoder", "create_encoder", "load_encoder"]
