"""What a training runs on: device, precision, memory and processes."""

import contextlib
import ctypes
import os
import platform
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from fashion.script import FAILURE, UserError

import torch
import torch.distributed as dist

# CPUs that multiply bfloat16 numbers in hardware; others emulate it, slower than float32.
BFLOAT16 = ("amx_bf16", "avx512_bf16", "sve_bf16")
CONNECTING = timedelta(minutes=1)  # longest time for the processes of torchrun to find each other
TRAINING = timedelta(days=30)  # longest time that one process waits for the others to finish


def choose_device(name: str = "auto") -> torch.device:
    """Return the device with this name. "auto" is CUDA, or else the CPU: MPS is not tested."""
    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    available["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise UserError(f"--device {name} is not available on this machine or in this torch build")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the data type of matrix products. "auto" is bfloat16 where the hardware has it."""
    fast = name == "bfloat16"
    if name == "auto" and device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif name == "auto" and device.type == "cpu":
        fast = any(map(torch.cpu.get_capabilities().get, BFLOAT16))
    return torch.bfloat16 if fast else torch.float32


def keep_memory() -> None:
    """Keep glibc from returning the feature maps of every step to the system.

    It gets them back page by page, filled with zeros. Steps of the CNN are a quarter faster.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped, and unmapped when freed, on its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: free memory stays with the process


def device_name(device: torch.device) -> str:
    """Return a device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()} with {threads} thread{'' if threads == 1 else 's'}"


def processor() -> str:
    """Return the name of the processor, with the numbers that distinguish its generation."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        fields = dict(re.findall(r"^(.+?)\s*: (.*)", text, re.MULTILINE))
        if "model name" in fields:
            numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
            return " ".join([fields["model name"], f"({', '.join(numbers)})"])
    return platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the device that a result depends on."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return versions | {"device": device_name(device)}


class Processes:
    """The processes that torchrun started, which share the work, or this one alone."""

    def __init__(self) -> None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        values = [os.environ.get(name, "") for name in names]
        self.rank, self.size, self.local_rank, self.local_size = 0, 1, 0, 1
        address = os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")
        if address and all(map(str.isdigit, values)) and int(values[0]) < int(values[1]):
            self.rank, self.size, self.local_rank, self.local_size = map(int, values)
        elif any(values[:2]):
            print("RANK or WORLD_SIZE is set, but not as torchrun does; this process works alone")

    def __enter__(self) -> Self:
        """Divide the cores of this machine among its processes, and connect them."""
        if self.size > 1:
            linux = hasattr(os, "sched_getaffinity")
            cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // self.local_size))
            try:
                dist.init_process_group("gloo", timeout=CONNECTING)
            except (RuntimeError, ValueError) as error:
                text = f"no connection to the other processes ({str(error).splitlines()[0]}); "
                raise UserError(f"{text}to train alone, unset WORLD_SIZE", FAILURE) from error
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnect. torchrun stops the others when one process fails."""
        if self.size > 1 and not any(error):
            dist.destroy_process_group()

    def device(self, name: str) -> torch.device:
        """Return the device with this name; with several GPUs, the one of this process."""
        device = choose_device(name)
        if device.type == "cuda" and self.size > 1:
            device = torch.device("cuda", self.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        return device

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.monitored_barrier(timeout=TRAINING)
