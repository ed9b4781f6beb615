"""What a training runs on: device, precision, memory allocator and package versions."""

import ctypes
import os
import platform
import sys
from contextlib import AbstractContextManager

import matplotlib
import numpy as np
import torch
import torchvision

from fashion.files import UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
# Capabilities of CPUs that multiply bfloat16 numbers in hardware, as torch names them.
BFLOAT16_CAPABILITIES = ("amx_bf16", "avx512_bf16", "sve_bf16")
# Parameters of mallopt(3), from glibc's malloc.h.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def choose_device(name: str) -> torch.device:
    """Return the device with this name, one of DEVICES; "auto" prefers CUDA, then MPS.

    Raises:
        UsageError: If this machine or this build of torch has no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available[name]:
        raise UsageError(f"torch finds no device {name} on this machine")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the data type of matrix products for a name in PRECISIONS.

    "auto" selects bfloat16 where the hardware supports it. Elsewhere bfloat16 is emulated, which is
    slower than float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    supported = False
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        supported = any(capabilities.get(each, False) for each in BFLOAT16_CAPABILITIES)
    return torch.bfloat16 if supported else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager:
    """Return a context that computes matrix products in this precision."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def use_deterministic_algorithms() -> None:
    """Make a GPU reproduce results bit by bit, as a CPU always does.

    Call it before the first use of the GPU, when cuBLAS reads its setting.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def set_malloc(mmap_max: int, trim_threshold: int) -> None:
    """Configure how malloc obtains and returns memory. Only glibc has these settings.

    Args:
        mmap_max: Maximum number of blocks that are mapped separately and unmapped when freed.
        trim_threshold: Free bytes at the top of the heap above which memory is returned to the
            system; -1 never returns any.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, mmap_max)
        mallopt(M_TRIM_THRESHOLD, trim_threshold)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work. A CPU has no queue."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def describe_device(device: torch.device) -> str:
    """Return a device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} with {torch.get_num_threads()} threads"


def collect_versions() -> dict[str, str]:
    """Return the versions of all packages that affect results."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
    }
