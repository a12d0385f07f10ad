"""Which device computes, in which precision, and how random numbers are seeded."""

import ctypes
import ctypes.util
import random
import sys
from contextlib import AbstractContextManager

import numpy as np
import torch

from nertool.errors import NertoolError

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def choose_device(name: str, index: int | None = None) -> torch.device:
    """Returns the device of a setting's name; `auto` takes CUDA, then MPS, then the CPU.

    Args:
        name: The setting.
        index: Which of several GPUs this process shall have, where several train together.

    Raises:
        NertoolError: If there is no such device.
    """
    if index is not None and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        if index >= torch.cuda.device_count():
            raise NertoolError(
                f"process {index} has no GPU of its own: there are {torch.cuda.device_count()}",
                "torchrun --nproc-per-node with as many as there are GPUs, or --device cpu",
            )
        return torch.device("cuda", index)
    if index is not None and name.startswith("cuda:"):
        raise NertoolError(f"{name} is one GPU, but several processes train", "--device cuda gives each its own")
    if index is not None and name == "auto":
        return torch.device("cpu")  # torch can't exchange gradients between processes on MPS
    if index is not None and name == "mps":
        raise NertoolError("several processes can't train on mps", "one process without torchrun, or --device cpu")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise NertoolError(f"there is no device {name!r}", "use auto, cpu, cuda, cuda:1 or mps") from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise NertoolError(f"the device {name!r} is not available on this machine", "--device auto takes what there is")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the autocast precision: `auto` is bf16 where the hardware multiplies in it, fp16 on older GPUs."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        with torch.cuda.device(device):  # which is what the next line asks about
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Returns the context in which the network runs."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators (KAZU seeds Python's only)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of giving it back: on CPUs, large tensors cost page faults at every step.

    Does nothing elsewhere (macOS, Windows, musl).
    """
    libc = ctypes.util.find_library("c")
    if sys.platform != "linux" or libc is None:
        return
    mallopt = getattr(ctypes.CDLL(libc), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _cpu_multiplies_bf16() -> bool:
    """Asks torch; an older one that can't tell means no."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
