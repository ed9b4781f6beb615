"""The sample, the split, pixel statistics and augmentation."""

from dataclasses import replace

from fashion import data
from fashion.data import Views

import numpy as np
import pytest
import torch

from models import MODELS

RECIPE = replace(MODELS["cnn"].recipe, max_shift=1, shift_share=1, flip=True)


def test_sample_is_named_in_the_title(sample):
    assert sample.title == "Fashion-MNIST sample, 10,000 images"
    assert (len(sample.images), len(sample.test_images)) == (10_000, 2_000)


def test_tiles_are_read_row_by_row():
    # Ten bands of one row with two tiles each; the first pixel of each tile is its number.
    picture = np.zeros((280, 56), np.uint8)
    picture[::28, ::28] = np.arange(20).reshape(10, 2)
    images, labels = data.read_tiles(picture)
    assert images[:, 0, 0].tolist() == list(range(20))
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]


def test_real_dataset_has_the_published_statistics_and_contains_the_sample(real, sample):
    dataset = data.load_full(real)
    assert dataset.title == "Fashion-MNIST"
    sizes = len(dataset.train), len(dataset.validation), len(dataset.test_images)
    assert sizes == (55_000, 5_000, 10_000)
    assert torch.bincount(dataset.labels[dataset.validation]).tolist() == [500] * 10
    # The mean and deviation of all 60,000 images, which others use.
    assert data.pixel_statistics(dataset.images) == pytest.approx((0.28604, 0.35302), abs=1e-5)
    # The sample holds the first images of each class.
    parts = (
        (sample.images, sample.labels, dataset.images, dataset.labels, 1000),
        (sample.test_images, sample.test_labels, dataset.test_images, dataset.test_labels, 200),
    )
    for images, labels, all_images, all_labels, count in parts:
        for label in range(10):
            first = all_images[all_labels == label][:count]
            assert torch.equal(images[labels == label], first)


def test_split_is_balanced_disjoint_and_the_same_each_time(sample):
    again = data.load_sample()
    assert again.validation.equal(sample.validation) and again.train.equal(sample.train)
    everything = torch.cat([sample.train, sample.validation]).sort().values
    assert torch.equal(everything, torch.arange(10_000))
    assert torch.bincount(sample.labels[sample.validation]).tolist() == [83] * 10


def test_limit_keeps_that_many_images_of_all_classes(sample):
    limited = data.load_sample(limit=500)
    assert len(limited.train) == 500 and len(limited.labels[limited.train].unique()) == 10
    assert torch.equal(limited.validation, sample.validation)
    assert limited.title == "Fashion-MNIST sample, 10,000 images, 500 to train on"


def test_normalize():
    images = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    assert data.normalize(images, 0.5, 0.25).tolist() == [[[[-2, 2]]]]


def test_an_image_shows_all_its_views_before_one_repeats():
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 10, 5] = 255
    views = Views(image, RECIPE)
    places = set()
    for epoch in range(18):
        places.add(tuple(views.show(torch.tensor([0]), epoch)[0].nonzero()[0].tolist()))
    originals = {(10 + y, 5 + x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    mirrored = {(row, 27 - column) for row, column in originals}
    assert places == originals | mirrored


def test_shifts_add_black_pixels_at_the_border():
    images = torch.full((50, 28, 28), 255, dtype=torch.uint8)
    shown = Views(images, RECIPE).show(torch.arange(50), 0)
    assert {int((image == 0).sum()) for image in shown} == {0, 28, 28 + 27}


def test_a_share_of_the_images_stays_in_the_centre():
    images = torch.full((3000, 28, 28), 255, dtype=torch.uint8)
    views = Views(images, replace(RECIPE, shift_share=0.3, flip=False))
    shown = views.show(torch.arange(3000), 0)
    centred = (shown == 255).flatten(1).all(1).float().mean()
    # Seven tenths are not shifted, and a ninth of the others by nothing.
    assert centred == pytest.approx(0.7 + 0.3 / 9, abs=0.03)


def test_without_augmentation_images_stay_as_they_are(tiny):
    views = Views(tiny.images, replace(RECIPE, max_shift=0, flip=False))
    assert torch.equal(views.show(tiny.train, 3), tiny.images[tiny.train])
