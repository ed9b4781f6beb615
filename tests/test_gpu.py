"""Trainings on a GPU, in processes of their own: cuBLAS reads its settings once per process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fashion.checkpoint import SUFFIX, load_weights
from fashion.cli import INTERRUPTED
from fashion.environment import choose_precision
from fashion.evaluation import predict_logits
from models import MODELS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PROJECT = Path(__file__).parent.parent
SHORT = ["--dataset", "synthetic", "--limit", "300", "--epochs", "2", "--batch-size", "100"]
INTERRUPTING = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import fashionmnist
from fashion import cli
from fashion.training import Trainer

def save_and_interrupt(trainer, path):
    save(trainer, path)
    raise KeyboardInterrupt

save, Trainer.save = Trainer.save, save_and_interrupt
sys.exit(cli.run(fashionmnist.parse_arguments, fashionmnist.main))
"""


def run(out, *options, script=PROJECT / "fashionmnist.py", status=0):
    """Train both networks briefly on the GPU, in a process of its own."""
    command = [sys.executable, script, *SHORT, "--device", "cuda", "--out", out, *options]
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def assert_same_weights(one, other):
    for name in MODELS:
        weights, others = (load_file(folder / f"{name}{SUFFIX}") for folder in (one, other))
        assert all(weights[key].equal(others[key]) for key in weights)


def test_run_uses_the_gpu_in_its_precision(tmp_path):
    assert torch.cuda.get_device_name() in run(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    precision = choose_precision("auto", torch.device("cuda"))
    assert metrics["device"] == torch.cuda.get_device_name()
    assert f"torch.{metrics['settings']['precision']}" == str(precision)


def test_deterministic_runs_repeat_and_resume_bit_for_bit(tmp_path):
    run(tmp_path / "one", "--deterministic")
    run(tmp_path / "other", "--deterministic")
    assert_same_weights(tmp_path / "one", tmp_path / "other")
    script, out = tmp_path / "interrupting.py", tmp_path / "resumed"
    script.write_text(INTERRUPTING)
    run(out, "--deterministic", script=script, status=INTERRUPTED)
    assert "after epoch 1 of 2" in run(out, "--deterministic", "--resume")
    assert_same_weights(tmp_path / "one", out)


@pytest.mark.parametrize("name", list(MODELS))
def test_gpu_and_cpu_predict_the_same(name, drawn):
    checkpoint = load_weights(PROJECT / "pretrained" / f"{name}{SUFFIX}", MODELS[name])
    images, statistics = drawn[1][0][:500], (checkpoint.mean, checkpoint.std)
    on_cpu = predict_logits(checkpoint.model, images, *statistics)
    on_gpu = predict_logits(checkpoint.model.cuda(), images.cuda(), *statistics)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=0.05, rtol=0.01)
