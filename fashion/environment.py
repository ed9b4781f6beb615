"""What a training runs on: device, precision, memory allocator and package versions."""

import ctypes
import logging
import os
import platform
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torchvision

from fashion.files import UsageError

logger = logging.getLogger(__name__)

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
    accelerators = {"cuda": torch.cuda, "mps": torch.backends.mps}
    available = [each for each, backend in accelerators.items() if backend.is_available()] + ["cpu"]
    if name == "auto":
        name = available[0]
    if name not in available:
        raise UsageError(f"device {name} is not available on this machine or in this torch build")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the data type of matrix products for a name in PRECISIONS.

    "auto" selects bfloat16 where the hardware supports it. Elsewhere bfloat16 is emulated, which is
    slower than float32.
    """
    supported = name == "bfloat16"
    if name == "auto" and device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif name == "auto" and device.type == "cpu":
        supported = any(map(torch.cpu.get_capabilities().get, BFLOAT16_CAPABILITIES))
    return torch.bfloat16 if supported else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager:
    """Return a context that computes matrix products in this precision."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def use_deterministic_algorithms(device: torch.device) -> None:
    """Make a GPU reproduce results bit by bit, as a CPU always does.

    Call it before the first use of the GPU, when cuBLAS reads its setting.

    Raises:
        UsageError: If the device is MPS, which has no deterministic max-pooling.
    """
    if device.type == "mps":
        raise UsageError("mps cannot reproduce results: it has no deterministic max-pooling")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def set_malloc(mmap_max: int, trim_threshold: int) -> None:
    """Configure how glibc's malloc obtains and returns memory; elsewhere, do nothing.

    Args:
        mmap_max: Maximum number of blocks that are mapped separately and unmapped when freed.
        trim_threshold: Free bytes above which memory returns to the system; -1 keeps all.
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
    threads = torch.get_num_threads()
    return f"{device.type.upper()} with {threads} thread{'' if threads == 1 else 's'}"


def describe_processor() -> str:
    """Return the name of the processor, with the numbers that distinguish its generation."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(.+?)\s*: (.*)", text, re.MULTILINE))
    parts = [fields[key] for key in ("model name", "cpu family", "model") if key in fields]
    return " / ".join(parts) or platform.machine()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return what, besides the settings, determines every bit of a result."""
    name = describe_processor() if device.type == "cpu" else describe_device(device)
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "processor": name}


def warn_of_differences(path: Path, saved: Any, device: torch.device) -> None:
    """Log a warning if describe_environment returned something else when a file was made."""
    current = describe_environment(device)
    saved = saved if isinstance(saved, dict) else {}
    different = [key for key, value in current.items() if saved.get(key) != value]
    if different:
        then, now = (
            ", ".join(f"{key} {values.get(key)}" for key in different)
            for values in (saved, current)
        )
        logger.warning(
            f"{path} was made with {then}, but this process has {now}; "
            "results may differ in the last bits"
        )


def collect_versions() -> dict[str, str]:
    """Return the versions of Python and the main packages."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
    }
