"""A local Ray cluster of two workers embeds what one process embeds, to the byte, also when one of them is killed."""

import builtins
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from for_model.errors import ForError, StoreError, UsageError, WeightsError
from for_search.__main__ import main
from for_search.store.changes import file_stamp
from for_search.store.embed import embed
from for_search.store.embedding.ray_workers import RayCluster, _Worker
from tests.helpers.fake_method import FakeMethod, contents, make_images

pytestmark = pytest.mark.cluster


class Mortal(FakeMethod):
    """Kills its process at the second batch, the first time that any process comes there; `marker` tells that."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == 1 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_images(pixels)


class Stopping(RayCluster):
    """Raises after so many of ten shards, as Ctrl-C does."""

    AFTER = 7

    def made(self, *arguments: Any) -> Any:
        for done, shard in enumerate(super().made(*arguments)):
            if done == self.AFTER:
                raise KeyboardInterrupt
            yield shard


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # By default 15: beside other tests, workers would hardly begin. Nor shall they be killed for others' memory.
    os.environ.update(RAY_worker_niceness="0", RAY_memory_monitor_refresh_ms="0")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, about sockets and files that it leaves open
def test_the_store_is_that_of_one_machine(ray: Any, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 40, [3, 17])
    options: dict[str, int] = {"batch_size": 3, "shard_size": 4, "workers": 1}
    embed(dataset, FakeMethod(), tmp_path / "one", **options)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        embed(
            dataset, FakeMethod(), tmp_path / "two", cluster=Stopping(partial(Mortal, tmp_path / "killed")), **options
        )  # type: ignore[arg-type]
    assert (tmp_path / "killed").exists()  # a worker was lost on the way
    report = embed(dataset, FakeMethod(), tmp_path / "two", **options)  # type: ignore[arg-type]
    assert (report.n_images, report.n_skipped, report.resumed_images) == (38, 2, 4 * Stopping.AFTER)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")

    def refused(build: Any, error: type[ForError], line: str, **sizes: Any) -> None:
        with pytest.raises(error, match=line) as caught:
            embed(dataset, FakeMethod(), tmp_path / "never", cluster=RayCluster(build, **sizes), **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    other = partial(FakeMethod, weights_sha256="cd" * 32)
    refused(other, WeightsError, "another method than this machine", n_workers=1)
    refused(FakeMethod, StoreError, "the cluster has 2 CPUs and 0 GPUs, a worker takes 1 and 1", gpus=1)


def test_a_worker_that_sees_other_images_is_found_out(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 3)
    stamps = {record.id: file_stamp(dataset.image_root / record.path) for record in dataset.images}
    worker = _Worker()
    for root, sees in ((dataset.image_root, True), (tmp_path / "elsewhere", False)):
        maker = {"image_root": root, "batch_size": 2, "workers": 1}
        worker.start(FakeMethod, FakeMethod().info, maker, torch.get_num_threads())
        if sees:
            assert len(worker.make(dataset.images, stamps).embeddings) == 3
        else:
            with pytest.raises(StoreError, match=r"sees none of the images under .*elsewhere: mount them there"):
                worker.make(dataset.images, stamps)


def test_without_ray_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("for_search.embed_command.find_spec", lambda _: None)
    make_images(tmp_path / "images", 1)
    options = ["--dataset", "folder", "--root", str(tmp_path / "images"), "--out", str(tmp_path / "store"), "--ray"]
    assert main(["embed", *options]) == 2
    assert "--ray needs the package ray: make install-cluster" in capsys.readouterr().err
    imported = builtins.__import__

    def without_ray(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(UsageError, match="needs the package ray"):
        list(RayCluster(FakeMethod).made([(0, ())], {}, FakeMethod().info, {}))


def test_sizes_that_make_no_sense() -> None:
    for sizes in ({"n_workers": 0}, {"cpus": 0}, {"gpus": -1}):
        with pytest.raises(UsageError, match="take at least one worker"):
            RayCluster(FakeMethod, **sizes)  # type: ignore[arg-type]
