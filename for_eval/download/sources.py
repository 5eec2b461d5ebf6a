"""Where the datasets are published: addresses, sizes, checksums, counts and licences.

Sizes and SHA-256 of COCO's archives are those that TensorFlow Datasets keeps in
`tensorflow_datasets/url_checksums/coco.txt`, of LVIS's in `tensorflow_datasets/object_detection/lvis/checksums.tsv`
(github.com/tensorflow/datasets). Counts: COCO's from Table 3 of Liu et al., arXiv 1809.02165; LVIS's from its download
page, lvisdataset.org, and TensorFlow Datasets' catalogue; nuImages's from the devkit and from the log of a public
conversion, github.com/tensorturtle/yolov8-on-nuimages.
"""

from dataclasses import dataclass
from typing import Literal

Part = Literal["annotations", "images"]
PARTS: tuple[Part, ...] = ("annotations", "images")


@dataclass(frozen=True)
class Archive:
    """A zip file to download.

    url: its address.
    n_bytes: its size.
    sha256: of the whole file; "" where none is published, then its size and the CRC of each file in it are all that is
        checked.
    part: whether it holds annotations or images.
    splits: which of the dataset's splits need it.
    holds: what is unpacked from it into the dataset's folder: files, or one folder that ends in `/`. Other files that
        the archive has are not unpacked.
    n_files: how many files that makes.
    """

    url: str
    n_bytes: int
    sha256: str
    part: Part
    splits: tuple[str, ...]
    holds: tuple[str, ...]
    n_files: int

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class PublishedSplit:
    """A split as published.

    name: of the split.
    images: how many.
    annotations: how many; None where the number isn't published.
    """

    name: str
    images: int
    annotations: int | None


@dataclass(frozen=True)
class Source:
    """A dataset: who publishes it where, and what its folder must hold.

    layout: how its annotations are read.
    categories: how many; of nuImages, object classes.
    archives: empty for a dataset that only a registered user may download; then `steps` tell how.
    """

    name: str
    title: str
    page: str
    licence: str
    layout: Literal["coco", "lvis", "nuimages"]
    splits: tuple[PublishedSplit, ...]
    categories: int
    archives: tuple[Archive, ...] = ()
    steps: tuple[str, ...] = ()


_COCO = "http://images.cocodataset.org"  # its certificate is for another host; the checksums stand in for it
_LVIS = "https://dl.fbaipublicfiles.com/LVIS"
_COCO_LICENCE = "annotations CC BY 4.0; images under the terms of Flickr, each with a licence of its own"


def _images(folder: str, n_files: int, n_bytes: int, sha256: str, splits: tuple[str, ...] | None = None) -> Archive:
    return Archive(
        f"{_COCO}/zips/{folder}.zip", n_bytes, sha256, "images", splits or (folder,), (f"{folder}/",), n_files
    )


def _coco_annotations(year: str, n_bytes: int, sha256: str) -> Archive:
    splits = (f"train{year}", f"val{year}")
    files = tuple(f"annotations/instances_{split}.json" for split in splits)
    url = f"{_COCO}/annotations/annotations_trainval{year}.zip"
    return Archive(url, n_bytes, sha256, "annotations", splits, files, len(files))


def _lvis_annotations(split: str, n_bytes: int, sha256: str) -> Archive:
    file = f"lvis_v1_{split}.json"
    return Archive(f"{_LVIS}/{file}.zip", n_bytes, sha256, "annotations", (split,), (file,), 1)


_TRAIN2017 = (118_287, 19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929")
_VAL2017 = (5_000, 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05")

_ALL = (
    Source(
        name="coco",
        title="COCO 2017",
        page="https://cocodataset.org/#download",
        licence=_COCO_LICENCE,
        layout="coco",
        splits=(PublishedSplit("train2017", 118_287, 860_001), PublishedSplit("val2017", 5_000, 36_781)),
        categories=80,
        archives=(
            _coco_annotations("2017", 252_907_541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
            _images("val2017", *_VAL2017),
            _images("train2017", *_TRAIN2017),
        ),
    ),
    Source(
        name="coco2014",
        title="COCO 2014",
        page="https://cocodataset.org/#download",
        licence=_COCO_LICENCE,
        layout="coco",
        splits=(PublishedSplit("train2014", 82_783, 604_907), PublishedSplit("val2014", 40_504, 291_875)),
        categories=80,
        archives=(
            _coco_annotations("2014", 252_872_794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
            _images(
                "val2014", 40_504, 6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"
            ),
            _images(
                "train2014", 82_783, 13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"
            ),
        ),
    ),
    Source(
        name="lvis",
        title="LVIS v1",
        page="https://www.lvisdataset.org/dataset",
        licence=f"annotations CC BY 4.0; the images are COCO 2017's: {_COCO_LICENCE.partition('; ')[2]}",
        layout="lvis",
        splits=(PublishedSplit("train", 100_170, 1_270_141), PublishedSplit("val", 19_809, 244_707)),
        categories=1_203,
        archives=(
            _lvis_annotations("val", 64_026_968, "5cae9a3c79aadb667550c2b5dcf7f4d86e059a41ec91ef690225b667e28e9ba5"),
            _lvis_annotations("train", 350_264_821, "334a4caa374030a7817cf050364525e910f7960f9b6968cef47cffbf3893f8ba"),
            _images("val2017", *_VAL2017, splits=("val",)),
            _images("train2017", *_TRAIN2017, splits=("train", "val")),
        ),
        steps=(
            "LVIS's images are COCO 2017's, 15,000 of its val split out of train2017: with a folder that has them as "
            "--root, only the annotations are fetched.",
        ),
    ),
    Source(
        name="nuimages",
        title="nuImages v1.0",
        page="https://www.nuscenes.org/nuimages#download",
        licence="CC BY-NC-SA 4.0 and the terms of use of nuscenes.org: not for commercial use",
        layout="nuimages",
        splits=(
            PublishedSplit("train", 67_279, 557_715),
            PublishedSplit("val", 16_445, 136_074),
            PublishedSplit("mini", 50, None),
        ),
        categories=23,
        steps=(
            "It can't be fetched without an account: register at the page above, then download",
            "  nuimages-v1.0-all-metadata.tgz   0.6 GB, the tables of train, val and test",
            "  nuimages-v1.0-all-samples.tgz    16 GB, the annotated images (the sweeps aren't needed)",
            "  nuimages-v1.0-mini.tgz           for --splits mini alone",
            "and unpack each into the folder: tar -xzf FILE -C ROOT. Then run this command again to check them.",
        ),
    ),
)

SOURCES: dict[str, Source] = {source.name: source for source in _ALL}
