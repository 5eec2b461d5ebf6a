"""A head: feature map X -> the embeddings Y of an image.

Shapes: B images, K cells, N embeddings an image, Ce backbone width, Co joint width. Every head returns [B, N, Co]
float32, unit-norm, on the device of X; each image's result depends on that image only. (A vector of length zero can't
be normalised and stays zero; with real weights none occurs.)
"""

from abc import abstractmethod
from typing import Any, Protocol

from torch import Tensor, nn

from for_model.backbones.protocol import Pool


class Head(Protocol):
    """What turns a feature map into embeddings.

    name: of the method that it makes, `clip`.
    settings: what changes its embeddings, as a store records it.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def n_embeddings(self, n_cells: int) -> int:
        """N, for a feature map of K = n_cells."""
        ...

    def __call__(self, X: Tensor, pool: Pool) -> Tensor:
        """X: [B, K, Ce] float32, the backbone's feature map -> [B, N, Co] float32, unit-norm."""
        ...

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """Where each embedding comes from: [B, N, K] float32, the cells' shares in it, a row summing to at most 1."""
        ...


class TrainableHead(nn.Module):
    """A head with parameters of its own. It is named when it is trained, see `HeadFile.method`."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What changes its embeddings, as a store records it."""

    @abstractmethod
    def n_embeddings(self, n_cells: int) -> int:
        """N, for a feature map of K = n_cells."""

    @abstractmethod
    def forward(self, X: Tensor, pool: Pool) -> Tensor:
        """X: [B, K, Ce] float32, the backbone's feature map -> [B, N, Co] float32, unit-norm. Differentiable."""

    def fit_to(self, means: Tensor) -> None:
        """Take what it needs to know of the training images' features, before training; nothing for most heads.

        means: [M, Ce] float32, the mean cell of each training image, at least one.
        """

    @abstractmethod
    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """See `Head.evidence`."""
