"""The two-branch training of FOR (section 3.3): L = gamma_sup * L_sup + gamma_pse * L_pse, on a frozen CLIP.

A run folder holds `config.json`, `log.jsonl` and `log.csv` (a line an epoch), `checkpoint.safetensors` while it runs,
and `head.safetensors` once it is done. Killed at any moment and started again, it goes on from the last checkpoint, and
ends with the same weights as an uninterrupted run on the same machine.
"""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from for_model.backbones.protocol import ImageTextBackbone
from for_model.backbones.registry import load_backbone
from for_model.data.captions import captions_path, labels_from_captions, read_captions
from for_model.data.dataset import Dataset
from for_model.data.registry import load_dataset
from for_model.errors import DataError, ForError, UsageError
from for_model.heads.cluster import ClusterHead
from for_model.heads.for_plus import ForPlusHead
from for_model.methods.clip_method import ClipMethod
from for_model.methods.head_files import make_head, write_head
from for_model.training.checkpoint import restore_checkpoint, save_checkpoint
from for_model.training.config import TrainConfig
from for_model.training.distributed import World, join_world, local_device
from for_model.training.features import Rows, open_features
from for_model.training.losses.objectives import RankingObjective, SetObjective, TrainingObjective
from for_model.training.run_folder import claim_folder, hold_lock, write_log
from for_model.training.targets import Targets

log = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 60.0  # between two checkpoints, and so what a kill can lose
_SUMS = ("loss", "sup", "pse", "images")  # of an epoch so far


class Training:
    """One training, its state and its files. Made and run by `train`."""

    def __init__(
        self, config: TrainConfig, out: Path, dataset: Dataset, backbone: ImageTextBackbone, world: World
    ) -> None:
        self.config, self.out, self.backbone, self.world = config, out, backbone, world
        device = self.device = backbone.device
        if not world.first:
            world.wait()  # the first keeps the feature maps and the pseudo-labels, the others find them
        kinds = (False, True) if config.data.mirrored else (False,)
        self.views = [
            open_features(dataset, self.backbone, config.features.cache_gib, mirrored=mirrored) for mirrored in kinds
        ]
        cluster = ClipMethod(self.backbone, ClusterHead(min(config.pseudo_labels.clusters, self.backbone.n_cells)))
        self.targets = Targets(config, dataset, self.views, cluster)
        if world.first:
            world.wait()
        torch.manual_seed(config.seed)
        self.head = make_head(config.head, self.backbone.pool).to(device)
        if self.targets.surveys:
            self.head.fit_to(self.targets.surveys[0].means)
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in self.head.named_parameters() if parameter.requires_grad
        }
        limit = self.head.n_embeddings(self.backbone.n_cells)
        self.objective: TrainingObjective
        if config.loss.objective == "ranking":
            self.objective = RankingObjective(config, self.targets)
        else:
            self.objective = SetObjective(config, self.targets, backbone, limit)
        self.parameters |= self.objective.parameters
        settings = config.optimizer
        kind = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
        self.optimizer = kind(
            self.parameters.values(),
            settings.learning_rate,
            (settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.autocast = _precision(config, device)
        if self.targets.pseudo is not None and world.first:
            log.info(self.targets.pseudo.described(limit))
        # An epoch is as many steps as all images make, however few of them can be learnt from: the rows of a table
        # with fewer labels are trained for as long.
        self.steps_per_epoch = math.ceil(len(dataset.images) / settings.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step = 0
        self._saved = time.monotonic()
        self.sums = dict.fromkeys(_SUMS, 0.0)
        self._checkpoint = out / "checkpoint.safetensors"

    def run(self) -> Iterator[dict[str, Any]]:
        """Train to the end; yields a line for each epoch that this call finishes."""
        self._restore()
        if self.step:
            log.info("going on after step %d of %d", self.step, self.total_steps)
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc=self.config.method, unit="step",
            disable=None if self.world.first else True,
        )  # fmt: skip
        self.head.train()
        with bar:
            while self.step < self.total_steps:
                line = self._run_epoch(bar)
                self.world.wait()
                if self.world.first:
                    yield line
        if self.world.first:
            write_head(
                self.out / "head.safetensors",
                self.head,
                self.config.head,
                self.config.method,
                self.backbone,
                self.config.to_json(),
            )
            self._checkpoint.unlink(missing_ok=True)

    def _run_epoch(self, bar: "tqdm[Any]") -> dict[str, Any]:
        """The steps up to the next epoch's start, then its line in the log."""
        epoch = self.step // self.steps_per_epoch
        started = time.monotonic()
        images_before = self.sums["images"]
        rate = self.config.optimizer.learning_rate
        for view, rows, X in self._batches(epoch):
            rate = self._set_rate()
            self._learn(view, rows, X)
            self.step += 1
            bar.update()
            done = self.step % self.steps_per_epoch or self.steps_per_epoch
            bar.set_postfix(epoch=epoch + 1, loss=f"{self.sums['loss'] / done:.3f}", refresh=False)
            if self.step % self.steps_per_epoch:
                self._save_by_the_clock()
        seconds = time.monotonic() - started
        means = {key: round(self.sums[key] / self.steps_per_epoch, 5) for key in ("loss", "sup", "pse")}
        line = {
            "epoch": epoch + 1,
            "of": self.config.optimizer.epochs,
            **means,
            "learning_rate": rate,
            "images": int(self.sums["images"]),
            "skipped": len(self.views[0].skipped),
            "seconds": round(seconds, 2),
            "images_per_second": round((self.sums["images"] - images_before) / seconds, 1),
        }
        self.sums = dict.fromkeys(_SUMS, 0.0)
        if self.world.first:
            write_log(self.out, line)
        self._save_by_the_clock()
        return line

    def _batches(self, epoch: int) -> Iterator[tuple[int, Rows, Tensor]]:
        """What this process is to learn from in the rest of an epoch: of each batch its view, its rows and their X."""
        order = self._order(epoch)
        chosen = np.random.default_rng([self.config.seed, epoch, 3]).integers(len(self.views), size=len(order)).tolist()
        rest = range(self.step % self.steps_per_epoch, len(order))
        streams = [
            view.batches([order[i][self.world.rank :: self.world.size] for i in rest if chosen[i] == number])
            for number, view in enumerate(self.views)
        ]
        for i in rest:
            yield chosen[i], *next(streams[chosen[i]])

    def _order(self, epoch: int) -> list[Rows]:
        """The batches of an epoch, the same for every process: permutations of the rows that can be learnt from."""
        usable = self.views[0].usable
        useful = usable if self.config.loss.pse else usable & self.targets.labelled
        pool = np.flatnonzero(useful)
        if not len(pool):
            raise DataError("no image can be learnt from: none is both usable and labelled")
        rng = np.random.default_rng([self.config.seed, epoch])
        count, size = len(useful), self.config.optimizer.batch_size
        order = np.concatenate([rng.permutation(pool) for _ in range(math.ceil(count / len(pool)))])[:count]
        return [order[start : start + size] for start in range(0, count, size)]

    def _set_rate(self) -> float:
        settings = self.config.optimizer
        rate = settings.learning_rate * min(1.0, (self.step + 1) / max(1, settings.warmup_steps))
        if settings.schedule == "linear":
            rate *= 1 - self.step / self.total_steps
        elif self.step / self.steps_per_epoch >= settings.drop_epoch:
            rate *= settings.drop_factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _learn(self, view: int, rows: Rows, X: Tensor) -> None:
        """One step on this process's part of a batch; the gradient is that of the whole batch on every process."""
        torch.manual_seed(_seed(self.config.seed, self.step, self.world.rank))  # of the dropout
        labelled = np.flatnonzero(self.targets.labelled[rows])
        counts = self.world.sum_(torch.tensor([len(rows), len(labelled)], dtype=torch.float64, device=self.device))
        n_images, n_labelled = counts.tolist()
        Y = self._embed(view, rows, X)
        sup = pse = 0.0 * Y.sum()
        if self.config.loss.sup and n_labelled:
            part = Y if len(labelled) == len(rows) else Y[torch.from_numpy(labelled).to(self.device)]
            over = n_labelled if self.config.loss.sup_mean == "labelled" else n_images
            sup = self.objective.on_labels(part, rows[labelled], self.step) * len(labelled) / over
        if self.config.loss.pse and n_images:
            pse = self.objective.on_unlabelled(Y, rows, self.step) * len(rows) / n_images
        loss = self.config.loss.sup * sup + self.config.loss.pse * pse
        self.optimizer.zero_grad()
        loss.backward()
        values = self.world.sum_(torch.stack([loss, sup, pse]).detach().double()).tolist()
        if not all(map(math.isfinite, values)):
            raise ForError(f"the loss is not finite at step {self.step + 1}: lower optimizer.learning_rate")
        self._share_gradients()
        longest = self.config.optimizer.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), longest))
        if not math.isfinite(norm):
            raise ForError(f"the gradient is not finite at step {self.step + 1}: lower optimizer.learning_rate")
        self.optimizer.step()
        for key, value in zip(_SUMS, (*values, n_images), strict=True):
            self.sums[key] += value

    def _embed(self, view: int, rows: Rows, X: Tensor) -> Tensor:
        """Y: [b, N, Co] of some images; X: [b, K, Ce], their feature maps in a view."""
        kept = {}
        frozen = self.targets.surveys[view].frozen if self.targets.surveys else None
        if frozen is not None and isinstance(self.head, ForPlusHead):
            kept = {"frozen": frozen.of(rows, self.device)}
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            Y: Tensor = self.head(X, self.backbone.pool, **kept)
        return Y

    def _share_gradients(self) -> None:
        if self.world.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters.values()]
        flat = self.world.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(self.parameters.values(), parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _save_by_the_clock(self) -> None:
        if self.world.first and time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
            self._save()
            self._saved = time.monotonic()

    def _save(self) -> None:
        save_checkpoint(self._checkpoint, self.parameters, self.optimizer, {"step": self.step, "sums": self.sums})

    def _restore(self) -> None:
        progress = restore_checkpoint(self._checkpoint, self.parameters, self.optimizer)
        if progress is not None:
            self.step, self.sums = progress["step"], progress["sums"]


def train(config: TrainConfig, out: Path, device: str | None = None) -> Iterator[dict[str, Any]]:
    """Train a head into the folder `out`, or go on with a training that was begun there. Yields a line an epoch.

    device: None for CUDA where there is one, else the CPU. Under `torchrun` every process calls this; the first one
    yields the lines and writes the files.
    Raises UsageError for settings that make no sense or a folder that holds something else, DataError for a dataset
    that can't be read or has nothing to learn from, WeightsError when the backbone's weights can't be had, ForError
    when the loss or the gradient is no longer finite.
    """
    target = local_device(device)
    world = join_world(target)
    try:
        if world.size > 1 and config.loss.objective == "ranking":
            raise UsageError(
                f"loss.objective=ranking compares the images of a batch with one another, and {world.size} processes "
                "would share the batch out: start it without torchrun"
            )
        dataset = load_training_data(config)  # before the backbone, whose weights may have to be fetched first
        backbone = load_backbone(config.backbone, config.weights or None, config.image_size or None, target)
        claim_folder(config, out, backbone, world)
        if (out / "head.safetensors").exists():
            log.info("%s is there already: nothing to train", out / "head.safetensors")
            return
        with hold_lock(out, world):
            yield from Training(config, out, dataset, backbone, world).run()
    finally:
        world.close()


def load_training_data(config: TrainConfig) -> Dataset:
    """The images and labels that a training is told to use. Raises DataError, also for missing images."""
    data = config.data
    root = Path(data.root).expanduser() if data.root else None
    dataset = load_dataset(data.dataset, root, data.split, root_option="data.root=FOLDER")
    if data.labels == "captions":
        dataset = labels_from_captions(dataset, read_captions(captions_path(dataset)))
    if data.images:
        dataset = replace(dataset, images=dataset.images[: data.images])
    if not data.allow_missing:
        dataset.check_files("data.allow_missing=true trains without them")
    return dataset


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def _precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to; None for float32 throughout."""
    if config.precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if fast else None
    return torch.bfloat16 if config.precision == "bfloat16" else None


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_tile"))
