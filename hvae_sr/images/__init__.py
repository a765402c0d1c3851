"""Reading, checking and writing images.

Everything that enters the package passes through `load_image` or `read_photo` (files, PIL images) or `to_tensor`
(arrays, tensors), and leaves through `to_pil` and `save_image`. Inside, an image is float32 [3, H, W] in [0, 1].
"""

from .arrays import LUMA, prepare_images, prepare_photos, row_strips, to_pil, to_tensor, uncertainty_to_pil
from .finding import IMAGE_SUFFIXES, find_images
from .reading import (
    MAX_PIXELS,
    ImageError,
    ImageInput,
    PathLike,
    Photo,
    count_frames,
    load_image,
    open_file,
    read_metadata,
    read_photo,
)
from .writing import LOSSY_SUFFIXES, METADATA_KEY, SUFFIXES, save_image

__all__ = [
    "IMAGE_SUFFIXES",
    "LOSSY_SUFFIXES",
    "LUMA",
    "MAX_PIXELS",
    "METADATA_KEY",
    "SUFFIXES",
    "ImageError",
    "ImageInput",
    "PathLike",
    "Photo",
    "count_frames",
    "find_images",
    "load_image",
    "prepare_images",
    "prepare_photos",
    "open_file",
    "read_metadata",
    "read_photo",
    "row_strips",
    "save_image",
    "to_pil",
    "to_tensor",
    "uncertainty_to_pil",
]
