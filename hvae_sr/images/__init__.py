"""Reading, checking and writing images.

Everything that enters the package passes through `load_image` or `read_photo` (files, PIL images) or `to_tensor`
(arrays, tensors), and leaves through `to_pil` and `save_image`. Inside, an image is float32 [3, H, W] in [0, 1].
"""

from .arrays import LUMA, row_strips, to_pil, uncertainty_to_pil
from .errors import ImageError, PathLike
from .finding import IMAGE_SUFFIXES, find_images
from .metadata import METADATA_KEY
from .photo import Photo, WideImage
from .preparing import prepare_images, prepare_photos, to_tensor
from .reading import MAX_PIXELS, ImageInput, image_size, list_frames, load_image, open_file, read_metadata, read_photo
from .writing import LOSSY_SUFFIXES, SUFFIXES, WIDE_SUFFIXES, save_image

__all__ = [
    "IMAGE_SUFFIXES",
    "LOSSY_SUFFIXES",
    "LUMA",
    "MAX_PIXELS",
    "METADATA_KEY",
    "SUFFIXES",
    "WIDE_SUFFIXES",
    "ImageError",
    "ImageInput",
    "PathLike",
    "Photo",
    "WideImage",
    "find_images",
    "image_size",
    "list_frames",
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
