import statistics
from dataclasses import replace
from types import SimpleNamespace

import torch

from experiments import timing
from fashion.data import FASHION_MNIST, load_dataset
from fashion.training import Trainer
from models import MODELS


def test_median_step_excludes_the_warm_up_and_spans_epochs(small_folder, monkeypatch):
    recipe = replace(MODELS["ffn"].recipe, batch_size=50)
    dataset = load_dataset(FASHION_MNIST, small_folder)
    trainer = Trainer(MODELS["ffn"], dataset, recipe, 0, torch.float32)
    assert trainer.steps_per_epoch == 4
    clock = 0.0
    seconds = [500, 500, 500, 1, 2, 9, 4, 8, 3, 7]
    pending = iter(seconds)

    def step(images, labels):
        nonlocal clock
        clock += next(pending)
        return Trainer.step(trainer, images, labels)

    monkeypatch.setattr(trainer, "step", step)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock))
    assert timing.time_steps(trainer, 7) == statistics.median(seconds[3:])
    assert next(pending, None) is None
