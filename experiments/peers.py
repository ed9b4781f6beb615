"""The same networks in other training loops, for experiments.benchmark --peers.

Each loop trains in a process of its own, on all cores, with the training images in memory, large
batches and Adam. Keras (with TensorFlow) and Flax (with JAX and Optax) are optional:

    pip install keras tensorflow-cpu jax flax optax
"""

import importlib.metadata
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.timing import SEED, call_in_own_process, use_torch_dropout
from fashion.data import CLASS_COUNT, IMAGE_SIZE, Dataset, normalize
from fashion.environment import autocast
from fashion.layers import KERNEL_SIZE, Network
from models import MODELS

MIN_EPOCHS = 4  # so that the median without the first epoch, which compiles, has three values
BATCH_SIZE = 512
LEARNING_RATE = 2e-3  # of Adam: twice its default, since the batches are large; not tuned
# Of batch norm, as in torch, whose momentum 0.1 is 0.9 elsewhere.
NORM = {"momentum": 0.9, "epsilon": 1e-5}

Epochs = Iterator[tuple[float, float]]  # seconds of training, and then the test accuracy


@dataclass(frozen=True)
class Images:
    """What a loop trains on and is tested on, in the memory of its process.

    Attributes:
        train, test: uint8 images (N, 28, 28) and their int64 labels (N,).
        mean, std: Statistics of the training pixels, scaled to [0, 1].
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    mean: float
    std: float

    def normalized(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return "train" or "test" with float32 images (N, 28, 28, 1)."""
        images, labels = getattr(self, part)
        scaled = (images[..., None].astype(np.float32) / 255 - self.mean) / self.std
        return scaled, labels

    def shuffled(self, epoch: int) -> np.ndarray:
        """Return the indices of an epoch's batches, int64 (steps, BATCH_SIZE)."""
        order = np.random.default_rng([SEED, epoch]).permutation(len(self.train[0]))
        return order[: len(order) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)


def build_network(name: str) -> Network:
    """Return the network that all loops train: that of the quick recipe."""
    return MODELS[name](**MODELS[name].quick_recipe.model)


def train_torch(name: str, images: Images, precision: torch.dtype) -> Epochs:
    """Train the classic loop made fast: one tensor, large batches, autocast, channels_last."""
    torch.manual_seed(SEED)
    model = build_network(name).to(memory_format=torch.channels_last)
    use_torch_dropout(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    (x, y), (test_x, test_y) = (
        tuple(map(torch.from_numpy, part)) for part in (images.train, images.test)
    )
    device = torch.device("cpu")
    for epoch in itertools.count():
        start = time.perf_counter()
        model.train()
        for chosen in map(torch.from_numpy, images.shuffled(epoch)):
            with autocast(device, precision):
                loss = F.cross_entropy(
                    model(normalize(x[chosen], images.mean, images.std)), y[chosen]
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        model.eval()
        with torch.inference_mode():
            guesses = [
                model(normalize(part, images.mean, images.std)).argmax(1)
                for part in test_x.split(BATCH_SIZE)
            ]
        yield seconds, (torch.cat(guesses) == test_y).double().mean().item()


def _convolutions(arguments: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the kernels and the padding of each convolution of a network with these arguments."""
    yield from zip(arguments.get("channels", ()), arguments.get("padding", ()), strict=True)


def train_keras(name: str, images: Images, precision: torch.dtype) -> Epochs:
    """Train with Keras on TensorFlow."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras
    from keras import layers

    keras.utils.set_random_seed(SEED)
    if precision == torch.bfloat16:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    arguments = build_network(name).arguments
    model = keras.Sequential([keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1))])
    for channels, pixels in _convolutions(arguments):
        padding = "same" if pixels else "valid"
        model.add(layers.Conv2D(channels, KERNEL_SIZE, padding=padding, use_bias=False))
        for layer in (layers.MaxPooling2D(), layers.BatchNormalization(**NORM), layers.ReLU()):
            model.add(layer)
    model.add(layers.Flatten())
    for width in arguments["widths"]:
        model.add(layers.Dense(width, use_bias="channels" in arguments))
        if "channels" not in arguments:
            model.add(layers.BatchNormalization(**NORM))
        model.add(layers.ReLU())
        model.add(layers.Dropout(arguments["dropout"]))
    model.add(layers.Dense(CLASS_COUNT, dtype="float32"))
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    (x, y), test = images.normalized("train"), images.normalized("test")
    while True:
        start = time.perf_counter()
        model.fit(x, y, BATCH_SIZE, verbose=0)
        seconds = time.perf_counter() - start
        yield seconds, model.evaluate(*test, BATCH_SIZE, verbose=0)[1]


def train_flax(name: str, images: Images, precision: torch.dtype) -> Epochs:
    """Train with Flax on JAX."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    dtype = jnp.bfloat16 if precision == torch.bfloat16 else jnp.float32
    arguments = build_network(name).arguments
    kernel = (KERNEL_SIZE, KERNEL_SIZE)

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.convs, self.norms = nnx.List(), nnx.List()
            self.linears, inputs, size = nnx.List(), 1, IMAGE_SIZE
            for channels, padding in _convolutions(arguments):
                self.convs.append(
                    nnx.Conv(
                        inputs,
                        channels,
                        kernel,
                        padding=padding,
                        use_bias=False,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                self.norms.append(nnx.BatchNorm(channels, dtype=dtype, rngs=rngs, **NORM))
                inputs, size = channels, (size + 2 * padding - KERNEL_SIZE + 1) // 2
            inputs *= size**2
            for width in arguments["widths"]:
                biased = bool(self.convs)
                self.linears.append(
                    nnx.Linear(inputs, width, use_bias=biased, dtype=dtype, rngs=rngs)
                )
                if not biased:
                    self.norms.append(nnx.BatchNorm(width, dtype=dtype, rngs=rngs, **NORM))
                inputs = width
            self.output = nnx.Linear(inputs, CLASS_COUNT, dtype=dtype, rngs=rngs)
            self.dropout = nnx.Dropout(arguments["dropout"], rngs=rngs)

        def __call__(self, x: Any) -> Any:
            norms = iter(self.norms)
            for conv in self.convs:
                x = nnx.max_pool(conv(x), (2, 2), strides=(2, 2))
                x = nnx.relu(next(norms)(x))
            x = x.reshape(len(x), -1)
            for linear in self.linears:
                x = linear(x) if self.convs else next(norms)(linear(x))
                x = self.dropout(nnx.relu(x))
            return self.output(x).astype(jnp.float32)

    model = Net(nnx.Rngs(SEED))
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)

    def compute_loss(model: Net, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: Any, y: Any) -> Any:
        loss, gradients = nnx.value_and_grad(compute_loss)(model, x, y)
        optimizer.update(model, gradients)
        return loss

    @nnx.jit
    def classify(model: Net, x: Any) -> Any:
        return model(x).argmax(1)

    (x, y), (test_x, test_y) = (map(jnp.asarray, images.normalized(p)) for p in ("train", "test"))
    for epoch in itertools.count():
        start = time.perf_counter()
        model.train()
        for chosen in images.shuffled(epoch):
            loss = step(model, optimizer, x[chosen], y[chosen])
        jax.block_until_ready(loss)
        seconds = time.perf_counter() - start
        model.eval()
        yield seconds, float((classify(model, test_x) == test_y).mean())


PEERS: dict[str, tuple[Callable[[str, Images, torch.dtype], Epochs], tuple[str, ...]]] = {
    "PyTorch, made fast": (train_torch, ("torch",)),
    "Keras on TensorFlow": (train_keras, ("keras", "tensorflow")),
    "Flax on JAX": (train_flax, ("flax", "jax", "optax")),
}


def find_versions(modules: Sequence[str]) -> dict[str, str]:
    """Return the version of the package of each module, or nothing if one is not installed."""
    packages = importlib.metadata.packages_distributions()
    if any(module not in packages for module in modules):
        return {}
    return {module: importlib.metadata.version(packages[module][0]) for module in modules}


def measure(
    peer: str,
    name: str,
    dataset: Dataset,
    precision: torch.dtype,
    target: float,
    max_seconds: float,
) -> dict[str, Any] | None:
    """Train a model in another loop until it reaches an accuracy, in a process of its own.

    Args:
        peer: Key of PEERS.
        name: Name of the model.
        dataset: Training and test images.
        precision: torch.bfloat16 for the library's mixed precision, or torch.float32.
        target: Test accuracy to reach.
        max_seconds: Time of training after which to give up.

    Returns:
        images_per_second, the median over the epochs without the first; seconds to the target,
        with the first epoch counted as long as the median of the others, None if it is not
        reached; the highest test_accuracy of an epoch; epochs; versions. None if the library is not
        installed.
    """
    loop, modules = PEERS[peer]
    versions = find_versions(modules)
    if not versions:
        return None
    # All loops leave the last, incomplete batch out.
    count = len(dataset.train_indices) // BATCH_SIZE * BATCH_SIZE
    chosen = dataset.train_indices[:count]
    images = Images(
        (dataset.images[chosen].cpu().numpy(), dataset.labels[chosen].cpu().numpy()),
        (dataset.test_images.cpu().numpy(), dataset.test_labels.cpu().numpy()),
        dataset.mean,
        dataset.std,
    )
    epochs = call_in_own_process(_train_until, loop, name, images, precision, target, max_seconds)
    seconds, accuracies = zip(*epochs, strict=True)
    epoch_seconds = statistics.median(seconds[1:])
    reached = next((n for n, value in enumerate(accuracies, 1) if value >= target), None)
    return {
        "images_per_second": count / epoch_seconds,
        "seconds_to_target": reached and epoch_seconds + sum(seconds[1:reached]),
        "test_accuracy": max(accuracies),
        "epochs": len(epochs),
        "versions": versions,
    }


def _train_until(
    loop: Callable[..., Epochs],
    name: str,
    images: Images,
    precision: torch.dtype,
    target: float,
    max_seconds: float,
) -> list[tuple[float, float]]:
    """Return the seconds and test accuracy of each epoch, up to the one that reaches the target.

    The last epoch begins before max_seconds have passed.
    """
    epochs: list[tuple[float, float]] = []
    for epoch in loop(name, images, precision):
        epochs.append(epoch)
        seconds, accuracies = zip(*epochs, strict=True)
        done = max(accuracies) >= target or sum(seconds) >= max_seconds
        if done and len(epochs) >= MIN_EPOCHS:
            break
    return epochs
