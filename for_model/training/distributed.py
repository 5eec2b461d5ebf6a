"""One training on one process or, started by `torchrun`, on several: what they sum, and who writes files."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(days=1)  # the others wait while the first keeps feature maps or makes pseudo-labels


@dataclass(frozen=True)
class World:
    """The processes of a training.

    rank: the number of this process, from 0.
    size: how many processes there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def join_world(device: torch.device) -> World:
    """The processes that `torchrun` started (it says so in the environment), or this one alone.

    device: this process's. The processes talk through NCCL on CUDA, else through Gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    return World(dist.get_rank(), size)


def local_device(device: str | None) -> torch.device:
    """The device of this process.

    device: `cpu`, `cuda` or `cuda:<number>`; None for this process's own GPU where there is one, else the CPU.
    """
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
