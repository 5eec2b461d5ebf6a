"""Tiny models for tests: of the same classes as the real ones, with random weights that need no network."""

import json
from pathlib import Path
from typing import Any

import pytest

from for_model.backbones import model_weights
from for_model.methods import hub_models

_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_VISION = {"image_size": 64, "layers": 3, "width": 48, "head_width": 16, "patch_size": 16}
_CAPTIONS = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}

OPEN_CLIP: dict[str, dict[str, Any]] = {
    "ViT-tiny": {"embed_dim": 32, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "ViT-tiny-quickgelu": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "coca-tiny": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {**_VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**_CAPTIONS, "attn_pooler_heads": 2},
    },
}


def name_tiny_open_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the models of OPEN_CLIP be named like those that come with FOR, in place of these."""
    for name, config in OPEN_CLIP.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    monkeypatch.setattr(model_weights, "CONFIG_DIR", folder)


_OWL_VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_OWL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_OWL = {
    "projection_dim": 32,
    "vision_config": {**_OWL_VISION, "image_size": 64, "patch_size": 16},
    "text_config": _OWL_TEXT,
}
_QFORMER = {"vocab_size": 300, "use_qformer_text_input": True, "intermediate_size": 64, "hidden_size": 32}
HUB: dict[str, dict[str, Any]] = {
    "owlvit": _OWL,
    "owlv2": _OWL,
    "blip2": {
        "num_query_tokens": 5,
        "image_text_hidden_size": 16,
        "vision_config": {**_OWL_VISION, "image_size": 28, "patch_size": 14},
        "qformer_config": {**_QFORMER, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
}


def name_tiny_hub_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the repository `tiny` of HUB be named with random weights."""
    for method, config in HUB.items():
        monkeypatch.setitem(hub_models.PUBLISHED[method], "tiny", config)
