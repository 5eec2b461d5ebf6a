"""Which rows the tables have: the paper's, on its own datasets, on MiniScenes and on Flickr8k, and our own of FOR+.

A row is a method as it is, or a training with some settings of the suite's config changed, for one or more seeds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import for_model
from for_eval.leaderboard.columns import LABELS
from for_eval.metrics.retrieval import GROUPS
from for_model.files import sha256_json
from for_model.methods.registry import METHODS
from for_model.training.config import VERSION, TrainConfig, load_config

# Of a table's scores, the headings of their columns and where a result has them.
MAP_50 = {f"{group} mAP@50": ("scores", group, "map") for group in GROUPS}
LABELLING = {
    f"{setting.upper()} {heading}": ("multilabel", setting, key)
    for setting in ("gzsl", "zsl")
    for heading, key in ((f"F1@{LABELS}", "f1"), ("mAP", "map"))
}
_CONFIGS = Path(for_model.__file__).parent / "configs"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    label: what the first columns say.
    method: one that isn't trained; None for a training.
    settings: of the training, `section.key=value` each, where they differ from the config.
    backbone: the method's, None for the suite's.
    config: the training's config; None for the suite's.
    """

    label: tuple[str, ...]
    method: str | None = None
    settings: tuple[str, ...] = ()
    backbone: str | None = None
    config: Path | None = None


@dataclass(frozen=True)
class Table:
    """title: with the paper's number.  paper: the paper's tables that it repeats.  columns: headings of the labels.
    seeds: trainings a row, if not told; in Table 5 each draws other images as well.
    scores: what is in its columns, a score's name -> where a result has it.
    """

    title: str
    paper: tuple[int, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: int = 1
    scores: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MAP_50)


@dataclass(frozen=True)
class Suite:
    """The tables of one dataset.

    split: what is scored.  config: the training that rows change settings of, and whose backbone methods run on.
    tables: by name.  protocols: in which ways the dataset is scored, `evaluate.RankingProtocol`.
    folder: of another dataset that this one may lie in too.
    fetched: whether `python -m for_eval fetch` knows the dataset.
    """

    dataset: str
    split: str
    config: Path
    tables: Mapping[str, Table]
    protocols: tuple[str, ...] = ("all",)
    folder: str = ""
    fetched: bool = True

    def training(self, row: Row, seed: int, root: Path | None = None) -> TrainConfig:
        """What a trained row is trained by. root: the dataset's folder, None for a built-in one."""
        place = [] if root is None else [f"data.root={root}"]
        return load_config(row.config or self.config, [*row.settings, *place, f"seed={seed}", f"data.fold={seed}"])

    def key(self, row: Row, seed: int) -> str:
        """What tells a row's results from others, the same for all rows of the suite that are made in the same way."""
        if row.method is not None:
            backbone = "" if row.backbone is None else f"_{row.backbone.replace('/', '-')}"
            return row.method.replace(":", "-") + backbone
        config = self.training(row, 0)  # seed and fold 0 are the default
        return f"{config.method}_{sha256_json([config.changes(), VERSION])[:10]}_seed{seed}"

    def result_name(self, row: Row, seed: int, protocol: str) -> str:
        """The name of the file of a row's result, without its ending: the key, and the protocol if it isn't `all`."""
        return self.key(row, seed) + ("" if protocol == "all" else f"_{protocol}")


_TITLES = {name: entry.title for name, entry in METHODS.items()}
_SUP, _PL = "loss.pse=0.0", "loss.sup=0.0"


def _main(cells: int, clusters: tuple[int, int], queries: tuple[int, int], tuned: bool, seeds: int = 1) -> Table:
    """cells: K.  clusters: N of Cluster-CLIP.  queries: of FOR, the second its default.  tuned: Table 2's rows too."""
    fewer, default = (str(n) for n in queries)
    rows = (
        Row((_TITLES["clip"], "1", "no", "no"), "clip"),
        Row((_TITLES["dense-clip"], str(cells), "no", "no"), "dense-clip"),
        *(Row((_TITLES["cluster-clip"], str(n), "no", "no"), f"cluster-clip:{n}") for n in clusters),
    )
    if tuned:
        rows += (
            Row((_TITLES["ft-clip"], "1", "yes", "yes"), settings=("head.kind=ft-clip",)),
            Row((_TITLES["ft-dense-clip"], str(cells), "yes", "yes"), settings=("head.kind=ft-dense-clip",)),
        )
    rows += (
        Row((_TITLES["for"], default, "yes", "no"), settings=(_SUP,)),
        Row((_TITLES["for"], default, "no", "yes"), settings=(_PL,)),
        Row((_TITLES["for"], fewer, "yes", "yes"), settings=(f"head.queries={fewer}",)),
        Row((_TITLES["for"], default, "yes", "yes")),
    )
    title = "Tables 1 and 2: FOR beside what it is compared with" if tuned else "Table 1: FOR beside its baselines"
    columns = ("method", "embeddings an image", "labels", "pseudo-labels")
    return Table(title, (1, 2) if tuned else (1,), columns, rows, seeds)


def _vocabulary(cluster: str, names: str, without_novel: str) -> Table:
    return Table(
        "Table 3: the vocabulary of the pseudo-labels",
        (3,),
        ("method", "pseudo-labels from"),
        (
            Row((_TITLES["cluster-clip"], ""), cluster),
            Row((_TITLES["for"], "none"), settings=(_SUP,)),
            Row((_TITLES["for"], without_novel), settings=("pseudo_labels.without_novel=true",)),
            Row((_TITLES["for"], names)),
        ),
    )


def _ablations(queries: tuple[int, ...], folds: int, projections: bool = True) -> dict[str, Table]:
    """Tables 4 to 7, which the paper has for COCO.

    queries: N of each row of Table 6.
    folds: seeds of Table 5, each of which draws other labelled images.
    projections: whether the backbone's pool has q, k, v and c; of another, the values are trained or not.
    """
    frozen_parts: tuple[tuple[str, str], ...] = (("none", "none"), ("v, c", "vo"), ("q, k, v, c", "qkvo"))
    if not projections:
        frozen_parts = (("none", "none"), ("v, c", "qkvo"))
    return {
        "freezing": Table(
            "Table 4: the projections that stay CLIP's",
            (4,),
            ("frozen", "losses", "decoder layers"),
            tuple(
                Row((frozen, losses, str(layers)), settings=(f"head.freeze={freeze}", f"head.layers={layers}", *more))
                for losses, layers, more in (("labels", 0, (_SUP,)), ("both", 0, ()), ("both", 2, ()))
                for frozen, freeze in frozen_parts
            ),
        ),
        "labelled": Table(
            "Table 5: the share of the images that is labelled",
            (5,),
            ("losses", "labelled"),
            tuple(
                Row((losses, f"{100 * share:g}%"), settings=(f"data.labelled={share}", *more))
                for losses, more in (("labels", (_SUP,)), ("both", ()))
                for share in (0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
            ),
            seeds=folds,
        ),
        "queries": Table(
            "Table 6: the number of queries",
            (6,),
            ("queries",),
            tuple(Row((str(n),), settings=(f"head.queries={n}",)) for n in queries),
        ),
        "layers": Table(
            "Table 7: the number of decoder layers",
            (7,),
            ("decoder layers",),
            tuple(Row((str(n),), settings=(f"head.layers={n}",)) for n in (0, 1, 2, 3)),
        ),
    }


def _baselines(*others: Row) -> Table:
    """Models published with their weights, each at its own image size.

    Left out of the paper's: VSRN and PCME, which no library that FOR uses carries, and the detectors of Table 9 that
    need region proposals.
    """
    return Table(
        "Tables 1 and 9: other dual encoders",
        (1, 9) if others else (1,),
        ("method", "backbone", "embeddings an image"),
        (
            Row((_TITLES["coca"], "ViT-L-14", "1"), "coca", backbone="coca_ViT-L-14"),
            Row((_TITLES["blip2"], "ViT-g-14", "32"), "blip2", backbone="Salesforce/blip2-itm-vit-g-coco"),
            *others,
        ),
    )


def _owl(method: str, backbone: str, size: str, cells: int) -> Row:
    return Row((_TITLES[method], size, str(cells)), method, backbone=f"google/{backbone}")


_DETECTORS = (
    _owl("owlvit", "owlvit-base-patch16", "ViT-B-16", 2304),
    _owl("owlvit", "owlvit-large-patch14", "ViT-L-14", 3600),
    _owl("owlv2", "owlv2-base-patch16-finetuned", "ViT-B-16", 3600),
    _owl("owlv2", "owlv2-large-patch14-finetuned", "ViT-L-14", 5184),
)


def _labelling() -> Table:
    """Table 10's rows of CLIP's kind; the others' code and weights are theirs."""
    return Table(
        "Table 10: labelling images",
        (10,),
        ("method", "embeddings an image"),
        (
            Row((_TITLES["clip"], "1"), "clip"),
            Row((_TITLES["ft-clip"], "1"), settings=("head.kind=ft-clip",)),
            Row((_TITLES["for"], "50")),
        ),
        scores=LABELLING,
    )


_PLUS_COLUMNS = ("method", "embeddings an image", "objective", "labels", "other names")
_TEACHER = "teacher"


def _plus_row(config: Path, n: int, *settings: str, labels: str = "yes", names: str = _TEACHER) -> Row:
    """A training of FOR+ with N embeddings. labels, names: what the row says that it learns from."""
    label = (_TITLES["for+"], str(n), "ranking", labels, names)
    return Row(label, settings=(f"head.queries={n}", *settings), config=config)


def _plus(config: Path, cells: int, captions: bool = False, longer: bool = False) -> dict[str, Table]:
    """FOR+ (ours, not the paper's): beside what it is compared with, and what it is made of.

    config: of FOR+ of 8 embeddings.
    cells: K.
    captions: whether the training images have captions, whose nouns can be labels too.
    longer: whether six passes over the images were found to be better on dev.
    """
    mirrored, mirrored_names = "data.mirrored=true", "teacher, mirror images too"
    long = _plus_row(config, 8, mirrored, "optimizer.epochs=6", names=f"{mirrored_names}, six passes")
    nouns = _plus_row(config, 8, "data.nouns=8", labels="yes, and nouns of captions")
    set_dense = Row(
        (_TITLES["ft-dense-clip"], str(cells), "set", "yes", "pseudo-labels"), settings=("head.kind=ft-dense-clip",)
    )
    ranked_dense = Row(
        (_TITLES["ft-dense-clip"], str(cells), "ranking", "yes", _TEACHER),
        settings=("head.kind=ft-dense-clip",),
        config=config,
    )
    return {
        "plus": Table(
            "FOR+ (ours) beside FOR and its baselines",
            (),
            _PLUS_COLUMNS,
            (
                *(Row((_TITLES["cluster-clip"], str(n), "", "no", "no"), f"cluster-clip:{n}") for n in (8, 12)),
                set_dense,
                Row((_TITLES["for"], "8", "set", "yes", "pseudo-labels"), settings=("head.queries=8",)),
                _plus_row(config, 8),
                _plus_row(config, 8, mirrored, names=mirrored_names),
                *([long] if longer else []),
                *([nouns] if captions else []),
                _plus_row(config, 12),
                _plus_row(config, 8, "pseudo_labels.without_novel=true", names="teacher without the novel names"),
            ),
            seeds=3,
        ),
        "parts": Table(
            "What FOR+ (ours) is made of",
            (),
            _PLUS_COLUMNS,
            (
                _plus_row(config, 8, _SUP, names="no"),
                _plus_row(config, 8, _PL, labels="no"),
                *(_plus_row(config, n) for n in (4, 8, 12, 25)),
                ranked_dense,
            ),
        ),
    }


def _literal() -> Table:
    """What the settings of the loss that depart from Table 8 bring, beside those of Table 8."""
    return Table(
        "Table 8's own settings of the loss, beside the adapted ones",
        (),
        ("no-object weight w", "scale of the cosines"),
        (
            Row(("0.1", "CLIP's own"), settings=("loss.no_object_weight=0.1", "loss.scale=1.0")),
            Row(("0", "half of CLIP's own")),
        ),
    )


def _captions(config: Path) -> Table:
    """Labels from boxes, and from the nouns of captions."""
    return Table(
        "Labels from captions (ours)",
        (),
        ("method", "labels from"),
        (
            Row((_TITLES["for+"], "boxes"), config=config),
            Row((_TITLES["for+"], "captions"), settings=("data.labels=captions",), config=config),
        ),
    )


_IN21K = ("ImageNet-21K", "ImageNet-21K but the novel names")
_IN21K_TENTH = ("every tenth name of ImageNet-21K", "every tenth name of ImageNet-21K but the novel names")

SUITES: dict[str, Suite] = {
    suite.dataset: suite
    for suite in (
        Suite(
            "miniscenes",
            "val",
            _CONFIGS / "for-miniscenes.toml",
            {
                "main": _main(25, (4, 8), (4, 8), tuned=True, seeds=3),
                "vocabulary": _vocabulary("cluster-clip:8", "236 nouns", "236 nouns but the novel 17"),
                **_ablations((2, 4, 8, 16), folds=1),
                **_plus(_CONFIGS / "for-plus-miniscenes.toml", 25, longer=True),
                "literal": _literal(),
            },
        ),
        Suite(
            "flickr8k",
            "val",
            _CONFIGS / "for-flickr8k.toml",
            {
                "main": _main(49, (4, 8), (4, 8), tuned=True, seeds=3),
                "vocabulary": _vocabulary("cluster-clip:8", *_IN21K_TENTH),
                **_ablations((2, 4, 8, 16), folds=1, projections=False),
                **_plus(_CONFIGS / "for-plus-flickr8k.toml", 49, captions=True),
                "captions": _captions(_CONFIGS / "for-plus-flickr8k.toml"),
            },
            fetched=False,
        ),
        Suite(
            "coco",
            "val2017",
            _CONFIGS / "for-coco.toml",
            {
                "main": _main(196, (25, 50), (25, 50), tuned=True),
                "vocabulary": _vocabulary("cluster-clip:50", *_IN21K),
                **_ablations((5, 10, 25, 50), folds=5),
                "baselines": _baselines(*_DETECTORS),
            },
        ),
        Suite("coco2014", "val2014", _CONFIGS / "for-coco2014.toml", {"labelling": _labelling()}),
        Suite(
            "lvis",
            "val",
            _CONFIGS / "for-lvis.toml",
            {
                "main": _main(196, (25, 50), (25, 50), tuned=True),
                "vocabulary": _vocabulary("cluster-clip:50", *_IN21K),
                "baselines": _baselines(),
            },
            protocols=("all", "federated"),
            folder="coco",  # LVIS's images are COCO's
        ),
        Suite(
            "nuimages",
            "val",
            _CONFIGS / "for-nuimages.toml",
            {"main": _main(576, (25, 50), (25, 50), tuned=False), "baselines": _baselines()},
        ),
    )
}


def tables_command(dataset: str, name: str) -> str:
    """The command that makes a row of a dataset's tables again, in place of the one that is there.

    dataset: a suite's.  name: of the row's result, as `Suite.result_name` gives it.
    A name that no table has any more gives the command for all tables.
    """
    suite = SUITES.get(dataset)
    if suite is None:
        return "python -m for_eval tables --accept"
    seed = re.search(r"_seed(\d+)", name)
    for table_name, table in suite.tables.items():
        names = [
            suite.result_name(row, int(seed[1]) if seed else 0, each) for row in table.rows for each in suite.protocols
        ]
        if name in names:
            return f"python -m for_eval tables --dataset {dataset} --only {table_name} --accept"
    return f"python -m for_eval tables --dataset {dataset} --accept"
