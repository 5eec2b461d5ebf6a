"""Images to the square of pixels that a backbone sees."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from for_model.errors import ImageError, UsageError

Channels = tuple[float, float, float]  # one number for each of R, G and B

# for images in 0..1: CLIP's, which most models after it have kept
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
_GREY = (128, 128, 128)


def check_image_size(asked: int | None, own: int, stride: int) -> int:
    """The pixels a side: those asked for, else the model's own.

    asked: pixels a side, or None.
    own: pixels a side that the model was made for.
    stride: pixels a side of a cell.

    Raises UsageError when the stride doesn't divide the size.
    """
    size = own if asked is None else asked
    if size < stride or size % stride:
        raise UsageError(f"image size {size}: expected a multiple of {stride} pixels, at least {stride}")
    return size


def check_pixels(pixels: Tensor, image_size: int) -> None:
    """Raise UsageError when `pixels` isn't a batch [B, 3, image_size, image_size]."""
    expected = (3, image_size, image_size)
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected:
        raise UsageError(
            f"got pixels {list(pixels.shape)}, expected [B, {', '.join(map(str, expected))}]; "
            "prepare images with this backbone's preprocess, or load it with another image size"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded RGB image. Raises ImageError when the image can't be decoded or is empty."""
    if 0 in image.size:
        raise ImageError(f"the image is {image.width} x {image.height} pixels; expected at least 1 x 1")
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"the image can't be decoded ({error})") from error


def pad_to_square(image: Image.Image) -> Image.Image:
    """A decoded RGB image in the top left corner of a grey square. Raises ImageError when it can't be decoded."""
    rgb = to_rgb(image)
    square = Image.new("RGB", (max(rgb.size), max(rgb.size)), _GREY)
    square.paste(rgb)
    return square


def resize_to_square(
    image: Image.Image,
    size: int,
    mean: Channels,
    std: Channels,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Tensor:
    """Resize an image to a square and normalise it: what a backbone takes.

    The whole image is resized, whatever its shape, as in the paper, so that no object at its edge is cropped away.

    image: of any mode; modes other than RGB are converted.
    size: pixels a side.
    mean, std: of the RGB channels, for images in 0..1.
    resample: the interpolation, antialiased; bicubic unless a model was trained with another.

    Returns [3, size, size] float32 on the CPU.
    Raises ImageError when the image can't be decoded or is empty.
    """
    rgb = to_rgb(image).resize((size, size), resample)
    # bytes are moved before they become floats, and then nothing is copied: this runs once an image, in few threads
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous().float().div_(255)  # [3, H, W]
    return pixels.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])
