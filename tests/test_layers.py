import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fashion.layers import (
    ConvBlock,
    Dropout,
    check_image_shape,
    conv_blocks,
    count_parameters,
    random_bytes,
    summarize_layers,
)
from models import MODELS

# Dropout


def test_random_bytes_are_uniform_and_independent():
    draws = random_bytes(torch.Size((512, 1001)))
    assert draws.shape == (512, 1001) and draws.dtype == torch.uint8
    counts = torch.bincount(draws.flatten().int(), minlength=256).double()
    expected = draws.numel() / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 350  # 255 degrees of freedom: exceeded once in 10,000 times
    bits = (draws[..., None] >> torch.arange(8)) & 1
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < 0.005
    values = draws.double() - 127.5
    for distance in range(1, 9):
        product = (values[:, distance:] * values[:, :-distance]).mean() / values.square().mean()
        assert product.abs() < 0.01


@pytest.mark.parametrize("p", [0.0, 0.25, 0.3, 0.9, 0.999])
def test_dropout_keeps_the_mean_and_zeroes_the_share(p):
    outputs = Dropout(p)(torch.ones(1000, 1001))
    assert (outputs == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert outputs.mean().item() == pytest.approx(1, abs=0.1 if p > 0.9 else 0.01)
    assert len(outputs.unique()) == (2 if p else 1)


def test_dropout_in_evaluation_changes_and_draws_nothing():
    inputs = torch.randn(7, 5)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(inputs).equal(inputs)
    assert torch.get_rng_state().equal(before)


def test_gradient_flows_through_what_dropout_keeps():
    inputs = torch.ones(100, 9, requires_grad=True)
    outputs = Dropout(0.5)(inputs)
    outputs.sum().backward()
    assert inputs.grad.equal(outputs.detach()) and 0 < outputs.count_nonzero() < 900


def test_dropout_keeps_the_data_type():
    assert Dropout(0.5)(torch.ones(4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


# Convolutional blocks


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize(("padding", "size"), [(1, 7), (0, 6)])
def test_conv_block_is_convolution_pooling_batch_norm_and_relu(inputs, padding, size):
    block = ConvBlock(inputs, 5, padding).eval()
    for tensor, value in (
        (block.norm.weight, -2.0),  # so that the order of the layers matters
        (block.norm.bias, 0.5),
        (block.norm.running_mean, 0.25),
        (block.norm.running_var, 4.0),
    ):
        tensor.detach().fill_(value)
    images = torch.randn(4, inputs, 14, 14)
    assert block.conv.weight.shape == (5, inputs, 3, 3) and block.conv.bias is None
    pooled = F.max_pool2d(F.conv2d(images, block.conv.weight, padding=padding), 2)
    assert pooled.shape == (4, 5, size, size)
    expected = (0.5 - (pooled - 0.25)).relu()
    torch.testing.assert_close(block(images), expected, atol=1e-4, rtol=1e-4)


def test_conv_blocks_are_listed_from_input_to_output():
    blocks = [ConvBlock(1, 2, 1), ConvBlock(2, 3, 0), ConvBlock(3, 4, 1)]
    model = nn.Sequential(blocks[0], nn.Sequential(blocks[1], nn.ReLU()), blocks[2])
    assert conv_blocks(model) == blocks
    assert conv_blocks(nn.Linear(2, 3)) == []


# Any network


@pytest.mark.parametrize("shape", [(28, 28), (3, 28, 28), (3, 784), (3, 3, 28, 28), (3, 1, 32, 32)])
def test_wrong_image_shape_is_named_with_the_expected_one(shape):
    with pytest.raises(ValueError, match=r"expected .*\(N, 1, 28, 28\), got") as caught:
        check_image_shape(torch.zeros(shape))
    assert str(caught.value).endswith(str(shape))


@pytest.mark.parametrize("name", MODELS)
def test_networks_check_the_shape_and_return_ten_logits(name):
    model = MODELS[name]()
    assert model(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(ValueError, match="expected images of shape"):
        model(torch.zeros(3, 784))


@pytest.mark.parametrize("name", MODELS)
def test_arguments_rebuild_a_network_with_its_default_layers(name):
    model = MODELS[name]()
    again = MODELS[name](**model.arguments)
    assert again.arguments == model.arguments
    assert str(again) == str(model)


@pytest.mark.parametrize("name", MODELS)
def test_summary_lists_every_layer_and_changes_nothing(name):
    model = MODELS[name]().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lines = summarize_layers(model).splitlines()
    leaves = [(key, part) for key, part in model.named_modules() if not list(part.children())]
    rows = [line.split() for line in lines]
    assert rows[0] == ["layer", "kind", "output", "parameters"]
    assert [row[:2] for row in rows[1:-1]] == [[key, type(part).__name__] for key, part in leaves]
    assert [row[-1] for row in rows[1:-1]] == [f"{count_parameters(part):,}" for _, part in leaves]
    total = sum(value.numel() for value in model.parameters())
    assert rows[-1] == ["total", f"{total:,}"]
    assert rows[-2][-2] == "10"
    assert len({len(line) for line in lines}) == 1
    assert all(part.training and not part._forward_hooks for _, part in leaves)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
