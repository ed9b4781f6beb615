"""The training loops that experiments.benchmark compares with that of this project.

Each trains a torch module and yields, after each epoch, the seconds and the test accuracy.
"""

import itertools
import os
import pickle
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fashion.data import SIZE, Dataset, normalize
from fashion.device import choose_precision, keep_memory
from fashion.evaluation import accuracy, predict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

CLASSIC_BATCH_SIZE, CLASSIC_LEARNING_RATE = 64, 1e-3  # Adam's default
BATCH_SIZE = 512
LEARNING_RATE = 2e-3  # of Adam: twice its default, since the batches are large; not tuned
MIN_EPOCHS = 4  # so that the median without the first epoch, which compiles, has three values
NORM = {"momentum": 0.9, "epsilon": 1e-5}  # of batch norm, as in torch, where momentum is 0.1

Epochs = Iterator[tuple[float, float]]  # seconds of training, test accuracy after it


class Pictures(datasets.FashionMNIST):
    """torchvision's dataset with the transforms of tutorials, but of images that are in memory."""

    def __init__(self, dataset: Dataset) -> None:
        self.data = dataset.images[dataset.train].cpu()
        self.targets = dataset.labels[dataset.train].cpu()
        steps = transforms.ToTensor(), transforms.Normalize((dataset.mean,), (dataset.std,))
        self.transform, self.target_transform = transforms.Compose(steps), None


def classic_loop(model: nn.Module, dataset: Dataset) -> Epochs:
    """Train as most tutorials do: Dataset, DataLoader, float32 and Adam."""
    device = dataset.images.device
    loader: DataLoader = DataLoader(Pictures(dataset), CLASSIC_BATCH_SIZE, shuffle=True)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=CLASSIC_LEARNING_RATE)
    while True:
        start = time.perf_counter()
        model.train()
        for images, labels in loader:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for a GPU
        yield time.perf_counter() - start, measure_accuracy(model, dataset)


def fast_loop(model: nn.Module, dataset: Dataset, dtype: torch.dtype) -> Epochs:
    """Train the classic loop made fast: one tensor, large batches, autocast, channels_last."""
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    while True:
        start = time.perf_counter()
        model.train()
        for chosen in dataset.train[torch.randperm(len(dataset.train))].split(BATCH_SIZE):
            images = normalize(dataset.images[chosen], dataset.mean, dataset.std)
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                loss = F.cross_entropy(model(images), dataset.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield time.perf_counter() - start, measure_accuracy(model, dataset)


def keras_loop(model: nn.Module, dataset: Dataset, dtype: torch.dtype) -> Epochs:
    """Train with Keras on TensorFlow."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras  # optional
    from keras import layers

    def convolution(layer: nn.Conv2d) -> Any:
        padding, biased = "same" if layer.padding[0] else "valid", layer.bias is not None
        return layers.Conv2D(layer.out_channels, 3, padding=padding, use_bias=biased)

    translations: dict[Any, Any] = {
        nn.Conv2d: convolution,
        nn.Linear: lambda layer: layers.Dense(layer.out_features, use_bias=layer.bias is not None),
        nn.BatchNorm1d: lambda _: layers.BatchNormalization(**NORM),
        nn.BatchNorm2d: lambda _: layers.BatchNormalization(**NORM),
        nn.MaxPool2d: lambda _: layers.MaxPooling2D(),
        nn.Dropout: lambda layer: layers.Dropout(layer.p),
        nn.ReLU: lambda _: layers.ReLU(),
        nn.Flatten: lambda _: layers.Flatten(),
    }
    keras.utils.set_random_seed(0)
    if dtype == torch.bfloat16:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    inputs, outputs = keras.Input((SIZE, SIZE, 1)), layers.Activation("linear", dtype="float32")
    network = keras.Sequential([inputs, *translate(model, translations), outputs])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(LEARNING_RATE), loss)
    x, y = to_arrays(dataset.images[dataset.train], dataset.labels[dataset.train], dataset)
    test_x, test_y = to_arrays(dataset.test_images, dataset.test_labels, dataset)
    while True:
        start = time.perf_counter()
        network.fit(x, y, BATCH_SIZE, verbose=0)
        seconds = time.perf_counter() - start
        logits = network.predict(test_x, BATCH_SIZE, verbose=0)
        yield seconds, int((logits.argmax(1) == test_y).sum()) / len(test_y)


def flax_loop(model: nn.Module, dataset: Dataset, dtype: torch.dtype) -> Epochs:
    """Train with Flax on JAX."""
    import jax  # optional
    import jax.numpy as jnp
    import optax
    from flax import nnx

    rngs = nnx.Rngs(0)
    common = {"dtype": jnp.bfloat16 if dtype == torch.bfloat16 else jnp.float32, "rngs": rngs}

    def convolution(layer: nn.Conv2d) -> Any:
        sizes, biased = (layer.in_channels, layer.out_channels, (3, 3)), layer.bias is not None
        return nnx.Conv(*sizes, padding=layer.padding[0], use_bias=biased, **common)

    def linear(layer: nn.Linear) -> Any:
        sizes, biased = (layer.in_features, layer.out_features), layer.bias is not None
        return nnx.Linear(*sizes, use_bias=biased, **common)

    translations: dict[Any, Any] = {
        nn.Conv2d: convolution,
        nn.Linear: linear,
        nn.BatchNorm1d: lambda layer: nnx.BatchNorm(layer.num_features, **NORM, **common),
        nn.BatchNorm2d: lambda layer: nnx.BatchNorm(layer.num_features, **NORM, **common),
        nn.MaxPool2d: lambda _: partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)),
        nn.Dropout: lambda layer: nnx.Dropout(layer.p, rngs=rngs),
        nn.ReLU: lambda _: nnx.relu,
        nn.Flatten: lambda _: lambda maps: maps.reshape(len(maps), -1),
    }
    network = nnx.Sequential(*translate(model, translations))
    optimizer = nnx.Optimizer(network, optax.adam(LEARNING_RATE), wrt=nnx.Param)

    def compute_loss(network: Any, x: Any, y: Any) -> Any:
        logits = network(x).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @nnx.jit
    def step(network: Any, optimizer: Any, x: Any, y: Any) -> Any:
        loss, gradients = nnx.value_and_grad(compute_loss)(network, x, y)
        optimizer.update(network, gradients)
        return loss

    classify = nnx.jit(lambda network, x: network(x).argmax(1))
    train = to_arrays(dataset.images[dataset.train], dataset.labels[dataset.train], dataset)
    test = to_arrays(dataset.test_images, dataset.test_labels, dataset)
    x, y, test_x, test_y = map(jnp.asarray, (*train, *test))
    for epoch in itertools.count():
        start = time.perf_counter()
        network.train()
        order = np.random.default_rng(epoch).permutation(len(x))
        for chosen in order.reshape(-1, BATCH_SIZE):
            loss = step(network, optimizer, x[chosen], y[chosen])
        jax.block_until_ready(loss)
        seconds = time.perf_counter() - start
        network.eval()
        yield seconds, int((classify(network, test_x) == test_y).sum()) / len(test_y)


PEERS: dict[str, Callable[[nn.Module, Dataset, torch.dtype], Epochs]] = {
    "PyTorch, made fast": fast_loop,
    "Keras on TensorFlow": keras_loop,
    "Flax on JAX": flax_loop,
}


def translate(model: nn.Module, translations: dict[Any, Any]) -> list[Any]:
    """Return another library's layers for those of a network that applies them one by one."""
    layers = [layer for layer in model.modules() if not list(layer.children())]
    return [translations[type(layer)](layer) for layer in layers]


def to_arrays(images: Tensor, labels: Tensor, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return normalized images (N, 28, 28, 1) and labels (N,)."""
    return normalize(images, dataset.mean, dataset.std).movedim(1, 3).numpy(), labels.numpy()


def measure_accuracy(model: nn.Module, dataset: Dataset) -> float:
    """Return the test accuracy."""
    logits = predict(model, dataset.test_images, dataset.mean, dataset.std)
    return accuracy(logits, dataset.test_labels)


def train_peer(job: bytes) -> list[tuple[float, float]]:
    """Return the epochs of a loop until it reaches a test accuracy or a limit in seconds.

    The first epoch, in which libraries compile, counts as long as the median of the others.
    """
    keep_memory()
    loop, model, dataset, target, limit = pickle.loads(job)
    torch.manual_seed(0)
    epochs: list[tuple[float, float]] = []
    for epoch in loop(model, dataset, choose_precision("auto", torch.device("cpu"))):
        epochs.append(epoch)
        seconds, reached = zip(*epochs, strict=True)
        if len(epochs) >= MIN_EPOCHS and (max(reached) >= target or sum(seconds) >= limit):
            break
    return [(statistics.median(seconds[1:]), reached[0]), *epochs[1:]]
