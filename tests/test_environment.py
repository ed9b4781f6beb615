import importlib.metadata
import os
import platform
from types import SimpleNamespace

import pytest
import torch

from fashion import environment
from fashion.files import UsageError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def devices(monkeypatch):
    """Return a function that sets which accelerators torch finds."""

    def find(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)

    return find


@pytest.mark.parametrize(
    ("available", "chosen"), [(("cuda", "mps"), CUDA), (("mps",), MPS), ((), CPU)]
)
def test_auto_chooses_the_fastest_device(devices, available, chosen):
    devices(*available)
    assert environment.choose_device("auto") == chosen
    assert environment.choose_device("cpu") == CPU


def test_missing_device_is_rejected(devices):
    devices("mps")
    assert environment.choose_device("mps") == MPS
    with pytest.raises(UsageError, match="device cuda is not available"):
        environment.choose_device("cuda")


@pytest.mark.parametrize("capability", ["amx_bf16", "avx512_bf16", "sve_bf16"])
def test_auto_precision_is_bfloat16_if_the_cpu_multiplies_it_in_hardware(monkeypatch, capability):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert environment.choose_precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {capability: False, "avx512_f": True}
    )
    assert environment.choose_precision("auto", CPU) == torch.float32
    assert environment.choose_precision("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision_asks_the_gpu(monkeypatch, supported):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or supported,
    )
    expected = torch.bfloat16 if supported else torch.float32
    assert environment.choose_precision("auto", CUDA) == expected
    assert environment.choose_precision("float32", CUDA) == torch.float32
    assert environment.choose_precision("auto", MPS) == torch.float32


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_in_the_precision(precision):
    matrix = torch.ones(2, 2)
    with environment.autocast(CPU, precision):
        assert (matrix @ matrix).dtype == precision


def test_deterministic_algorithms_keep_a_setting_of_the_user(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that the end of the test restores it
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for given, expected in ((None, ":4096:8"), (":16:8", ":16:8")):
            monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
            if given:
                monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
            environment.use_deterministic_algorithms(CPU)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == expected
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(before)


def test_malloc_is_configured_on_linux_with_glibc_only(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *setting: calls.append(setting))
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(environment.sys, "platform", "linux")
    environment.set_malloc(mmap_max=0, trim_threshold=-1)
    assert calls == [(-4, 0), (-1, -1)]
    monkeypatch.setattr(environment.sys, "platform", "darwin")
    environment.set_malloc(mmap_max=0, trim_threshold=-1)
    monkeypatch.setattr(environment.sys, "platform", "linux")
    del library.mallopt
    environment.set_malloc(mmap_max=0, trim_threshold=-1)
    assert len(calls) == 2


def test_only_accelerators_are_waited_for(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("cuda"))
    environment.synchronize(CPU)
    assert not calls
    environment.synchronize(CUDA)
    assert calls == ["cuda"]


def test_device_is_described_by_threads_or_name(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU called {device}")
    assert environment.describe_device(CPU) == "CPU with 3 threads"
    assert environment.describe_device(CUDA) == "a GPU called cuda"


def test_versions_are_those_of_the_installed_packages():
    versions = environment.collect_versions()
    assert versions.pop("python") == platform.python_version()
    assert versions.keys() == {"torch", "torchvision", "numpy", "matplotlib"}
    for package, version in versions.items():
        assert version.split("+")[0] == importlib.metadata.version(package).split("+")[0]


def test_mps_cannot_be_deterministic():
    with pytest.raises(UsageError, match="mps"):
        environment.use_deterministic_algorithms(MPS)
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_environment_is_named_in_a_warning(tmp_path, caplog):
    current = environment.describe_environment(CPU)
    assert set(current) == {"torch", "threads", "processor"}
    environment.warn_of_differences(tmp_path / "file", current, CPU)
    assert not caplog.records
    environment.warn_of_differences(tmp_path / "file", {**current, "threads": 99}, CPU)
    environment.warn_of_differences(tmp_path / "file", None, CPU)
    first, second = (record.getMessage() for record in caplog.records)
    assert "made with threads 99, but this process has threads" in first and "torch" not in first
    assert torch.__version__ in second
