import numpy as np
import torch
from torch import nn

from fashion import synthetic
from fashion.data import normalize, pixel_statistics


def test_shapes_types_and_balance_of_classes(drawn):
    for images, labels in drawn:
        assert images.shape == (len(labels), 28, 28)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert torch.bincount(labels).tolist() == [len(labels) // 10] * 10


def test_same_seed_gives_same_image():
    first, again, other = (
        synthetic.draw_garment(8, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


def test_no_test_image_is_in_the_training_set(drawn):
    (images, _), (test_images, _) = drawn
    seen = {image.numpy().tobytes() for image in images}
    assert not any(image.numpy().tobytes() in seen for image in test_images)


def train_and_score(network, drawn):
    """Return the test accuracy after 4 epochs on 4,000 images."""
    (images, labels), (test_images, test_labels) = drawn
    statistics = pixel_statistics(images)
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(4):
        for batch in torch.randperm(4_000).split(50):
            logits = network(normalize(images[batch], *statistics))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        predictions = network(normalize(test_images, *statistics)).argmax(1)
    return (predictions == test_labels).float().mean().item()


def test_convolution_helps_and_the_task_is_not_trivial(drawn):
    dense = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    convolutional = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 10)),
    )
    without, with_convolution = (train_and_score(net, drawn) for net in (dense, convolutional))
    assert 0.6 < without < with_convolution - 0.02 < 0.9
