"""OWL-ViT, OWLv2 and BLIP-2 as dual encoders, from the transformers library; see `dual_encoders`.

Shapes: B images, N embeddings an image, Q texts, L tokens, Co joint width.
"""

import re
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from for_model.backbones.pixels import check_image_size, pad_to_square, resize_to_square
from for_model.errors import WeightsError
from for_model.methods.dual_encoders import DualEncoder
from for_model.methods.hub_models import HubModel, load_hub_model, reading
from for_model.methods.protocol import MethodInfo
from for_model.methods.registry import MethodRequest
from for_model.open_clip_import import import_open_clip

MAX_BLIP2_TOKENS = 32  # what BLIP-2 was trained with
# What BLIP-2's own text processor (LAVIS' `blip_caption`) replaces by spaces, in training and afterwards.
_BLIP2_DROPS = re.compile(r'[.!"()*#:;~]')


class TransformersEncoder(DualEncoder):
    """What the models of this module share.

    method: its name, a key of METHODS.
    loaded: the model and where it comes from.
    n_embeddings: N, embeddings an image at that image size.
    dim: Co, of the joint space.
    image_size: pixels a side.
    device: where it computes.
    """

    packages = ("transformers",)

    def __init__(
        self, method: str, loaded: HubModel, n_embeddings: int, dim: int, image_size: int, device: torch.device
    ) -> None:
        info = MethodInfo(
            method=method,
            backbone=loaded.name,
            weights=loaded.label,
            weights_sha256=loaded.weights_sha256,
            n_embeddings=n_embeddings,
            dim=dim,
            image_size=image_size,
            settings={},
        )
        super().__init__(info, loaded.model, device)
        # the positional embedding of another size is interpolated by the library
        self._interpolate = image_size != loaded.model.config.vision_config.image_size


class Owl(TransformersEncoder):
    """OWL-ViT (Minderer et al. 2022): the class embedding of every patch, which the detector compares with the texts'.

    The detector's logit is (cosine + shift) * scale, shift and scale learned functions of the patch. They are left out
    here: the paper ranks by the maximal similarity over an image's embeddings (section 4.1), an index holds unit-norm
    vectors and knows cosines only, and so all methods are compared alike. Boxes and objectness take no part either.
    The detector averages the logits over prompts; FOR's mean of the prompts' embeddings ranks alike, since the mean of
    cosines with unit-norm texts is a positive multiple of the cosine with their mean.
    """

    def __init__(self, method: str, loaded: HubModel, image_size: int | None, device: torch.device) -> None:
        vision = loaded.model.config.vision_config
        size = check_image_size(image_size, vision.image_size, vision.patch_size)
        n_patches = (size // vision.patch_size) ** 2
        super().__init__(method, loaded, n_patches, loaded.model.class_head.dense0.out_features, size, device)

    def _images(self, pixels: Tensor) -> Tensor:
        feature_map = self.model.image_embedder(pixels, interpolate_pos_encoding=self._interpolate)[0]
        embeddings: Tensor = self.model.class_head.dense0(feature_map.flatten(1, 2))  # [B, N, Co]
        return embeddings

    def _texts(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        # both use CLIP's tokenizer, and open_clip's needs no download
        tokens = import_open_clip().tokenize(texts, context_length=length).to(self.device)  # [Q, L], longer texts cut
        core = self.model.base_model
        # no mask for the padding: it comes after the end-of-text token, which sees only what is before it
        embeddings: Tensor = core.text_projection(core.text_model(input_ids=tokens).pooler_output)
        return embeddings


class Owl2(Owl):
    """OWLv2 (Minderer et al. 2023): as OWL-ViT, but an image is padded to a square before it is resized."""

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image -> [3, H, W] float32 on the CPU, grey below or to the right of it; bilinear, as the original.

        Raises ImageError when it can't be decoded.
        """
        size = self.info.image_size
        return resize_to_square(pad_to_square(image), size, self.mean, self.std, Image.Resampling.BILINEAR)


class Blip2(TransformersEncoder):
    """BLIP-2 (Li et al. 2023) without re-ranking: the contrastive embeddings of its Q-Former's 32 queries, and the one
    of a text. An image scores by its best query, which is BLIP-2's own image-text similarity."""

    def __init__(self, loaded: HubModel, image_size: int | None, device: torch.device) -> None:
        config = loaded.model.config
        size = check_image_size(image_size, config.vision_config.image_size, config.vision_config.patch_size)
        super().__init__("blip2", loaded, config.num_query_tokens, config.image_text_hidden_size, size, device)
        self._tokenizer = _blip2_tokenizer(loaded)

    def _images(self, pixels: Tensor) -> Tensor:
        cells = self.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=self._interpolate)[0]
        queries = self.model.query_tokens.expand(len(pixels), -1, -1)
        seen = self.model.qformer(query_embeds=queries, encoder_hidden_states=cells).last_hidden_state
        embeddings: Tensor = self.model.vision_projection(seen)  # [B, 32, Co]
        return embeddings

    def _texts(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            [_BLIP2_DROPS.sub(" ", text) for text in texts],
            padding=True,
            truncation=True,
            max_length=MAX_BLIP2_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        words = self.model.embeddings(input_ids=tokens.input_ids)
        read = self.model.qformer(query_embeds=words, query_length=0, attention_mask=tokens.attention_mask)
        embeddings: Tensor = self.model.text_projection(read.last_hidden_state[:, 0])
        return embeddings


def _blip2_tokenizer(loaded: HubModel) -> Any:
    """BERT's tokenizer, from the files in the model's folder; for random weights one that knows letters only, because
    the real one's words come with the real weights.

    Raises WeightsError when its files are missing, damaged or have more words than the model.
    """
    from transformers import BertTokenizer

    if loaded.folder is None:
        letters = [chr(code) for code in range(33, 127)]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        return BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    if not any((loaded.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise WeightsError(f"{loaded.folder} has no tokenizer: give it the repository's tokenizer.json or vocab.txt")
    with reading(loaded.folder, "its tokenizer"):
        tokenizer = BertTokenizer.from_pretrained(loaded.folder, local_files_only=True, split_special_tokens=True)
    known = loaded.model.embeddings.word_embeddings.num_embeddings
    if len(tokenizer) > known:
        raise WeightsError(
            f"{loaded.folder}: the tokenizer has {len(tokenizer)} words, the model {known}; fetch both again"
        )
    return tokenizer


def build_owl(request: MethodRequest) -> Owl:
    """Load OWL-ViT.

    request.backbone: a repository of the model hub, None for the paper's.
    request.weights: see `load_hub_model`.
    request.image_size: pixels a side, a multiple of the patch size; None for the model's own.

    Raises UsageError for an unknown repository or size, WeightsError for packages or weights that are missing.
    """
    loaded = load_hub_model(request.name, request.backbone, request.weights)
    return Owl(request.name, loaded, request.image_size, request.device)


def build_owl2(request: MethodRequest) -> Owl2:
    """Load OWLv2. The request and the errors are those of `build_owl`."""
    loaded = load_hub_model(request.name, request.backbone, request.weights)
    return Owl2(request.name, loaded, request.image_size, request.device)


def build_blip2(request: MethodRequest) -> Blip2:
    """Load BLIP-2. The request and the errors are those of `build_owl`."""
    loaded = load_hub_model(request.name, request.backbone, request.weights)
    return Blip2(loaded, request.image_size, request.device)
