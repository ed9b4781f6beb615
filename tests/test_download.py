import gzip

import pytest
import torch
from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import calculate_md5

from fashion import download
from fashion.download import NoSourceError, load_fashion_mnist
from fashion.files import RunError

TRAIN_IMAGES = "train-images-idx3-ubyte"
UNUSED_PROCESS = 2**22 + 1  # above the largest process number of Linux


@pytest.fixture
def mirror(small_files, serve):
    """The address of a server with the four archives, and the list of names it was asked for."""
    asked = []
    return serve(lambda name, _: asked.append(name) or small_files[name.removesuffix(".gz")]), asked


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_archives_are_extracted_and_read(small_folder, small_files):
    (images, labels), (test_images, test_labels) = load_fashion_mnist(small_folder)
    assert images.shape == (240, 28, 28) and images.dtype == torch.uint8
    assert labels.tolist() == [i % 10 for i in range(240)] and labels.dtype == torch.int64
    assert test_images.shape == (40, 28, 28) and len(test_labels) == 40
    content = gzip.decompress(small_files[TRAIN_IMAGES])
    assert images.numpy().tobytes() == content[16:]


def test_intact_files_need_neither_archives_nor_network(small_folder):
    load_fashion_mnist(small_folder)
    raw = download.raw_folder(small_folder)
    for archive in raw.glob("*.gz"):
        archive.unlink()
    load_fashion_mnist(small_folder)
    assert names(raw) == set(download.EXTRACTED_MD5)


def test_all_archives_are_downloaded_from_a_mirror_and_kept(tmp_path, mirror):
    address, asked = mirror
    (images, _), _ = load_fashion_mnist(tmp_path, address.rstrip("/"))
    assert len(images) == 240
    assert asked == [archive for archive, _ in FashionMNIST.resources]
    assert names(download.raw_folder(tmp_path)) == {*asked, *download.EXTRACTED_MD5}
    load_fashion_mnist(tmp_path)  # without the mirror


def test_only_archives_of_damaged_files_are_downloaded(small_folder, mirror):
    address, asked = mirror
    load_fashion_mnist(small_folder)
    raw = download.raw_folder(small_folder)
    for archive in raw.glob("*.gz"):
        archive.unlink()
    (raw / TRAIN_IMAGES).write_bytes(b"half a file")
    load_fashion_mnist(small_folder, address)
    assert asked == [f"{TRAIN_IMAGES}.gz"]


def test_archives_that_arrived_are_kept_for_the_next_try(tmp_path, small_files, serve):
    address = serve(
        lambda name, _: small_files[name.removesuffix(".gz")] if "train" in name else None
    )
    with pytest.raises(NoSourceError):
        load_fashion_mnist(tmp_path, address)
    kept = {f"{TRAIN_IMAGES}.gz", "train-labels-idx1-ubyte.gz"}
    assert names(download.raw_folder(tmp_path)) == kept


def test_error_names_the_reason_the_archives_and_their_folder(tmp_path, small_files):
    with pytest.raises(NoSourceError, match="refused") as caught:
        load_fashion_mnist(tmp_path)
    archives = (archive for archive, _ in FashionMNIST.resources)
    for part in (*archives, download.raw_folder(tmp_path)):
        assert str(part) in str(caught.value)


@pytest.mark.parametrize("name", [TRAIN_IMAGES, "t10k-labels-idx1-ubyte.gz"])
def test_plain_mnist_is_refused(small_folder, monkeypatch, name):
    path = download.raw_folder(small_folder) / name
    path.write_bytes(b"handwritten digits")
    monkeypatch.setattr(download, "MNIST_MD5", {calculate_md5(path)})
    with pytest.raises(RunError, match=f"{name} is plain MNIST"):
        load_fashion_mnist(small_folder)


def test_leftovers_of_a_killed_process_are_removed_from_an_intact_folder(small_folder):
    load_fashion_mnist(small_folder)
    raw = download.raw_folder(small_folder)
    before = names(raw)
    (raw / f".{TRAIN_IMAGES}.{UNUSED_PROCESS}.part").write_bytes(b"half a file")
    load_fashion_mnist(small_folder)
    assert names(raw) == before


def test_raw_folder_may_be_a_link_to_another_disk(tmp_path, small_folder):
    raw = small_folder / "FashionMNIST" / "raw"
    raw.rename(tmp_path / "elsewhere")
    raw.symlink_to(tmp_path / "elsewhere")
    (images, _), _ = download.load_fashion_mnist(small_folder)
    assert len(images) == 240 and raw.is_symlink()
