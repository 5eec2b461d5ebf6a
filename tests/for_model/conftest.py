"""What the tests of the heads share: RN-mini with random weights, and feature maps like its own."""

import pytest
import torch
from torch import Tensor

from for_model.backbones.clip_resnet import Backbone, load_backbone


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return load_backbone("RN-mini", "random")


@pytest.fixture(scope="module")
def X(mini: Backbone) -> Tensor:
    return torch.randn(3, mini.n_cells, mini.width, generator=torch.Generator().manual_seed(0)).relu() * 3
