"""Fixtures of all tests: small parts of the sample, networks trained on them, and the real data."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from fashion import checkpoint, script, style
from fashion.data import Dataset, load_sample
from fashion.runs import Run

import pytest
import torch

from fashionmnist import train
from models import MODELS

# Several threads are slower for small tensors, and would add numbers in another order.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in processes that tests start

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("FASHION_MNIST_DIR", ROOT / "data"))


@pytest.fixture(scope="session")
def sample() -> Dataset:
    """The 12,000 images that come with the project."""
    return load_sample()


@pytest.fixture(scope="session")
def tiny(sample: Dataset) -> Dataset:
    """1,000 images of the sample to train on, 200 to validate and 300 to test on, in any order."""
    chosen = [
        torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        for part in (sample.train, sample.validation, sample.test_labels)
    ]
    return replace(
        sample,
        train=sample.train[chosen[0][:1000]],
        validation=sample.validation[chosen[1][:200]],
        test_images=sample.test_images[chosen[2][:300]],
        test_labels=sample.test_labels[chosen[2][:300]],
    )


@pytest.fixture(scope="session")
def finished(tiny: Dataset) -> dict[str, list[Run]]:
    """Two finished runs of each network, some 60 to 80 % accurate, with the seeds 0 and 1."""
    series: dict[str, list[Run]] = {}
    for name, model in MODELS.items():
        recipe = replace(model.recipe, epochs=2, batch_size=50)
        series[name] = [train(name, recipe, seed, tiny) for seed in (0, 1)]
        for run in series[name]:
            run.score(tiny)
    return series


@pytest.fixture(scope="session")
def trained(tmp_path_factory, finished, tiny) -> Path:
    """A folder with the weights of the networks of seed 0."""
    folder = tmp_path_factory.mktemp("trained")
    for name, (run, _) in finished.items():
        checkpoint.export(folder / f"{name}.safetensors", run, tiny)
    return folder


@pytest.fixture(scope="session")
def networks(trained) -> dict[str, checkpoint.Network]:
    """The networks in that folder."""
    return checkpoint.load_networks(trained, MODELS)


@pytest.fixture
def real(tmp_path) -> Path:
    """A data folder with the four real archives. Tests that need them are skipped without."""
    source = REAL / "FashionMNIST" / "raw"
    if not source.is_dir():
        pytest.skip("Fashion-MNIST is neither in data nor in $FASHION_MNIST_DIR")
    target = tmp_path / "data" / "FashionMNIST" / "raw"
    target.mkdir(parents=True)
    for archive in source.glob("*.gz"):
        shutil.copyfile(archive, target / archive.name)
    return tmp_path / "data"


@pytest.fixture(scope="session", autouse=True)
def small_pictures() -> Iterator[None]:
    """Write pictures with few pixels, which is faster; tests look at what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style.STYLE, "savefig.dpi", 30)
        yield


@pytest.fixture(autouse=True)
def own_random_numbers() -> None:
    """Give each test the same random numbers, independent of other tests."""
    torch.manual_seed(0)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a script in this process: call(fashionmnist, "--sample") -> (status, output, errors)."""

    def start(module, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        try:
            status = script.run(module.main)
        except SystemExit as parsed:  # a mistake on the command line, or --help
            status = parsed.code
        return status, *capsys.readouterr()

    return start


@pytest.fixture
def forget() -> Iterator[Callable[[], dict[str, ModuleType]]]:
    """Remove the project's modules from memory, to import them again; the old ones come back."""
    ours = {"fashion", "experiments", *(path.stem for path in ROOT.glob("*.py"))}

    def start() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] in ours]
        return {name: sys.modules.pop(name) for name in names}

    before = start()
    sys.modules.update(before)
    yield start
    start()
    sys.modules.update(before)
