"""The heads that come with FOR: which there are, where, and their files' hashes.

Their files are older than the hash that a head's file carries today, and results name them by the hash of all their
bytes, so that they stay as they are: the hash is kept here instead.
"""

from pathlib import Path

from for_model.errors import UsageError, WeightsError
from for_model.files import WEIGHTS_DIR, sha256_file
from for_model.methods.registry import DEFAULT_BACKBONE, HEAD_SUFFIX, METHODS

_SHA256 = {
    "rn-mini-for.safetensors": "b37a11d2fa9264c4c992c6133183f70bfe67969dbccf018d51e11ddba7ee9a3e",
    "rn-mini-for+.safetensors": "291b8e225cac4d233493b6ef9fe25a6480cf16263ede48d8a21ded00e30fad03",
}


def packaged_head(backbone: str, method: str = "for") -> Path:
    """The file of the head that comes with FOR for a backbone and a trained method.

    Raises UsageError when none comes with that backbone, WeightsError when its file has gone.
    """
    path = _packaged_path(backbone, method)
    title = METHODS[method].title
    if path.is_file():
        return path
    if backbone == DEFAULT_BACKBONE:
        raise WeightsError(
            f"{title}: its head for {backbone} is missing from this installation ({path}); "
            "install FOR again, or give the path of a head.safetensors as method"
        )
    raise UsageError(
        f"no head of {title} comes with {backbone}, only with {DEFAULT_BACKBONE}: train one "
        "(`python -m for_model train --help`) and give the path of its head.safetensors"
    )


def packaged_heads(backbone: str) -> list[Path]:
    """The files of all heads that come with FOR for a backbone; most backbones come without."""
    paths = [_packaged_path(backbone, entry.name) for entry in METHODS.values() if entry.trained]
    return [path for path in paths if path.is_file()]


def _packaged_path(backbone: str, method: str) -> Path:
    return WEIGHTS_DIR / f"{backbone.lower()}-{method}{HEAD_SUFFIX}"


def is_packaged(path: Path) -> bool:
    """Whether a file is a head that comes with FOR. Raises WeightsError when it is, and isn't as it was published."""
    if path.parent.resolve() != WEIGHTS_DIR.resolve() or path.name not in _SHA256:
        return False
    if sha256_file(path) != _SHA256[path.name]:
        raise WeightsError(f"{path} is damaged, its hash is another than when it was published: install FOR again")
    return True
