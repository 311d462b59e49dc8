"""The processes that train together: the device of each, its rows of a batch, and figures averaged over all of them."""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.distributed as dist
from torch import Tensor

from fastinfer.errors import InputError


def find_device(name: str) -> torch.device:
    """The device that a recipe names: cpu, cuda, or auto for a GPU where there is one. Raises InputError for any other.

    On a GPU, each process that torchrun has started gets its own, and it becomes the current one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device is {name!r}, " + ("expected cpu, cuda or auto" if name != "cuda" else "but PyTorch sees no GPU"))
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


@dataclasses.dataclass(frozen=True)
class Workers:
    """The processes that train together, one per device. Without torchrun this process is the only one.

    rank    number of this process, from 0
    world   number of processes
    device  the device of this process
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str) -> Workers:
        """Join the processes that torchrun has started, if it has."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        place = find_device(device)
        if world > 1:
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        return cls(rank, world, place)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def rows(self, count: int) -> slice:
        """This process's part of the `count` rows of a batch. Raises InputError where the rows cannot be shared evenly."""
        if count % self.world:
            raise InputError(f"a batch has {count} rows, expected a multiple of the {self.world} processes: change batch_tokens")
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Each value, averaged over the processes."""
        stacked = torch.stack([v.double() for v in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def agreed(self, value: float) -> float:
        """The value that process 0 has."""
        if self.world == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(said, 0)
        return float(said)


def mean_of_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over the processes, as a constant of the graph."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x


def every_row(x: Tensor) -> Tensor:
    """The rows (B, D) of all processes in one tensor, through which gradients flow."""
    if not dist.is_initialized():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x))
