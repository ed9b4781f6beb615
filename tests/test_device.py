"""Device, precision, memory and processes."""

import ctypes
import resource

from fashion import device
from fashion.script import UserError

import pytest
import torch


def test_automatic_device_is_a_gpu_or_the_cpu_and_never_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.choose_device().type == "cpu"
    assert device.choose_device("mps").type == "mps"
    with pytest.raises(UserError, match="--device cuda is not available"):
        device.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.choose_device().type == "cuda"


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


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


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


@pytest.mark.parametrize(
    ("name", "value"), [("MASTER_ADDR", None), ("WORLD_SIZE", "many"), ("RANK", "5")]
)
def test_variables_that_a_cluster_left_are_ignored_with_a_line(environment, name, value, capsys):
    processes = environment({name: value})
    assert (processes.rank, processes.size) == (0, 1)
    assert "this process works alone" in capsys.readouterr().out
    with processes:
        processes.wait()


def test_missing_partner_ends_with_a_clear_error(environment, monkeypatch):
    monkeypatch.setattr(device, "CONNECTING", device.timedelta(seconds=1))
    with pytest.raises(UserError, match="no connection to the other processes"):
        environment({"MASTER_PORT": "9"}).__enter__()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_kept_memory_is_not_returned_to_the_system():
    def count_faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(10_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    ctypes.CDLL(None).mallopt(-4, 65536)  # the default, which other tests have changed
    ctypes.CDLL(None).mallopt(-1, 128 * 1024)
    returned = count_faults()
    device.keep_memory()
    assert count_faults() < 0.8 * returned
