import gzip
import threading

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

import data
from data import NoSource, load_dataset, load_fashion_mnist
from files import WorldFault

TRAIN_IMAGES = "train-images-idx3-ubyte"


def load(choice, data_dir, warnings=None, mirror=None, limit=None, timeout=5):
    return load_dataset(
        choice,
        data_dir,
        mirror,
        timeout,
        limit,
        (warnings if warnings is not None else []).append,
    )


def raw_folder(data_dir):
    return data_dir / "FashionMNIST" / "raw"


# Verifying and restoring


def test_archives_are_extracted_and_read(small_folder, small_files):
    (images, labels), (test_images, test_labels) = load_fashion_mnist(small_folder)
    assert images.shape == (240, 28, 28) and images.dtype == torch.uint8
    assert labels.tolist() == [i % 10 for i in range(240)] and labels.dtype == torch.int64
    assert test_images.shape == (40, 28, 28) and len(test_labels) == 40
    content = gzip.decompress(small_files[TRAIN_IMAGES])
    assert images.numpy().tobytes() == content[16:]


@pytest.mark.parametrize("name", data.EXTRACTED_MD5)
@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "empty", "remove"])
def test_damaged_file_is_rebuilt_from_its_archive(small_folder, name, damage):
    load_fashion_mnist(small_folder)
    path = raw_folder(small_folder) / name
    whole = path.read_bytes()
    broken = {
        "flip a bit": whole[:-1] + bytes([whole[-1] ^ 1]),
        "truncate": whole[: len(whole) // 2],
        "empty": b"",
    }
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(broken[damage])
    load_fashion_mnist(small_folder)
    assert path.read_bytes() == whole


def test_good_files_need_neither_archive_nor_network(small_folder):
    load_fashion_mnist(small_folder)
    for archive, _ in FashionMNIST.resources:
        (raw_folder(small_folder) / archive).unlink()
    load_fashion_mnist(small_folder)


def test_file_damaged_with_its_archive_is_downloaded_again(small_folder, small_files, serve):
    asked = []
    address = serve(lambda name, _: asked.append(name) or small_files[name.removesuffix(".gz")])
    (raw_folder(small_folder) / f"{TRAIN_IMAGES}.gz").write_bytes(b"not an archive")
    load_fashion_mnist(small_folder, mirror=address)
    assert set(asked) == {f"{TRAIN_IMAGES}.gz"}


@pytest.mark.parametrize("choice", ["auto", "fashion-mnist"])
def test_damage_beyond_repair_is_an_error_that_names_the_file(small_folder, choice):
    raw = raw_folder(small_folder)
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(b"not an archive")
    (raw / TRAIN_IMAGES).write_bytes(b"half a file")
    warnings = []
    with pytest.raises(WorldFault, match=TRAIN_IMAGES):
        load(choice, small_folder, warnings)
    assert not warnings
    assert (raw / TRAIN_IMAGES).read_bytes() == b"half a file"


def test_folder_in_place_of_a_file_is_named(small_folder):
    (raw_folder(small_folder) / TRAIN_IMAGES).mkdir()
    with pytest.raises(WorldFault, match=f"{TRAIN_IMAGES} is a folder"):
        load_fashion_mnist(small_folder)


@pytest.mark.parametrize("name", [TRAIN_IMAGES, "t10k-labels-idx1-ubyte.gz"])
def test_plain_mnist_is_refused_with_those_words(small_folder, monkeypatch, name):
    # What is known of MNIST is its MD5 sums, so any content serves as MNIST once its sum is known.
    (raw_folder(small_folder) / name).write_bytes(b"handwritten digits")
    known = data.calculate_md5(raw_folder(small_folder) / name)
    monkeypatch.setattr(data, "MNIST_MD5", data.MNIST_MD5 | {known})
    with pytest.raises(WorldFault, match="is plain MNIST"):
        load("auto", small_folder)


def test_what_a_process_left_that_was_killed_at_the_very_end_is_cleared_away(small_folder):
    load("fashion-mnist", small_folder)
    folder = small_folder / "FashionMNIST"
    (folder / ".lock").write_text("123")
    (folder / ".incoming-abc").mkdir()
    load("fashion-mnist", small_folder)
    assert [path.name for path in folder.iterdir()] == ["raw"]


def test_no_half_file_and_no_litter_stay_behind(small_folder):
    (raw_folder(small_folder) / f"{TRAIN_IMAGES}.gz").write_bytes(b"not an archive")
    with pytest.raises(NoSource):
        load_fashion_mnist(small_folder)
    assert not (raw_folder(small_folder) / TRAIN_IMAGES).exists()
    assert [path.name for path in raw_folder(small_folder).parent.iterdir()] == ["raw"]


# Downloading


def test_download_from_a_mirror(tmp_path, small_files, serve):
    address = serve(lambda name, _: small_files[name.removesuffix(".gz")])
    (images, _), _ = load_fashion_mnist(tmp_path, mirror=address.rstrip("/"))
    assert len(images) == 240
    load_fashion_mnist(tmp_path)  # from now on without a network


def test_own_address_serves_when_the_mirror_has_nothing(tmp_path, small_files, serve, monkeypatch):
    good = serve(lambda name, _: small_files[name.removesuffix(".gz")])
    monkeypatch.setattr(FashionMNIST, "mirrors", [good])
    load_fashion_mnist(tmp_path, mirror=serve(lambda *_: None))


def test_wrong_content_is_never_taken_for_data(tmp_path, small_files, serve):
    lying = serve(lambda name, _: b"\0" * len(small_files[name.removesuffix(".gz")]))
    with pytest.raises(NoSource, match="not the file it should be"):
        load_fashion_mnist(tmp_path, mirror=lying)
    assert not list(raw_folder(tmp_path).iterdir())


def test_silent_server_is_left_after_the_time_out(tmp_path, small_files, serve):
    released = threading.Event()
    address = serve(lambda *_: released.wait(30) and None)
    with pytest.raises(NoSource, match=r"timed out|no answer within"):
        load_fashion_mnist(tmp_path, mirror=address, timeout=0.3)
    released.set()


def test_what_arrived_is_kept_for_the_next_try(tmp_path, small_files, serve):
    address = serve(
        lambda name, _: small_files[name.removesuffix(".gz")] if "train" in name else None
    )
    with pytest.raises(NoSource):
        load_fashion_mnist(tmp_path, mirror=address)
    kept = {path.name for path in raw_folder(tmp_path).iterdir()}
    assert kept == {f"{TRAIN_IMAGES}.gz", "train-labels-idx1-ubyte.gz"}


def test_error_names_the_four_files_their_place_and_the_mirror_option(tmp_path, small_files):
    with pytest.raises(NoSource) as caught:
        load("fashion-mnist", tmp_path)
    for part in [*(archive for archive, _ in FashionMNIST.resources), "--mirror"]:
        assert part in str(caught.value)
    assert str(raw_folder(tmp_path)) in str(caught.value)


# The stand-in


def test_auto_draws_the_stand_in_without_data_and_network(tmp_path, no_network, quick_drawing):
    warnings = []
    dataset = load("auto", tmp_path, warnings)
    assert dataset.name == "synthetic"
    assert dataset.title == "drawn stand-in, not Fashion-MNIST"
    assert len(dataset.train_indices) == 11_000 and len(dataset.validation_indices) == 1_000
    assert len(warnings) == 1 and "stand-in" in warnings[0]


def test_synthetic_asks_neither_disk_nor_network(tmp_path, quick_drawing):
    assert load("synthetic", tmp_path / "nowhere").name == "synthetic"
    assert not (tmp_path / "nowhere").exists()


# Splitting, normalising, augmenting


def test_split_is_balanced_whole_and_the_same_for_every_seed():
    labels = torch.arange(60_000) % 10
    train, validation = data.split_indices(labels)
    assert torch.bincount(labels[validation]).tolist() == [500] * 10
    assert torch.cat([train, validation]).sort().values.equal(torch.arange(60_000))
    torch.manual_seed(1234)
    assert data.split_indices(labels)[1].equal(validation)


def test_limit_takes_the_first_images_and_leaves_validation_alone(small_folder):
    whole, limited = load("auto", small_folder), load("auto", small_folder, limit=50)
    assert limited.train_indices.equal(whole.train_indices[:50])
    assert limited.validation_indices.equal(whole.validation_indices)


def test_mean_and_deviation_are_those_of_the_training_part(small_folder):
    dataset = load("auto", small_folder)
    pixels = dataset.images[dataset.train_indices].double() / 255
    assert dataset.mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert dataset.std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)
    normal = data.normalize(dataset.images[dataset.train_indices], dataset.mean, dataset.std)
    assert normal.shape == (220, 1, 28, 28) and normal.dtype == torch.float32
    assert normal.mean().item() == pytest.approx(0, abs=1e-5)
    assert normal.std().item() == pytest.approx(1, abs=1e-4)


def test_augmented_images_are_shifted_and_mirrored_copies():
    image = torch.randint(1, 256, (28, 28), dtype=torch.uint8)
    padded = data.pad(image[None], 2)
    generator = torch.Generator().manual_seed(0)
    batch = data.augment(padded, torch.zeros(400, dtype=torch.int64), 1.0, True, generator)
    windows = [padded[0, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
    expected = {w.numpy().tobytes() for w in windows} | {
        w.flip(1).numpy().tobytes() for w in windows
    }
    seen = {picture.numpy().tobytes() for picture in batch}
    assert seen == expected


def test_only_the_wanted_share_is_shifted():
    image = torch.randint(1, 256, (28, 28), dtype=torch.uint8)
    padded, indices = data.pad(image[None], 1), torch.zeros(5000, dtype=torch.int64)
    for shifted in (0, 0.3, 1):
        generator = torch.Generator().manual_seed(0)
        batch = data.augment(padded, indices, shifted, False, generator)
        unmoved = (batch == image).all((1, 2)).float().mean().item()
        # One of the nine shifts is none.
        assert unmoved == pytest.approx(1 - shifted * 8 / 9, abs=0.03)


def test_without_shift_and_flip_augmentation_changes_nothing():
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    indices = torch.tensor([3, 1, 3])
    batch = data.augment(data.pad(images, 0), indices, 1.0, False, torch.Generator())
    assert batch.equal(images[indices])


@pytest.mark.parametrize("size", [1, 4, 7])
def test_cutout_blacks_out_one_square_at_any_place(size):
    images = torch.full((20_000, 28, 28), 9, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    holes = data.cut_out(images, size, generator) == 0
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert holes.sum((1, 2)).equal(heights * widths)  # a rectangle
    assert heights.max() == widths.max() == size
    assert (heights == size).float().mean() > 0.7  # the others lie partly outside
    assert holes.any(0).all()


def test_augmentation_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    images = torch.zeros(5, 30, 30, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(3)
    data.cut_out(data.augment(images, torch.arange(5), 0.5, True, generator), 7, generator)
    assert torch.get_rng_state().equal(before)


# The real data


def test_real_files_are_whole_and_known(real_archives, no_network):
    dataset = load("fashion-mnist", real_archives)
    assert dataset.images.shape == (60_000, 28, 28)
    assert dataset.test_images.shape == (10_000, 28, 28)
    assert len(dataset.train_indices) == 55_000
    assert torch.bincount(dataset.labels[dataset.validation_indices]).tolist() == [500] * 10
    assert torch.bincount(dataset.test_labels).tolist() == [1000] * 10
    # Over all 60,000 images, as measured by others; 55,000 of them come close.
    assert dataset.mean == pytest.approx(0.28604, abs=2e-3)
    assert dataset.std == pytest.approx(0.35302, abs=2e-3)


def test_one_wrong_bit_in_a_real_file_is_found_and_healed(real_archives, no_network):
    load_fashion_mnist(real_archives)
    path = raw_folder(real_archives) / TRAIN_IMAGES
    content = np.fromfile(path, dtype=np.uint8)
    content[30_000_000] ^= 1
    content.tofile(path)
    load_fashion_mnist(real_archives)
    assert data.calculate_md5(path) == data.EXTRACTED_MD5[TRAIN_IMAGES]
