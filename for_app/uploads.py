"""Images that visitors bring: limited in bytes and pixels, and only ever read from where Gradio put them."""

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from PIL import Image

from for_model.data.images import load_image
from for_model.errors import ImageError, UsageError

MAX_UPLOAD = "20mb"  # a file, as `launch` takes it
MAX_UPLOAD_PIXELS = 50_000_000
DECODED_PX = 1024  # what an upload may be scaled down to: no backbone looks at more


def uploaded_image(value: Any, target: int | None = None) -> Image.Image:
    """The image that a visitor uploaded, mode RGB, upright.

    value: Gradio's description of the file, `{"path": ...}`, as an event without `preprocess` or an endpoint gets it.
    target: see `images.load_image`.
    Raises UsageError when there is none, it isn't one that was uploaded here, or it can't be decoded or is too large:
    more than MAX_UPLOAD_PIXELS; files of more than MAX_UPLOAD bytes are refused before they get here.
    """
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not path:
        raise UsageError("no image was uploaded: choose or drop one")
    try:
        place = Path(path).resolve()
        inside = place.is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:  # whoever writes requests by hand may name any file of this machine
        raise UsageError("that image was not uploaded here: upload it first")
    try:
        return load_image(place, target, MAX_UPLOAD_PIXELS)
    except ImageError as error:
        raise UsageError(f"the image can't be used ({error}): choose another") from error
