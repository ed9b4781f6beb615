import pytest
import torch
from torch import nn

from fashion.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (1, 9)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_singular_values_end_near_one_and_singular_vectors_stay(shape, precision):
    matrix = torch.randn(shape)
    result = orthogonalize(matrix, precision, 5)
    assert result.shape == matrix.shape and result.dtype == precision
    values = torch.linalg.svdvals(result.float())
    assert values.min() > 0.65 and values.max() < 1.25
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ result.float() @ v.T
    assert (inner - inner.diagonal().diag()).abs().max() < 0.05


def test_three_iterations_leave_only_small_singular_values_below_one_half():
    values = torch.tensor([1.0, 0.3, 0.1, 0.02, 0.001])
    after = torch.linalg.svdvals(orthogonalize(values.diag() @ torch.eye(5, 9), torch.float32))
    assert (after[:4] > 0.5).all() and (after < 1.3).all() and after[4] < 0.1


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_gradient_has_no_effect(scale):
    matrix = torch.randn(20, 30)
    one, other = (orthogonalize(factor * matrix, torch.float32) for factor in (1, scale))
    assert torch.allclose(one, other, atol=0.05)


def test_gradient_of_zeros_gives_zeros():
    assert orthogonalize(torch.zeros(5, 7), torch.float32).eq(0).all()


def test_wide_matrix_moves_by_the_learning_rate_and_a_tall_one_by_more():
    wide, tall = nn.Parameter(torch.zeros(10, 40)), nn.Parameter(torch.zeros(40, 10))
    for weight in (wide, tall):
        weight.grad = torch.randn_like(weight)
    Muon([wide, tall], learning_rate=0.1, momentum=0.9, precision=torch.float32).step()
    for weight, size in ((wide, 0.1), (tall, 0.2)):
        expected = -size * orthogonalize(weight.grad, torch.float32)
        torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=0)


def test_momentum_is_that_of_nesterov():
    weight = nn.Parameter(torch.zeros(4, 6))
    optimizer = Muon([weight], learning_rate=1.0, momentum=0.75, precision=torch.float32)
    first, second = torch.randn(2, 4, 6)
    for gradient in (first, second):
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimizer.step()
    momentum = 0.75 * (0.25 * first) + 0.25 * second
    update = orthogonalize(0.75 * momentum + 0.25 * second, torch.float32)
    torch.testing.assert_close(before - weight.detach(), update, atol=1e-4, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kernels_are_updated_as_one_row_each_in_any_memory_format(memory_format):
    gradient = torch.randn(8, 4, 3, 3)
    kernels = nn.Parameter(torch.zeros(8, 4, 3, 3).to(memory_format=memory_format))
    rows = nn.Parameter(torch.zeros(8, 36))
    kernels.grad, rows.grad = gradient.to(memory_format=memory_format), gradient.flatten(1)
    Muon([kernels, rows], learning_rate=0.1, momentum=0.9, precision=torch.float32).step()
    assert torch.allclose(kernels.detach().flatten(1), rows.detach(), atol=1e-5)


def test_muon_learns_a_linear_map():
    inputs, target = torch.randn(200, 12), torch.randn(12, 5)
    layer = nn.Linear(12, 5, bias=False)
    optimizer = Muon(layer.parameters(), learning_rate=0.2, momentum=0.9, precision=torch.float32)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 100)
        loss = (layer(inputs) - inputs @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01 * target.square().sum(0).mean()
