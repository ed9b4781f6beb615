"""Device, precision, memory and processes."""

import os
import subprocess
import sys

from fashion import device
from fashion.script import UserError

import pytest
import torch


def test_automatic_device_is_a_gpu_or_the_cpu_and_never_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.choose_device().type == "cpu"
    assert device.choose_device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.choose_device().type == "cuda"


def test_device_that_does_not_exist_is_a_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda is not available"):
        device.choose_device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32)],
)
def test_precision_follows_the_hardware_unless_it_is_given(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert device.choose_precision("auto", cpu) == expected
    assert device.choose_precision("float32", cpu) == torch.float32
    assert device.choose_precision("bfloat16", cpu) == torch.bfloat16


TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of torchrun, changed."""

    def apply(changes):
        for key, value in (TORCHRUN | changes).items():
            if value is None:
                monkeypatch.delenv(key, raising=False)
            else:
                monkeypatch.setenv(key, value)
        return device.Processes()

    return apply


def test_variables_of_torchrun_are_read(environment, capsys):
    processes = environment({})
    assert (processes.rank, processes.size, processes.local_rank) == (1, 2, 1)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"MASTER_ADDR": None},
        {"WORLD_SIZE": None},
        {"WORLD_SIZE": "many"},
        {"RANK": "5"},
        {"RANK": "-1"},
        {"LOCAL_RANK": ""},
    ],
)
def test_variables_that_a_cluster_left_are_ignored_with_a_line(environment, changes, capsys):
    processes = environment(changes)
    assert (processes.rank, processes.size) == (0, 1)
    assert "this process works alone" in capsys.readouterr().out
    with processes:
        processes.wait()


def test_missing_partner_ends_with_a_clear_error(environment, monkeypatch):
    monkeypatch.setattr(device, "CONNECTING", device.timedelta(seconds=1))
    with pytest.raises(UserError, match="no connection to the other processes"):
        environment({"MASTER_PORT": "9"}).__enter__()


def test_kept_memory_is_not_returned_to_the_system():
    code = """
from fashion.device import keep_memory
import ctypes, resource, sys
if len(sys.argv) > 1:
    keep_memory()
import torch
for _ in range(20):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = [
        int(subprocess.check_output([sys.executable, "-c", code, *arguments]))
        for arguments in ([], ["keep"])
    ]
    if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION"):
        assert faults[1] < 0.8 * faults[0]


def test_environment_names_versions_and_device():
    entry = device.environment(torch.device("cpu"))
    assert entry["torch"] == torch.__version__
    assert "thread" in entry["device"]
