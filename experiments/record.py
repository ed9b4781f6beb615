"""Train both networks for accuracy rather than speed: wider, longer, and taught by deeper ones.

    python -m experiments.record

Trains three deeper networks, the teachers, on images of which half are partly covered by another
one. Wider versions of both networks then learn to predict what the teachers do for such images, on
average (knowledge distillation). Writes the same files as fashionmnist.py to the folder
outputs/record. Takes about half an hour on an H100 with three seeds, and would take days on two CPU
cores. The same command continues after an interruption.
"""

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fashion import report, runs
from fashion.data import CLASSES, SIZE, Dataset, Views, normalize
from fashion.device import choose_precision, environment
from fashion.evaluation import evaluate, predict
from fashion.optim import make_optimizers, schedule
from fashion.options import Parser
from fashion.recipe import Recipe
from fashion.runs import Run
from fashion.script import run

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.shared import start
from models import MODELS

TEACHERS = 3
MIXED = 0.5  # share of the images that are partly covered; 0.8 was no better

TEACHER = Recipe(epochs=40, batch_size=512, learning_rate=0.015)
# Chosen for accuracy alone, on validation images.
WIDER_FFN = {"widths": (1024, 512, 256, 128), "dropout": 0.1}  # more dropout was no better
WIDER_CNN = {"channels": (128, 256, 512), "dropout": 0.3}
STUDENTS = {
    "ffn": Recipe(epochs=300, batch_size=2048, learning_rate=0.03, model=WIDER_FFN),
    "cnn": Recipe(epochs=80, batch_size=512, learning_rate=0.015, model=WIDER_CNN),
}


class Residual(nn.Sequential):
    """Layers whose result is added to their input (He et al., arXiv:1512.03385)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return feature maps of the same shape."""
        return maps + super().forward(maps)


class Teacher(nn.Sequential):
    """Residual convolutions at three resolutions, 28, 14 and 7 pixels, and one linear layer."""

    def __init__(self, channels: Sequence[int] = (64, 128, 256), depth: int = 2) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([1, *channels]):
            layers += convolution(inputs, outputs)
            layers += [Residual(*convolution(outputs, outputs)) for _ in range(depth)]
            layers.append(nn.MaxPool2d(2))
        layers[-1] = nn.AdaptiveAvgPool2d(1)  # the mean of each map, in place of the last pooling
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels[-1], len(CLASSES)))


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """Return the layers of a convolution that keeps the size of its feature maps."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cover random boxes of images by the same part of the image before it in the batch.

    Returns the images and the share of each class in their areas (N, 10). The boxes are those of
    CutMix (Yun et al., arXiv:1905.04899).
    """
    count = len(images)
    # The area is uniformly distributed, apart from what lies outside the image.
    sides = SIZE * torch.rand(count, 1).sqrt() * (torch.rand(count, 1) < MIXED)
    centres = SIZE * torch.rand(count, 2)
    first, last = ((centres + half)[..., None].round() for half in (-sides / 2, sides / 2))
    pixels = torch.arange(SIZE)
    rows, columns = ((first <= pixels) & (pixels < last)).unbind(1)
    inside = (rows[:, :, None] & columns[:, None, :]).to(images.device)
    covered = inside.float().mean((1, 2))[:, None]
    shares = F.one_hot(labels, len(CLASSES)).float()
    shares = shares * (1 - covered) + shares.roll(1, 0) * covered
    return torch.where(inside, images.roll(1, 0), images), shares


def train(
    name: str, recipe: Recipe, seed: int, dataset: Dataset, folder: Path, teachers: Sequence[Run]
) -> Run:
    """Train as fashionmnist.train does, but on mixed images, and with teachers if there are any.

    Teachers and network see the same image, as Beyer et al. recommend (arXiv:2106.05237).
    """
    device = dataset.images.device
    dtype = choose_precision("auto", device)
    torch.manual_seed(seed)
    network = Teacher if name == "teacher" else MODELS[name].network
    model = network(**recipe.model).to(device).to(memory_format=torch.channels_last)
    optimizers = make_optimizers(model, recipe, dtype)
    views, statistics = Views(dataset.images, recipe), (dataset.mean, dataset.std)
    batch_size = min(recipe.batch_size, len(dataset.train))
    steps_per_epoch = len(dataset.train) // batch_size
    steps = recipe.epochs * steps_per_epoch

    this = Run(name, seed, recipe, model, environment(device) | {"precision": str(dtype)[6:]})
    key = runs.key(this, dataset, sys.modules[__name__])  # all of this file matters
    this.path = folder / f"{name}-seed{seed}-{key}.pt"
    runs.resume(this, *optimizers)
    if not this.finished:
        report.print_start(this, steps_per_epoch, batch_size)
    for epoch in range(len(this.history), recipe.epochs):
        torch.manual_seed(10_000 * seed + epoch + 1)
        begin, step, losses, correct = time.perf_counter(), epoch * steps_per_epoch, [], 0
        order = dataset.train[torch.randperm(len(dataset.train)).to(device)]
        model.train()
        for chosen in order.split(batch_size)[:steps_per_epoch]:
            images, target = mix(views.show(chosen, epoch), dataset.labels[chosen])
            with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
                if teachers:
                    taught = [predict(teacher.model, images, *statistics) for teacher in teachers]
                    target = torch.stack(taught).softmax(2).mean(0)
                logits = model(normalize(images, *statistics))
                loss = F.cross_entropy(logits, target)
            loss.backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule(step, steps, recipe.warmup)
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            losses.append(loss.detach())
            correct += (logits.argmax(1) == target.argmax(1)).sum()
        validation_loss, validation_accuracy = evaluate(model, dataset)
        this.history.append(
            {
                "epoch": epoch + 1,
                "train_loss": torch.stack(losses).mean().item(),
                "train_accuracy": int(correct) / (steps_per_epoch * batch_size),
                "validation_loss": validation_loss,
                "validation_accuracy": validation_accuracy,
                "learning_rate": optimizers[0].param_groups[0]["lr"],
                "seconds": time.perf_counter() - begin,
            }
        )
        report.print_epoch(this)
        runs.save(this, *(() if this.finished else optimizers))
    return this


def main() -> None:
    """Train the teachers, then both networks with all seeds, and write the results."""
    parser = Parser("Train the networks for accuracy.", prog="-m experiments.record")
    args, dataset = start(parser, "record")
    torch.backends.cudnn.benchmark = True  # choose the fastest algorithms, for a long training
    folder = args.out / "runs"
    teachers = [train("teacher", TEACHER, seed, dataset, folder, []) for seed in range(TEACHERS)]
    series: dict[str, list[Run]] = {name: [] for name in STUDENTS}
    for name, recipe in STUDENTS.items():
        for seed in range(args.seeds):
            series[name].append(train(name, recipe, seed, dataset, folder, teachers))
            series[name][-1].score(dataset)
        report.write_network(args.out, series[name][0], dataset)
    report.write_results(args.out, series, dataset)


if __name__ == "__main__":
    sys.exit(run(main, "; the same command continues"))
