import logging

import pytest
import torch

from fashion import data, synthetic
from fashion.data import load_dataset
from fashion.files import RunError


@pytest.fixture
def small_drawing(monkeypatch):
    """Draw a stand-in of 240 and 60 images."""
    monkeypatch.setattr(synthetic, "TRAIN_COUNT", 240)
    monkeypatch.setattr(synthetic, "TEST_COUNT", 60)


# Choosing and loading


def test_auto_draws_the_stand_in_without_files_and_network(
    tmp_path, no_network, small_drawing, caplog
):
    dataset = load_dataset("auto", tmp_path)
    assert dataset.name == "synthetic"
    assert dataset.title == "synthetic images, not Fashion-MNIST"
    assert len(dataset.train_indices) == 220 and len(dataset.validation_indices) == 20
    assert len(dataset.test_images) == 60
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "synthetic images" in record.getMessage()


@pytest.mark.parametrize("choice", ["auto", "fashion-mnist"])
def test_stand_in_never_replaces_a_damaged_file(small_folder, choice, caplog):
    raw = small_folder / "FashionMNIST" / "raw"
    for path in raw.iterdir():
        path.unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"half a file")
    with pytest.raises(RunError, match="t10k-labels-idx1-ubyte"):
        load_dataset(choice, small_folder)
    assert not caplog.records


def test_synthetic_uses_neither_disk_nor_network(tmp_path, small_drawing):
    assert load_dataset("synthetic", tmp_path / "nowhere").name == "synthetic"
    assert not (tmp_path / "nowhere").exists()


def test_limit_keeps_the_first_images_and_the_whole_validation_part(small_folder):
    whole, limited = (load_dataset("auto", small_folder, limit=limit) for limit in (None, 50))
    assert limited.train_indices.equal(whole.train_indices[:50])
    assert limited.validation_indices.equal(whole.validation_indices)


def test_dataset_moves_to_a_device_with_all_its_tensors(small_folder):
    moved = load_dataset("auto", small_folder).to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6 and all(tensor.is_meta for tensor in tensors)


def test_real_dataset_has_its_known_sizes_and_statistics(real_archives, no_network):
    dataset = load_dataset("fashion-mnist", real_archives)
    assert dataset.images.shape == (60_000, 28, 28)
    assert dataset.test_images.shape == (10_000, 28, 28)
    assert len(dataset.train_indices) == 55_000
    assert torch.bincount(dataset.labels[dataset.validation_indices]).tolist() == [500] * 10
    assert torch.bincount(dataset.test_labels).tolist() == [1000] * 10
    # The commonly used values for all 60,000 images; those of 55,000 are close.
    assert dataset.mean == pytest.approx(0.28604, abs=2e-3)
    assert dataset.std == pytest.approx(0.35302, abs=2e-3)


# Splitting and normalizing


def test_split_is_balanced_complete_and_independent_of_the_seed():
    labels = torch.arange(60_000) % 10
    train, validation = data.split_indices(labels)
    assert torch.bincount(labels[validation]).tolist() == [500] * 10
    assert torch.cat([train, validation]).sort().values.equal(torch.arange(60_000))
    torch.manual_seed(1234)
    assert data.split_indices(labels)[1].equal(validation)
    train, larger = data.split_indices(labels, 1 / 4)
    assert torch.bincount(labels[larger]).tolist() == [1500] * 10
    assert torch.isin(validation, larger).all() and not torch.isin(train, larger).any()


def test_mean_and_deviation_are_those_of_the_training_part(small_folder):
    dataset = load_dataset("auto", small_folder)
    pixels = dataset.images[dataset.train_indices].double() / 255
    assert dataset.mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert dataset.std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)
    normal = data.normalize(dataset.images[dataset.train_indices], dataset.mean, dataset.std)
    assert normal.shape == (220, 1, 28, 28) and normal.dtype == torch.float32
    assert normal.mean().item() == pytest.approx(0, abs=1e-5)
    assert normal.std().item() == pytest.approx(1, abs=1e-4)


# Augmenting


def test_views_are_all_shifts_and_their_mirror_images():
    image = torch.randint(1, 256, (28, 28), dtype=torch.uint8)
    padded = data.pad(image[None], 2)
    views = torch.arange(data.view_count(2, flip=True))
    batch = data.augment(padded, torch.zeros_like(views), views, 1.0, True, torch.Generator())
    crops = [padded[0, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
    expected = [copy for crop in crops for copy in (crop, crop.flip(1))]
    assert batch.equal(torch.stack(expected))


@pytest.mark.parametrize(
    ("shift", "flip"), [(0, False), (0, True), (1, False), (1, True), (2, True)]
)
def test_images_go_through_all_views_in_different_orders(shift, flip):
    views = data.view_count(shift, flip)
    generator = torch.Generator().manual_seed(0)
    first, steps = data.schedule_views(300, views, generator)
    shown = (first + torch.arange(views)[:, None] * steps) % views
    assert shown.sort(dim=0).values.equal(torch.arange(views)[:, None].expand(-1, 300))
    if views > 2:
        assert len(shown.unique(dim=1).T) > views
    if flip:  # mirrored in every other epoch
        assert ((shown[1:] - shown[:-1]) % 2 == 1).all()


@pytest.mark.parametrize("shifted", [0, 0.3, 1])
def test_only_the_given_share_is_shifted(shifted):
    image = torch.randint(1, 256, (28, 28), dtype=torch.uint8)
    padded, indices = data.pad(image[None], 1), torch.zeros(9000, dtype=torch.int64)
    generator, views = torch.Generator().manual_seed(0), torch.arange(9000) % 9
    batch = data.augment(padded, indices, views, shifted, False, generator)
    unmoved = (batch == image).all((1, 2)).float().mean().item()
    # One of the nine offsets is zero.
    assert unmoved == pytest.approx(1 - shifted * 8 / 9, abs=0.03)


def test_images_that_are_not_shifted_are_mirrored_all_the_same():
    image = torch.randint(1, 256, (28, 28), dtype=torch.uint8)
    views = torch.arange(18)
    batch = data.augment(
        data.pad(image[None], 1), torch.zeros_like(views), views, 0.0, True, torch.Generator()
    )
    assert batch.equal(torch.stack([image, image.flip(1)] * 9))


def test_without_shift_and_flip_augmentation_only_selects():
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    indices = torch.tensor([3, 1, 3])
    views = torch.zeros_like(indices)
    batch = data.augment(data.pad(images, 0), indices, views, 1.0, False, torch.Generator())
    assert batch.equal(images[indices])


def test_random_numbers_come_from_the_given_generator_alone():
    before = torch.get_rng_state()
    images = torch.zeros(5, 30, 30, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(3)
    views, _ = data.schedule_views(5, 18, generator)
    data.augment(images, torch.arange(5), views, 0.5, True, generator)
    assert torch.get_rng_state().equal(before)
