"""A figure of how the compact engine's time and memory grow with the images, beside the exact scan's.

  for n in 10000 100000 1000000; do
    python -m tests.benchmarks.scale --images $n --embeddings 8 --dim 256 --queries 40 --out $n.json
  done
  python -m tests.benchmarks.growth_figure docs/scale.png 10000.json 100000.json 1000000.json

It draws what `scale` has measured: the processor's milliseconds a query, the index's resident memory, and the build's
seconds.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from for_model.files import write_bytes

# title, unit, and for each line its name and its field
PANELS = (
    (
        "a query for 50 images",
        "ms of a processor",
        (
            ("scan", "one_scan_cpu_ms"),
            ("compact, after a scan", "one_compact_cpu_ms"),
            ("compact", "alone_compact_cpu_ms"),
        ),
    ),
    ("memory", "GB", (("on disk", "index_gb"), ("resident", "resident_gb"), ("build, at most", "peak_gb_above_base"))),
    ("build", "seconds of a processor", (("build", "build_cpu_seconds"),)),
)


def draw(results: Sequence[dict[str, Any]]) -> bytes:
    """A PNG with a panel for each of PANELS, over the number of images, both axes logarithmic.

    results: what `scale --out` wrote, of one shape of embeddings.
    """
    from matplotlib.figure import Figure

    ordered = sorted(results, key=lambda result: int(result["images"]))
    images = [result["images"] for result in ordered]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for panel, (title, unit, lines) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name, field in lines:
            panel.plot(images, [result[field] for result in ordered], marker="o", label=name)
        panel.set(title=title, xlabel="images", ylabel=unit, xscale="log", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(f"{ordered[0]['embeddings']} embeddings of {ordered[0]['dim']} an image", fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path, help="the PNG to write")
    parser.add_argument("results", type=Path, nargs="+", help="what `scale --out` wrote")
    arguments = parser.parse_args(argv)
    write_bytes(arguments.figure, draw([json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
