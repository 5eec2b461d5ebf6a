"""photo-lite: a backbone for photographs from two PyPI packages, where no model hub can be reached.

An ImageNet classifier (EfficientNet-Lite0) and a sentence encoder (MiniLM) never saw each other. ConSE (Norouzi et al.
2014, a baseline of the paper's Table 10) joins them without training: an image is where the names of its most probable
classes lie among the sentences. Cut into the four parts of a CLIP ResNet's attention pool:

    X   the trunk's feature map, each cell averaged with its neighbours and a share of the whole image
    v   a cell -> the probabilities of its ten likeliest classes
    c   probabilities -> the mean of the classes' text embeddings, weighted by them
    q,k what a query asks for beyond the mean of the cells: nothing for the mean token, which so attends uniformly

The choices (`PhotoSettings`) and what each is worth: docs/photo-lite.md.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from for_model.backbones.attention_pool import check_tokens
from for_model.backbones.clip_resnet import STRIDE
from for_model.backbones.imagenet_names import class_descriptions
from for_model.backbones.minilm import WIDTH as TEXT_WIDTH
from for_model.backbones.minilm import MiniLM, build_minilm, load_tokenizer, tokenize
from for_model.backbones.photo_packages import NAME, TEXT_FILE, TOKENIZER_FILE, TRUNK_FILE, package_files
from for_model.backbones.pixels import check_image_size, check_pixels, resize_to_square
from for_model.errors import UsageError
from for_model.files import cache_dir, sha256_json
from for_model.tensor_files import fit_state_dict, read_weights
from for_model.text import cached_embeddings

log = logging.getLogger(__name__)

IMAGE_SIZE = 448
TRUNK = "tf_efficientnet_lite0"  # timm's name of the architecture

_MEAN = _STD = (0.5, 0.5, 0.5)  # inputs in [-1, 1]
_TEXT_BATCH = 64
_LOGIT_SCALE = 20.0  # of the contrastive loss that MiniLM was trained with


@dataclass(frozen=True)
class PhotoSettings:
    """What isn't in the weights; chosen on photographs, see docs/photo-lite.md.

    temperature: the classifier's logits are divided by it.
    n_classes: the likeliest classes that count.
    neighbourhood: cells a side, odd, that a cell of X is the mean of.
    context: the share of the whole image's mean in every cell of X.
    doubt: a component that every embedding of a cell has beside those of its names' mean, and no text has. It makes the
        cosine of a cell whose classes contradict each other (a short mean) lower than that of a sure one; 0 is ConSE's
        plain cosine.
    prompts: the templates that a name is put into before it is encoded.
    """

    temperature: float = 2.0
    n_classes: int = 10
    neighbourhood: int = 5
    context: float = 0.2
    doubt: float = 0.25
    prompts: tuple[str, ...] = ("{}", "a {}", "a photo of a {}.")


def in_context(x: Tensor, settings: PhotoSettings) -> Tensor:
    """Mix each cell with what surrounds it: the mean of its neighbourhood, and, for a share, that of the whole image.

    At the edge the mean is over the cells that there are; nothing beyond it counts as zeros.

    x: [B, Ce, H, W], a feature map.
    settings: `neighbourhood` and `context` are used.

    Returns [B, Ce, H, W].
    """
    side = settings.neighbourhood
    near = F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)
    return torch.lerp(near, x.mean(dim=(2, 3), keepdim=True), settings.context)


class PhotoPool(nn.Module):
    """The classifier and the names' text embeddings in the form of an attention pool; see `protocol.Pool`.

    The joint width Co is D + 1, for the settings' `doubt`.

    classifier: linear, from X's width Ce to C classes.
    names: [C, D] float32, unit-norm, the text embeddings of the classes.
    grid: cells a side of the feature map, so K = grid * grid.
    settings: the choices that aren't weights.
    """

    names: Tensor

    def __init__(self, classifier: nn.Linear, names: Tensor, grid: int, settings: PhotoSettings) -> None:
        super().__init__()
        self.v_proj = classifier
        self.register_buffer("names", F.pad(names, (0, 1), value=settings.doubt), persistent=False)  # [C, Co]
        self.grid = grid
        self.width, self.dim = classifier.in_features, self.names.shape[1]
        self.settings = settings

    def cells(self, X: Tensor) -> Tensor:
        """X itself: there is no class token."""
        return X

    def tokens(self, X: Tensor) -> Tensor:
        """X: [B, K, Ce] -> [B, K + 1, Ce]: the mean of the cells, then the cells. There are no positions to add.

        Raises UsageError when K is not the pool's.
        """
        check_tokens(X, self.grid)
        return torch.cat([X.mean(dim=1, keepdim=True), X], dim=1)

    def probabilities(self, X: Tensor) -> Tensor:
        """v: the probabilities of the likeliest classes.

        X: [..., Ce], cells.

        Returns [..., C], each row summing to 1, at most `n_classes` of its numbers above 0.
        """
        probabilities, classes = self._likeliest(X)
        return probabilities.new_zeros(*X.shape[:-1], len(self.names)).scatter_(-1, classes, probabilities)

    def _likeliest(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest classes of cells [..., Ce]: their probabilities, and which they are, [..., n_classes] each."""
        logits = self.v_proj(X).div_(self.settings.temperature)  # in place: there is no larger tensor here
        logits, classes = logits.topk(min(self.settings.n_classes, logits.shape[-1]), dim=-1)
        return logits.softmax(dim=-1), classes

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[False] = False) -> Tensor: ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def attend(self, queries: Tensor, tokens: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attention: Y = c(Z), Z = softmax((queries - mean of the tokens) tokens^T / sqrt(Ce)) v(tokens) (eq. 1, 3).

        queries: [B, N, Ce].
        tokens: [B, K', Ce]; K' is free.
        return_weights: whether to return the attention weights as well.

        Returns Y [B, N, Co], not normalised; with `return_weights` also the weights [B, N, K'], each row summing to 1.
        Differentiable in both arguments.
        """
        asked = queries - tokens.mean(dim=1, keepdim=True)
        weights = (asked @ tokens.transpose(-2, -1) / math.sqrt(tokens.shape[-1])).softmax(dim=-1)  # [B, N, K']
        Y = weights @ self.probabilities(tokens) @ self.names
        return (Y, weights) if return_weights else Y

    def project(self, X: Tensor) -> Tensor:
        """y_i = c(v(x_i)) for every cell (eq. 2). X: [B, K, Ce] -> [B, K, Co], not normalised."""
        return self.probabilities(X) @ self.names

    def dense_and_whole(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `protocol.Pool`. The mean token attends to all tokens alike, so its embedding is the mean of theirs."""
        check_tokens(X, self.grid)
        dense, of_mean = self._mean_name(X), self._mean_name(X.mean(dim=1, keepdim=True))
        return dense, (dense.sum(dim=1, keepdim=True) + of_mean) / (X.shape[1] + 1)

    def _mean_name(self, X: Tensor) -> Tensor:
        """`project` without the classes of no probability: [B, K, Ce] -> [B, K, Co]."""
        probabilities, classes = (each.flatten(0, 1) for each in self._likeliest(X))
        probabilities = probabilities.to(self.names.dtype)
        means = F.embedding_bag(classes, self.names, per_sample_weights=probabilities, mode="sum")  # [B K, Co]
        return means.unflatten(0, X.shape[:2])


class PhotoBackbone:
    """EfficientNet-Lite0 and MiniLM as one frozen backbone; see `protocol.ImageTextBackbone` for the attributes.

    trunk: timm's model.
    text_model, tokenizer: MiniLM's.
    image_size: pixels a side, a multiple of 32.
    device: where it computes.
    settings: the choices that aren't weights.
    """

    def __init__(
        self,
        trunk: Any,
        text_model: MiniLM,
        tokenizer: Any,
        image_size: int,
        device: torch.device,
        settings: PhotoSettings,
    ) -> None:
        descriptions = class_descriptions()
        self.name = self.weights = NAME
        self.weights_sha256 = sha256_json(
            [TRUNK_FILE.sha256, TEXT_FILE.sha256, TOKENIZER_FILE.sha256, descriptions, asdict(settings)]
        )
        self.settings = settings
        self.prompts = settings.prompts
        self.image_size = image_size
        self.device = device
        self.logit_scale = _LOGIT_SCALE
        self.n_cells = self.n_tokens = (image_size // STRIDE) ** 2
        # depthwise convolutions on the CPU are several times as fast with channels last
        self.trunk = trunk.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.text_model = text_model.to(device)
        self.tokenizer = tokenizer
        key = sha256_json([TEXT_FILE.sha256, descriptions])
        names = cached_embeddings(
            cache_dir() / "text" / f"{NAME}-{key}.safetensors",
            (len(descriptions), TEXT_WIDTH),
            lambda: self._encode(descriptions),
        )
        pool = PhotoPool(trunk.classifier, names, image_size // STRIDE, settings)
        self.pool = pool.to(device).eval().requires_grad_(False)
        self.width = pool.width
        self.dim = pool.names.shape[1]

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image -> [3, image_size, image_size] float32 on the CPU, in [-1, 1]; see `resize_to_square`."""
        return resize_to_square(image, self.image_size, _MEAN, _STD)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """The trunk, and each cell mixed with what surrounds it, see `in_context`.

        pixels: [B, 3, image_size, image_size] float32, as `preprocess` gives them.

        Returns X, [B, K, Ce] float32 on the backbone's device, cells row by row.
        Raises UsageError for another shape.
        """
        check_pixels(pixels, self.image_size)
        if not len(pixels):
            return torch.zeros(0, self.n_cells, self.width, device=self.device)
        pixels = pixels.to(self.device, torch.float32, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda"):
            x = self.trunk.forward_features(pixels)  # [B, Ce, H / 32, W / 32]
        x = in_context(x.float(), self.settings)
        return x.flatten(2).transpose(1, 2).contiguous()  # [B, K, Ce]

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts, as they stand -> [Q, Co] float32 on the backbone's device, unit-norm.

        The component of doubt is 0 in all of them, see `PhotoSettings`.
        """
        return F.pad(self._encode(texts), (0, 1)) if len(texts) else torch.zeros(0, self.dim, device=self.device)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Q texts, at least one -> MiniLM's embeddings [Q, Co - 1], unit-norm.

        Texts of like length are encoded together, so that little is padding.
        """
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        encoded: list[Tensor] = []
        for start in range(0, len(order), _TEXT_BATCH):
            batch = [texts[number] for number in order[start : start + _TEXT_BATCH]]
            tokens, present = tokenize(self.tokenizer, batch)
            encoded.append(self.text_model(tokens.to(self.device), present.to(self.device)))
        back = torch.empty(len(order), dtype=torch.int64)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(encoded)[back.to(self.device)]


def load_photo_lite(
    name: str,
    weights: str | None,
    image_size: int | None,
    device: torch.device,
    settings: PhotoSettings | None = None,
) -> PhotoBackbone:
    """Load photo-lite from the installed packages. The first call on a machine also encodes the names (seconds).

    name: `photo-lite`, the only one.
    weights: None or `photo-lite`.
    image_size: pixels a side, a multiple of 32; None for 448.
    device: where it computes.
    settings: the choices that aren't weights; None for the default.

    Raises UsageError for other weights or sizes, WeightsError when the packages are missing or aren't as released.
    """
    if weights not in (None, NAME):
        raise UsageError(f"weights {weights!r} of {NAME}: it has only those of its packages; leave --weights out")
    size = check_image_size(image_size, IMAGE_SIZE, STRIDE)
    settings = PhotoSettings() if settings is None else settings
    trunk_path, text_path, tokenizer_path = package_files()
    text_state, _ = read_weights(text_path, vocab_size=0)
    text_model, tokenizer = build_minilm(text_state), load_tokenizer(tokenizer_path)
    return PhotoBackbone(_load_trunk(trunk_path), text_model, tokenizer, size, device, settings)


def _load_trunk(path: Path) -> Any:
    """timm's model in eval mode. The file names its tensors in its own way, but in timm's order; shapes are checked."""
    import timm

    with torch.device("meta"):
        trunk = timm.create_model(TRUNK, pretrained=False)
    expected = trunk.state_dict()
    state, _ = read_weights(path, vocab_size=0)
    trunk.load_state_dict(
        fit_state_dict(dict(zip(expected, state.values(), strict=False)), expected, str(path)), assign=True
    )
    return _fold_norms(trunk.eval())


def _fold_norms(trunk: Any) -> Any:
    """Fold every batch normalisation into the convolution before it, and leave its activation: the same function,
    with a third of the passes over memory."""
    leaves: list[tuple[str, Any]] = [
        (name, module) for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    for (_, conv), (name, norm) in pairwise(leaves):
        if not isinstance(conv, nn.Conv2d) or isinstance(norm, nn.Conv2d):
            continue
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
        conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
        parent, _, child = name.rpartition(".")
        setattr(trunk.get_submodule(parent), child, nn.Sequential(norm.drop, norm.act))
    return trunk
