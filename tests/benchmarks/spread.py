"""What a Ray cluster costs and brings on one machine: `python -m tests.benchmarks.spread`.

Draws scenes, embeds them by RN-mini in one process of one thread, then by two workers of one CPU each on a cluster that
is started for it, and compares the stores byte by byte. Prints seconds on the clock and seconds of CPU of each; those
of the cluster include its daemons and the loading of FOR and the model in each worker. Ends with an error if the stores
differ.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from for_model.data.miniscenes.scenes import write_scenes
from for_model.data.registry import load_dataset
from for_model.methods.build import build_method
from for_search.store.embed import embed
from for_search.store.embedding.ray_workers import RayCluster
from tests.helpers.fake_method import contents


def cpu_seconds() -> float:
    """Of this process and all that have come from it and are alive, by Linux's /proc."""
    children, spent = defaultdict(list), {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(path.parent.name)
        children[int(fields[1])].append(pid)
        spent[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # with children that have ended
    total, todo = 0.0, [os.getpid()]
    while todo:
        pid = todo.pop()
        total += spent.get(pid, 0)
        todo += children[pid]
    return total


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="how many (default 2,000)")
    arguments = parser.parse_args(argv)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    import ray

    build = partial(build_method, "cluster-clip", "RN-mini", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", {"val": arguments.images})
        dataset, method = load_dataset("miniscenes", root / "scenes"), build()
        torch.set_num_threads(1)
        began, cpu = time.perf_counter(), cpu_seconds()
        embed(dataset, method, root / "one", shard_size=64)
        print(f"one process: {time.perf_counter() - began:.1f} s, {cpu_seconds() - cpu:.1f} s of CPU", flush=True)
        began, cpu = time.perf_counter(), cpu_seconds()
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
        print(f"the cluster's start: {time.perf_counter() - began:.1f} s", flush=True)
        embed(dataset, method, root / "two", shard_size=64, cluster=RayCluster(build))
        print(f"two workers: {time.perf_counter() - began:.1f} s, {cpu_seconds() - cpu:.1f} s of CPU, start included")
        ray.shutdown()
        same = contents(root / "one") == contents(root / "two")
        print(f"the stores are {'equal to the byte' if same else 'NOT equal'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
