from dataclasses import replace

import numpy as np
import torch

import synthetic
from training import RECIPES, Trainer, evaluate, predict_logits


def test_counts_shapes_and_balance(drawn):
    (images, labels), (test_images, test_labels) = drawn
    assert images.shape == (12_000, 28, 28) and images.dtype == torch.uint8
    assert test_images.shape == (2_000, 28, 28)
    assert torch.bincount(labels).tolist() == [1_200] * 10
    assert torch.bincount(test_labels).tolist() == [200] * 10


def test_same_seed_same_picture():
    first, again, other = (
        synthetic.draw_garment(8, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


def test_no_test_image_is_among_the_training_images(drawn):
    (images, _), (test_images, _) = drawn
    seen = {image.numpy().tobytes() for image in images}
    assert not any(image.numpy().tobytes() in seen for image in test_images)


def test_cnn_beats_ffn_and_neither_reaches_99_percent(tiny_dataset, drawn):
    (_, labels), (test_images, test_labels) = drawn
    dataset = replace(tiny_dataset, train_indices=torch.arange(len(labels) // 2))
    accuracy = {}
    for name in ("ffn", "cnn"):
        recipe = replace(RECIPES[name], epochs=4, batch_size=64)
        trainer = Trainer(name, dataset, recipe, seed=0, precision=torch.float32)
        while not trainer.finished:
            trainer.train_epoch()
        logits = predict_logits(
            trainer.averaged, test_images, dataset.mean, dataset.std, torch.float32
        )
        accuracy[name] = evaluate(logits, test_labels).accuracy
    assert 0.6 < accuracy["ffn"] < accuracy["cnn"] < 0.99
