"""Shards made by the workers of a Ray cluster, each of which holds the model. Ray is an optional package.

The run that asks hands out shards, writes what comes back and keeps the notes; workers write nothing. So a store is
made, killed and gone on with as on one machine, and a worker that is lost costs the shards that it had at the time.
"""

import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import ForError, StoreError, UsageError, WeightsError
from for_model.methods.protocol import Method, MethodInfo
from for_search.store.changes import Stamp, file_stamp
from for_search.store.embedding.shard_maker import MadeShard, ShardMaker

Piece = tuple[int, Sequence[ImageRecord]]  # a shard's number and its images

_log = logging.getLogger(__name__)

_AHEAD = 2  # shards that a worker has at once: the next one waits for it, not it for the next one
_ATTEMPTS = 4  # a shard that has cost so many workers isn't tried again, nor are more new workers that can't start
INSTALL = "make install-cluster, or pip install -r requirements-cluster.txt"


@dataclass(frozen=True)
class RayCluster:
    """Where and how workers run.

    build: makes the method in a worker; called there, so that what it names must be there too.
    address: of the cluster; None for the one that this machine belongs to (or that RAY_ADDRESS names), else one that
        is started on this machine and ends with the run.
    n_workers: at most so many; None for as many as the cluster has room for.
    cpus, gpus: that each worker takes; a share of a GPU will do. PyTorch uses a thread a CPU, and on a CPU their number
        shows in the last bits of what it computes.
    """

    build: Callable[[], Method]
    address: str | None = None
    n_workers: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0 or (self.n_workers is not None and self.n_workers < 1):
            raise UsageError(
                f"{self.n_workers} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs: take at least one worker, and "
                "more than 0 CPUs for each"
            )

    def made(
        self, pieces: Sequence[Piece], looked_at: Mapping[ImageId, Stamp], info: MethodInfo, maker: Mapping[str, Any]
    ) -> Generator[tuple[int, MadeShard], None, None]:
        """Make shards, in whichever order they are finished.

        looked_at: image id -> its file as the asking machine sees it.
        info: of the method that workers must come to.
        maker: the fields of `ShardMaker`, without the method.
        Raises UsageError without Ray; StoreError when there is no such cluster, it has no room for a worker, workers
        are lost again and again, or don't see the images; whatever else a worker raises comes through.
        """
        if not pieces:
            return
        with _connected(self.address) as ray:
            yield from _Pool(self, ray, info, maker).run(pieces, looked_at)


class _Worker:
    """What lives in a worker's process."""

    def start(self, build: Callable[[], Method], info: MethodInfo, maker: Mapping[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        method = build()
        if method.info.to_json() != info.to_json():
            raise WeightsError(
                f"the worker on {os.uname().nodename} comes to another method than this machine: give all machines the "
                "same weights and the same version of FOR"
            )
        self._maker = ShardMaker(method, **maker)

    def make(self, records: Sequence[ImageRecord], looked_at: Mapping[ImageId, Stamp]) -> MadeShard:
        root: Path = self._maker.image_root
        seen = [record for record in records if looked_at[record.id].n_bytes]
        if seen and not any(file_stamp(root / record.path).n_bytes for record in seen):
            raise StoreError(
                f"the worker on {os.uname().nodename} sees none of the images under {root}: mount them there on every "
                "machine, or give --root as a URL"
            )
        with self._maker.decoding(records) as images:
            made = self._maker.make(records, images, looked_at)
        return replace(made, embeddings=made.embeddings.astype(np.float16))  # as it will be written; half the way


class _Pool:
    """The workers of one run."""

    def __init__(self, cluster: RayCluster, ray: Any, info: MethodInfo, maker: Mapping[str, Any]) -> None:
        self._cluster, self._ray, self._info, self._maker = cluster, ray, info, maker
        self._actor = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0)(_Worker)
        self._running: dict[Any, tuple[Any, Piece | None]] = {}  # call -> worker, and the piece it makes
        self._workers: list[Any] = []
        self._lost: Counter[int | None] = Counter()  # workers lost, by shard; None for those that never began

    def run(
        self, pieces: Sequence[Piece], looked_at: Mapping[ImageId, Stamp]
    ) -> Generator[tuple[int, MadeShard], None, None]:
        waiting = deque(pieces)
        for _ in range(min(self._room(), len(pieces))):
            self._begin()
        while waiting or any(piece for _, piece in self._running.values()):
            for worker in self._workers:
                load = sum(each is worker and piece is not None for each, piece in self._running.values())
                for _ in range(min(_AHEAD - load, len(waiting))):
                    piece = waiting.popleft()
                    stamps = {record.id: looked_at[record.id] for record in piece[1]}
                    self._running[worker.make.remote(piece[1], stamps)] = (worker, piece)
            [call], _ = self._ray.wait(list(self._running), num_returns=1)
            worker, done = self._running.pop(call)
            try:
                made = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except self._ray.exceptions.RayError as error:
                self._note_loss(worker, done, error)
                if done is not None:
                    waiting.appendleft(done)
            else:
                if done is not None:
                    yield done[0], made

    def _begin(self) -> None:
        """Start a worker; it takes shards at once and makes them when it has the model."""
        worker = self._actor.remote()
        threads = max(1, int(self._cluster.cpus))
        call = worker.start.remote(self._cluster.build, self._info, self._maker, threads)
        self._running[call] = (worker, None)
        self._workers.append(worker)

    def _note_loss(self, worker: Any, piece: Piece | None, error: Exception) -> None:
        """A worker, or what it made, is gone: start another in its place, unless that has happened too often."""
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "No module named" in str(error):
            raise StoreError(
                "a worker of the cluster can't import FOR: install the same version of it on every machine"
            ) from error
        number = None if piece is None else piece[0]
        self._lost[number] += 1
        if self._lost[number] >= _ATTEMPTS:
            what = "workers can't start" if piece is None else f"shard {number} has cost {_ATTEMPTS} workers"
            raise StoreError(f"{what} ({first[:150]}): look at the cluster's logs; finished shards are kept") from error
        # Whatever it is called: killed, out of memory, its machine gone. Where only what it had made is lost, it stays.
        if worker in self._workers and not isinstance(error, self._ray.exceptions.ObjectLostError):
            self._workers.remove(worker)
            self._ray.kill(worker)
            _log.warning("a worker was lost (%s); its shards are done again", first[:150])
            self._begin()

    def _room(self) -> int:
        """How many workers the cluster has room for, at most those that were asked for."""
        found = self._ray.cluster_resources()
        cpus, gpus = found.get("CPU", 0), found.get("GPU", 0)
        room = int(cpus / self._cluster.cpus)
        if self._cluster.gpus:
            room = min(room, int(gpus / self._cluster.gpus))
        if room < 1:
            raise StoreError(
                f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, a worker takes {self._cluster.cpus:g} and "
                f"{self._cluster.gpus:g}: ask for less, or add machines"
            )
        return min(room, self._cluster.n_workers or room)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray's module, connected to a cluster, and disconnected in the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them to its makers
    try:
        import ray
    except ImportError:
        raise UsageError(f"--ray needs the package ray: {INSTALL}") from None
    if ray.is_initialized():  # by whoever calls; it stays as it is
        yield ray
        return
    own: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address=address, include_dashboard=None if address else False, **own)
    except Exception as error:  # Ray raises a bare one for a machine too busy to start
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"no Ray cluster at {address or 'this machine'} ({reason}): check the address") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _cause(error: Any) -> BaseException:
    """What a worker raised: an error of FOR's as it was, in one line; anything else as Ray tells it."""
    return error.cause if isinstance(error.cause, ForError) else error
