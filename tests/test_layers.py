import pytest
import torch
from torch import nn

from layers import Dropout, random_bytes


def test_bytes_are_all_equally_likely_and_unrelated():
    draws = random_bytes(torch.Size((512, 1001)))
    assert draws.shape == (512, 1001) and draws.dtype == torch.uint8
    counts = torch.bincount(draws.flatten().int(), minlength=256).double()
    expected = draws.numel() / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 350  # 255 degrees of freedom: a fair one exceeds 350 once in 10,000
    # No bit of a byte, and no neighbour, tells another.
    bits = (draws[..., None] >> torch.arange(8)) & 1
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < 0.005
    values = draws.double() - 127.5
    for distance in range(1, 9):
        product = (values[:, distance:] * values[:, :-distance]).mean() / values.square().mean()
        assert product.abs() < 0.01


@pytest.mark.parametrize("p", [0.0, 0.25, 0.3, 0.5, 0.9, 0.999])
def test_share_of_zeros_and_mean_are_as_promised(p):
    outputs = Dropout(p)(torch.ones(1000, 1001))
    assert (outputs == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert outputs.mean().item() == pytest.approx(1, abs=0.1 if p > 0.9 else 0.01)
    assert len(outputs.unique()) == (2 if p else 1)


def test_evaluation_changes_nothing_and_draws_nothing():
    inputs = torch.randn(7, 5)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(inputs).equal(inputs)
    assert torch.get_rng_state().equal(before)


def test_gradient_flows_through_what_is_kept():
    inputs = torch.ones(100, 9, requires_grad=True)
    outputs = Dropout(0.5)(inputs)
    outputs.sum().backward()
    assert inputs.grad.equal(outputs.detach())


def test_keeps_the_type_of_its_inputs():
    assert Dropout(0.5)(torch.ones(4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_is_a_dropout_to_whoever_looks_for_one():
    assert isinstance(Dropout(0.25), nn.Dropout) and Dropout(0.25).p == 0.25
