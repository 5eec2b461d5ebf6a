"""Tiny models for tests: of the same classes as the real ones, with random weights that need no network."""

import json
from pathlib import Path
from typing import Any

import pytest

from for_model import checkpoints

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
    monkeypatch.setattr(checkpoints, "CONFIG_DIR", folder)
