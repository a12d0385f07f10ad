"""Several processes that train one model, started by `torchrun`; all of it is torch.distributed's work.

Process 0 alone reads the training documents, builds the cache, writes and prints; the others open what it made and read
the eval split, so all need the same file system. A run of one process goes the same way, with nothing to exchange.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")

# Process 0 may tokenise for hours, or wait for a slow disk, while the others wait for it.
_PATIENCE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class World:
    """This process and the others.

    Args:
        rank: The number of this process.
        size: How many there are.
        control: The group for small messages; its own, so that they don't wait for a GPU.
    """

    rank: int = 0
    size: int = 1
    control: "dist.ProcessGroup | None" = None

    @property
    def gpu(self) -> int | None:
        """The number of this process's GPU, where several processes have one each; None for one process alone."""
        return local_rank() if self.size > 1 else None

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """Returns the network to train with: it begins with the first process's weights and averages gradients."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    def accumulating(self, network: torch.nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Returns the context for a backward pass; gradients are exchanged in the step's last one only."""
        if last or not isinstance(network, DistributedDataParallel):
            return nullcontext()
        return network.no_sync()

    def add_up(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def largest(self, *values: int) -> list[int]:
        """Returns the largest of each number over the processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self.control)
        return [int(value) for value in tensor]

    def gather(self, value: Value) -> list[Value]:
        """Returns every process's value to the first one, in the order of their numbers; to the others nothing."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, found, 0, self.control)
        return found or []

    def share(self, value: Value | None) -> Value:
        """Returns the first process's value to all."""
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box, 0, self.control)
            value = box[0]
        assert value is not None
        return value


ALONE = World()


@contextmanager
def join_world() -> Iterator[World]:
    """Gives this process's place among those that `torchrun` started; alone where it didn't."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    backend = "gloo"
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"  # by where the tensors are: `--device cpu` may be wanted all the same
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield World(dist.get_rank(), size, dist.new_group(timeout=_PATIENCE, backend="gloo"))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Returns the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
