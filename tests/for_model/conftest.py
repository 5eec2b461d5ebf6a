"""What the tests of the heads share: RN-mini with random weights, and feature maps like its own."""

import pytest
import torch
from torch import Tensor

from for_model.backbones.clip_resnet import ClipResnet, load_clip_resnet


@pytest.fixture(scope="module")
def mini() -> ClipResnet:
    return load_clip_resnet("RN-mini", "random")


@pytest.fixture(scope="module")
def X(mini: ClipResnet) -> Tensor:
    return torch.randn(3, mini.n_cells, mini.width, generator=torch.Generator().manual_seed(0)).relu() * 3
