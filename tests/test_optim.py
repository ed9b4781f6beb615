"""Muon and the learning-rate schedule, against SciPy, NumPy and numbers worked out by hand."""

from dataclasses import replace

from fashion import optim
from fashion.script import UserError

import numpy as np
import pytest
import torch
from scipy.linalg import svd
from torch import nn

from models import MODELS

RECIPE = MODELS["cnn"].recipe


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_orthogonalize_keeps_singular_vectors_and_brings_values_near_one(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    result = optim.orthogonalize(matrix).numpy()
    left, values, right = svd(matrix.numpy(), full_matrices=False)
    inner = left.T @ result @ right.T  # diagonal if the singular vectors are the same
    assert np.allclose(inner, np.diag(inner.diagonal()), atol=1e-9)
    large = values / np.linalg.norm(values) > 0.02
    assert (inner.diagonal()[large] > 0.68).all() and (inner.diagonal() < 1.21).all()


def test_muon_uses_nesterov_momentum_and_scales_tall_updates():
    weight = nn.Parameter(torch.zeros(8, 2, 1, 1, dtype=torch.float64))
    muon = optim.Muon([weight], 0.1, torch.float64)
    expected, momentum = torch.zeros(8, 2, dtype=torch.float64), torch.zeros(8, 2).double()
    for _ in range(3):
        gradient = torch.randn(8, 2, dtype=torch.float64)
        weight.grad = gradient.view(8, 2, 1, 1).clone()
        muon.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * momentum
        expected -= 0.1 * 2 * optim.orthogonalize(update)  # the square root of 8 / 2
    assert torch.allclose(weight.view(8, 2), expected)


@pytest.mark.parametrize("name", MODELS)
def test_muon_trains_hidden_weights_and_adamw_all_others(name):
    model = MODELS[name].network()
    muon, adamw = optim.make_optimizers(model, RECIPE, torch.float32)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    assert isinstance(muon, optim.Muon)
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(p) for p in matrices[:-1]]
    others = [p for p in model.parameters() if p.ndim == 1] + [matrices[-1]]
    assert {id(p) for p in adamw.param_groups[0]["params"]} == {id(p) for p in others}
    assert adamw.param_groups[0]["peak"] == pytest.approx(0.3 * RECIPE.learning_rate)
    assert adamw.param_groups[0]["weight_decay"] == RECIPE.weight_decay


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_other_optimizers_train_all_parameters(name, kind):
    model = MODELS["ffn"].network()
    (only,) = optim.make_optimizers(model, replace(RECIPE, optimizer=name), torch.float32)
    assert type(only) is kind
    assert len(only.param_groups[0]["params"]) == len(list(model.parameters()))
    assert only.param_groups[0]["peak"] == RECIPE.learning_rate


def test_unknown_optimizer_is_an_error():
    with pytest.raises(UserError, match="unknown optimizer 'adam': use muon, adamw or sgd"):
        optim.make_optimizers(MODELS["ffn"].network(), replace(RECIPE, optimizer="adam"), None)


def test_learning_rate_rises_to_the_peak_and_falls_to_zero():
    rates = [optim.schedule(step, 10, 0.2) for step in range(11)]
    rising, falling = [1 / 3, 2 / 3], [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert rates == pytest.approx([*rising, *falling])


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert optim.schedule(0, 5, 0) == 1
