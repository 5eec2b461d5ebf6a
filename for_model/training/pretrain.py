"""Pretraining of RN-mini: CLIP's contrastive training on drawn scenes and captions that name their objects.

Two stages, as learning on whole scenes barely starts from nothing: crops of one object, then scenes of 1 to 8. The
drawings held back for dev and val are never shown. Images are drawn once into memory-mapped arrays; every stage goes
on from its last checkpoint, and ends with the same weights as an uninterrupted run on the same machine.
"""

import functools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from for_model.backbones.attention_pool import interpolate_positions
from for_model.backbones.open_clip_parts import text_embeddings
from for_model.backbones.pixels import CLIP_MEAN, CLIP_STD
from for_model.data.miniscenes.concepts import CONCEPTS
from for_model.data.miniscenes.scenes import draw_all, render_scene, scene_rng
from for_model.errors import ForError, UsageError
from for_model.files import CONFIG_DIR, atomic_path, sha256_json, write_json
from for_model.open_clip_import import import_open_clip
from for_model.prompts import PROMPTS
from for_model.settings import (
    Count,
    NonNegative,
    PositiveCount,
    Settings,
    override,
    parse,
    read_table,
    valid_keys,
)
from for_model.tensor_files import pack_state_dict, write_weights
from for_model.training.checkpoint import read_model, restore_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

MODEL_CONFIG = CONFIG_DIR / "RN-mini.json"
_CAPTIONS = (
    "itap of {}.",
    "a bad photo of {}.",
    "a origami {}.",
    "a photo of {}.",
    "a picture of {}.",
    "a photo with {}.",
    "{} in a video game.",
    "art of {}.",
    "a drawing of {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "{}",
)
TOKEN_STD = 0.15  # wider than open_clip's 0.02: captions start apart, and the first plateau is shorter
_NAMED = (0.5, 0.3, 0.2)  # how often a caption names one, two, three of the objects


# An int stays an int, as the recipe writes it, because the number is part of the name that the drawings are kept under.
_Pixels = int | float


class Stage(Settings):
    """One stage: what is drawn, and how long and how fast the model learns on it.

    name: of the stage, in overrides and in the names of files.
    n_images: drawn once, shown `epochs` times.
    size: pixels a side.
    max_objects: objects a scene, at most.
    object_px: the shortest and the longest that an object's longest side may be, in pixels.
    epochs: passes over the images.
    batch_size: images a step.
    learning_rate: the peak, reached after `warmup` steps, then a half cosine down to nothing.
    warmup: steps.
    """

    name: str
    n_images: PositiveCount
    size: PositiveCount
    max_objects: PositiveCount
    object_px: Annotated[tuple[_Pixels, _Pixels], Field(strict=False, description="two numbers, say [28, 88]")]
    epochs: Count
    batch_size: PositiveCount
    learning_rate: NonNegative
    warmup: PositiveCount


class Recipe(Settings):
    """What RN-mini is pretrained by.

    seed: of the drawings, the start and the order.
    weight_decay: AdamW's, on matrices and kernels alone.
    stages: in the order in which they are trained.
    """

    seed: Count
    weight_decay: NonNegative
    stages: Annotated[tuple[Stage, ...], Field(description="[[stage]] tables")]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, whose stages are [[stage]] tables.

    overrides: `key=value`, or `stage.key=value` with a stage's name, each.
    Raises UsageError for a file that can't be read, an unknown setting (listing the valid ones) or a wrong value.
    """
    table = read_table(path, "the recipe")
    stages = table.pop("stage", None)
    stages = stages if isinstance(stages, list) else []
    named = {str(stage["name"]): stage for stage in stages if isinstance(stage, dict) and "name" in stage}
    if not named or len(named) < len(stages):
        raise UsageError(f"{path}: expected [[stage]] tables, each with a name of its own")
    table |= named
    valid = ["seed", "weight_decay", *(f"{name}.{key}" for name in named for key in valid_keys(Stage))]
    override(table, overrides, valid)
    parsed = tuple(parse(Stage, table.pop(name), f"{name}.", valid) for name in named)
    return parse(Recipe, {"stages": parsed, **table}, valid=valid)


def _draw(stage: Stage, seed: int, index: int) -> tuple[NDArray[np.uint8], list[int]]:
    rng = scene_rng(seed, f"pretrain-{stage.name}", index)
    pixels, objects = render_scene(rng, "train", stage.size, stage.max_objects, stage.object_px)
    return pixels, sorted({o.concept for o in objects})


def draw_stage(stage: Stage, seed: int, folder: Path) -> tuple[NDArray[np.uint8], list[list[int]]]:
    """The images of a stage, drawn once and kept.

    stage: what is drawn.
    seed: the recipe's.
    folder: where the drawings are kept.

    Returns the images, [n, size, size, 3] uint8, memory-mapped, and the concepts of each, positions in CONCEPTS.
    """
    name = f"{stage.name}-{sha256_json([seed, stage.n_images, stage.size, stage.max_objects, stage.object_px])[:12]}"
    labels_path, pixels_path = folder / f"{name}.json", folder / f"{name}.npy"
    if not labels_path.exists():
        labels = []
        with atomic_path(pixels_path) as temporary:
            shape = (stage.n_images, stage.size, stage.size, 3)
            pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            drawn = draw_all(partial(_draw, stage, seed), stage.n_images, f"drawing {stage.name}", "image")
            for index, (image, concepts) in enumerate(drawn):
                pixels[index] = image
                labels.append(concepts)
            pixels.flush()
        write_json(labels_path, labels)
    return np.load(pixels_path, mmap_mode="r", allow_pickle=False), json.loads(labels_path.read_text())


def caption(rng: Generator, concepts: Sequence[int]) -> tuple[str, list[int]]:
    """A caption that names one to three of an image's concepts, and those concepts in the order named.

    Were all of them named, a caption's length would tell the number of objects: a short cut that ends in a model which
    ranks the images of one object first, whatever the query.

    rng: the random numbers.
    concepts: of the image, positions in CONCEPTS.
    """
    count = 1 + int(rng.choice(len(_NAMED), p=_NAMED))
    named = [int(c) for c in rng.permutation(np.asarray(concepts))[:count]]
    names = [CONCEPTS[c].name for c in named]
    template = _CAPTIONS[int(rng.integers(len(_CAPTIONS)))]
    if rng.random() < 0.5 and not template.startswith("a origami") and " the " not in template:
        names = [("an " if n[0] in "aeiou" else "a ") + n for n in names]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return template.replace("{}", listed), named


def true_pairs(images: Sequence[Sequence[int]], captions: Sequence[Sequence[int]]) -> Tensor:
    """[B, B] bool: whether image i (row) holds every concept that caption j (column) names."""
    held, named = (torch.zeros(len(rows), len(CONCEPTS)) for rows in (images, captions))
    for hot, rows in ((held, images), (named, captions)):
        for row, concepts in enumerate(rows):
            hot[row, list(concepts)] = 1
    return held @ named.T == named.sum(1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, positives: Tensor) -> Tensor:
    """CLIP's symmetric loss, with several positives: a row's target is spread evenly over all its true pairs.

    images, texts: [B, Co], unit-norm.
    scale: the temperature's inverse.
    positives: [B, B] bool, whether a text (column) is true of an image (row); the diagonal is true.
    """
    logits = scale * images @ texts.T  # [B, B]
    true = positives.float()
    by_image, by_text = true / true.sum(1, keepdim=True), (true / true.sum(0)).T
    return (F.cross_entropy(logits, by_image) + F.cross_entropy(logits.T, by_text)) / 2


def image_embeddings(visual: Any, pixels: Tensor) -> Tensor:
    """The tower's unit-norm output [B, Co] at any size: the positional embedding is interpolated, differentiably."""
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
    pool = visual.attnpool
    positions = interpolate_positions(pool.positional_embedding, x.shape[-1])
    return F.normalize(functional_call(pool, {"positional_embedding": positions}, (x,)).float(), dim=-1)


class Pretraining:
    """The model, its optimizer and where it stands in the recipe; saved and restored as one safetensors file."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        config = json.loads(MODEL_CONFIG.read_text())
        text = config["text_cfg"]
        torch.manual_seed(recipe.seed)
        open_clip = import_open_clip()
        self.model = open_clip.CLIP(**config).to(memory_format=torch.channels_last)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=text["context_length"])
        # Only the tokens that captions and prompts use are trained: all 49,408 would be two thirds of the model. Their
        # order is kept, so the end-of-text token stays the largest, which is how open_clip finds a text's end.
        self.rows = used_rows()
        self.row_of = torch.zeros(text["vocab_size"], dtype=torch.long)
        self.row_of[self.rows] = torch.arange(len(self.rows))
        self.model.token_embedding = nn.Embedding(len(self.rows), text["width"])
        nn.init.normal_(self.model.token_embedding.weight, std=TOKEN_STD)
        self.model.to(device)
        decay = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6)
        self.stage, self.epoch = 0, 0

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        save_checkpoint(path, self._state(), self.optimizer, {"stage": self.stage, "epoch": self.epoch})

    def restore(self, path: Path) -> bool:
        """Go on from a checkpoint, if there is one; says whether there was. Raises UsageError when it can't be used."""
        progress = restore_checkpoint(path, self._state(), self.optimizer)
        if progress is None:
            return False
        self.stage, self.epoch = progress["stage"], progress["epoch"]
        return True

    def _state(self) -> dict[str, Tensor]:
        return self.model.state_dict(keep_vars=True)

    def run_epoch(self, stage: Stage, pixels: NDArray[np.uint8], labels: list[list[int]]) -> float:
        """One pass over the stage's images in the order that (seed, stage, epoch) gives. Returns the mean loss.

        Raises ForError if the loss is no longer finite.
        """
        rng = scene_rng(self.recipe.seed, f"order-{stage.name}", self.epoch)
        steps = stage.n_images // stage.batch_size
        order = rng.permutation(stage.n_images)[: steps * stage.batch_size].reshape(steps, -1)
        total = 0.0
        self.model.train()
        bar = tqdm(order, desc=f"{stage.name} {self.epoch + 1}/{stage.epochs}", unit="step", disable=None)
        for step, batch in enumerate(bar):
            self._set_rate(stage, self.epoch * steps + step, stage.epochs * steps)
            batch = np.sort(batch)  # neighbours in the file; the batch's order doesn't matter to the loss
            loss = self._step(rng, pixels[batch], [labels[i] for i in batch])
            total += loss
            bar.set_postfix(loss=f"{loss:.3f}")
        if not math.isfinite(total):
            raise ForError(f"the loss of {stage.name} is not finite in epoch {self.epoch + 1}: lower learning_rate")
        return total / steps

    def _set_rate(self, stage: Stage, step: int, total: int) -> None:
        warm = min(1.0, (step + 1) / stage.warmup)
        rate = stage.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _step(self, rng: Generator, images: NDArray[np.uint8], labels: list[list[int]]) -> float:
        captions = [caption(rng, concepts) for concepts in labels]
        texts = self.row_of[self.tokenizer([text for text, _ in captions])].to(self.device)
        positives = true_pairs(labels, [named for _, named in captions]).to(self.device)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            image = image_embeddings(self.model.visual, self._augment(rng, images))
            text = text_embeddings(self.model, texts)
        loss = contrastive_loss(image, text, self.model.logit_scale.exp(), positives)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return float(loss.detach())

    def _augment(self, rng: Generator, images: NDArray[np.uint8]) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, 3, H, W] float32, normalised.

        Colours are permuted, half of the images inverted, and half mirrored.
        """
        x = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        colours = torch.from_numpy(rng.permuted(np.tile(np.arange(3), (len(x), 1)), axis=1))
        x = x[torch.arange(len(x))[:, None], colours]
        inverted, mirrored = (torch.from_numpy(rng.random(len(x)) < 0.5).to(self.device) for _ in range(2))
        x = x ^ (inverted * 255).to(torch.uint8)[:, None, None, None]
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        mean = torch.tensor(CLIP_MEAN, device=self.device).view(3, 1, 1) * 255
        std = torch.tensor(CLIP_STD, device=self.device).view(3, 1, 1) * 255
        return x.float().contiguous(memory_format=torch.channels_last).sub_(mean).div_(std)


def pretrain(recipe: Recipe, work: Path, device: str = "cpu") -> Iterator[tuple[str, int, float]]:
    """Run the recipe, resuming from `work`. Yields (stage, epochs done, mean loss) after each epoch.

    The last checkpoint stays in `work/checkpoint.safetensors`; `export` makes the packaged weights of it.
    """
    training = Pretraining(recipe, device)
    checkpoint = work / "checkpoint.safetensors"
    if training.restore(checkpoint):
        logger.info("going on from stage %d, epoch %d", training.stage + 1, training.epoch)
    while training.stage < len(recipe.stages):
        stage = recipe.stages[training.stage]
        pixels, labels = draw_stage(stage, recipe.seed, work)
        while training.epoch < stage.epochs:
            loss = training.run_epoch(stage, pixels, labels)
            training.epoch += 1
            training.save(checkpoint)
            yield stage.name, training.epoch, loss
        training.stage, training.epoch = training.stage + 1, 0
    training.save(checkpoint)


@functools.cache
def used_rows() -> Tensor:
    """The tokens that captions and the seven prompts can hold: [V'] int64, ascending. Not to be changed."""
    templates = (*_CAPTIONS, *(t.replace("{}", f"{a} {{}}") for t in _CAPTIONS for a in ("a", "an")), *PROMPTS)
    texts = [t.replace("{}", f"{c.name}, {c.name} and {c.name}") for t in templates for c in CONCEPTS]
    return import_open_clip().SimpleTokenizer(context_length=77)(texts).unique()


def export(checkpoint: Path, out: Path, metadata: dict[str, str]) -> None:
    """Write a checkpoint's model in the compact form of `tensor_files`: float16, and only the token rows trained."""
    state = read_model(checkpoint)
    rows = used_rows()
    text = json.loads(MODEL_CONFIG.read_text())["text_cfg"]
    whole = torch.zeros(text["vocab_size"], text["width"])
    whole[rows] = state["token_embedding.weight"]
    write_weights(out, pack_state_dict({**state, "token_embedding.weight": whole}, rows.tolist()), metadata)


def run_recipe(config: Path, settings: Sequence[str], work: Path, out: Path, device: str) -> Iterator[str]:
    """`python -m for_model pretrain-mini`: train, report each epoch, write the packaged weights to `out`.

    config: the recipe's file.
    settings: overrides, see `load_recipe`.
    work: the folder for drawings and the checkpoint; it belongs to one recipe.
    out: the weights' file.
    device: where it computes.

    Yields a line of JSON an epoch.
    Raises UsageError if the work folder holds a run of another recipe.
    """
    recipe = load_recipe(config, settings)
    work.mkdir(parents=True, exist_ok=True)
    plan, plan_path = {"recipe": recipe.model_dump(), "model": json.loads(MODEL_CONFIG.read_text())}, work / "plan.json"
    if plan_path.exists() and json.loads(plan_path.read_text()) != json.loads(json.dumps(plan)):
        raise UsageError(f"{work} holds a run of another recipe: choose another --work, or delete it")
    write_json(plan_path, plan)
    started = time.monotonic()
    for stage, epoch, loss in pretrain(recipe, work, device):
        line = {"stage": stage, "epoch": epoch, "loss": round(loss, 4), "seconds": round(time.monotonic() - started, 1)}
        with (work / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        yield json.dumps(line)
    export(work / "checkpoint.safetensors", out, {"recipe": json.dumps(recipe.model_dump()), "device": device})
    yield f"wrote {out}"
