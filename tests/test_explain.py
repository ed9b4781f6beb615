from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from cnn import CNN
from fashion import explain
from fashion.checkpoint import Checkpoint
from fashion.data import SYNTHETIC, Dataset, normalize
from fashion.explain import KernelKind
from fashion.layers import ConvBlock, Network, conv_blocks
from fashion.training import Trainer
from ffn import FFN


class Small(Network):
    """A network built differently from both others: one block, nested hidden layers."""

    recipe = replace(FFN.recipe, model={"width": 7})

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.arguments = {"width": width}
        self.block = ConvBlock(1, 4, 1)
        hidden = nn.Sequential(nn.Linear(4 * 14**2, width), nn.ReLU())
        self.head = nn.Sequential(hidden, nn.Sequential(nn.Linear(width, 12), nn.ReLU()))
        self.output = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.head(self.block(images).flatten(1)))


NETWORKS = [FFN, CNN, Small]
TEMPERATURE = 1.5


def make_checkpoint(network):
    """A model with random weights and batch statistics, scaled for confident predictions."""
    torch.manual_seed(1)
    model = network()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.weight.uniform_(-1, 2)
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.1, 0.5)
            elif isinstance(layer, nn.Linear):
                layer.weight.mul_(3)
    return Checkpoint(model.eval(), 0.3, 0.35, SYNTHETIC, 0, TEMPERATURE, 0.0, {})


@pytest.fixture
def images():
    """Random images (60, 28, 28) with a black margin of four pixels at the top."""
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    images[:, :4] = 0
    return images


@pytest.fixture
def image(images):
    return images[0]


@pytest.fixture
def cnn():
    return make_checkpoint(CNN)


# Kernels


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ([[-1, 0, 1]] * 3, KernelKind("edge", 0, 0)),
        ([[1, 0, -1]] * 3, KernelKind("edge", 180, 0)),
        ([[1, 1, 1], [0, 0, 0], [-1, -1, -1]], KernelKind("edge", 90, 0)),
        ([[0, -1, -2], [1, 0, -1], [2, 1, 0]], KernelKind("edge", 225, 0)),
        ([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], KernelKind("spot", 0, 1)),
        ([[1, 2, 1], [2, -9, 2], [1, 2, 1]], KernelKind("spot", 0, -1)),
        ([[1, 1, 1], [1, 2, 1], [1, 1, 1]], KernelKind("area", 0, 1)),
        ([[-1, -1, -1], [-1, -1, 0], [-1, -1, -1]], KernelKind("area", 0, -1)),
        ([[-1, 2, -1]] * 3, KernelKind("other", 0, 0)),  # a line
        ([[1, 0, -1], [0, 0, 0], [-1, 0, 1]], KernelKind("other", 0, 0)),  # a saddle
        ([[0, 0, 0]] * 3, KernelKind("other", 0, 0)),
    ],
)
def test_kernels_are_classified_at_any_scale(kernel, expected):
    for scale in (1e-3, 1, 50):
        kind = explain.classify_kernel(scale * np.array(kernel, dtype=np.float32))
        assert (kind.kind, kind.sign) == (expected.kind, expected.sign)
        assert kind.angle == pytest.approx(expected.angle, abs=1e-3)


def test_kernels_are_ordered_by_kind_direction_sign_and_norm():
    line = np.array([[-1, 2, -1]] * 3, dtype=float)
    right, up = np.array([[-1, 0, 1]] * 3, dtype=float), np.array([[1] * 3, [0] * 3, [-1] * 3])
    spot = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], dtype=float)
    area = np.ones((3, 3))
    order, kinds = explain.order_kernels(
        np.stack([line, -area, area, -spot, spot, up, right, 2 * line])
    )
    assert order.tolist() == [6, 5, 4, 3, 2, 1, 7, 0]
    expected = ["edge", "edge", "spot", "spot", "area", "area", "other", "other"]
    assert [kind.kind for kind in kinds] == expected


def test_tiles_of_deeper_kernels_are_their_largest_slices(cnn):
    first, second, _ = conv_blocks(cnn.model)
    with torch.no_grad():
        second.conv.weight[3, 17] = -9
    tiles, slices = explain.kernel_tiles(cnn.model, 2)
    assert (tiles[3] == -9).all() and slices[3] == 17
    tiles, slices = explain.kernel_tiles(cnn.model, 1)
    assert (tiles == first.conv.weight[:, 0].detach().numpy()).all()
    assert not slices.any()


def test_untrained_model_equals_the_initial_model_of_the_training(images):
    tensors = torch.from_numpy(images), torch.arange(60) % 10
    indices = torch.arange(60)
    dataset = Dataset(SYNTHETIC, *tensors, indices, indices, *tensors, 0.3, 0.35)
    trainer = Trainer(Small, dataset, Small.recipe, 3, torch.float32)
    trained = make_checkpoint(lambda: Small(**trainer.recipe.model))
    state = torch.get_rng_state()
    untrained = explain.untrained_model(replace(trained, seed=3))
    assert torch.get_rng_state().equal(state)
    assert not untrained.training
    for key, value in trainer.model.state_dict().items():
        assert untrained.state_dict()[key].equal(value)


# Activations


def test_responses_are_the_kernel_slid_over_the_normalized_image(cnn, image):
    progression = explain.record_activations(cnn, image)
    padded = np.pad((image / 255 - cnn.mean) / cnn.std, 1)
    kernel = conv_blocks(cnn.model)[0].conv.weight[5, 0].detach().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    assert progression.responses[0][5] == pytest.approx((windows * kernel).sum((2, 3)), abs=1e-4)


def test_pooled_rectified_maps_equal_activations_where_batch_norm_has_a_positive_scale(cnn, image):
    progression = explain.record_activations(cnn, image)
    pooled = progression.rectified[0].reshape(32, 14, 2, 14, 2).max(axis=(2, 4))
    positive = conv_blocks(cnn.model)[0].norm.weight.detach().numpy() > 0
    assert positive.any() and not positive.all()
    same = np.isclose(pooled, progression.activations[0], atol=1e-5).all(axis=(1, 2))
    assert same[positive].all() and not same.all()


@pytest.mark.parametrize(
    ("network", "sides", "widths"),
    [(FFN, [], [512, 256, 128, 64]), (CNN, [28, 12, 6], [256, 128]), (Small, [28], [16, 12])],
)
def test_progression_covers_all_blocks_and_hidden_layers(image, network, sides, widths):
    checkpoint = make_checkpoint(network)
    progression = explain.record_activations(checkpoint, image)
    assert [maps.shape[1] for maps in progression.responses] == sides
    assert [maps.shape[1] for maps in progression.rectified] == sides
    assert [maps.shape[1] for maps in progression.activations] == [side // 2 for side in sides]
    assert [len(values) for values in progression.hidden] == widths
    features, _ = explain.last_hidden(checkpoint, torch.from_numpy(image)[None])
    assert progression.hidden[-1] == pytest.approx(features[0], abs=1e-5)
    expected = explain.class_probabilities(checkpoint, image[None])[0]
    assert progression.probabilities == pytest.approx(expected, abs=1e-5)


# Units


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_receptive_field_contains_exactly_the_pixels_with_a_gradient(cnn, layer):
    side = {1: 14, 2: 6, 3: 3}[layer]
    blocks = conv_blocks(cnn.model)[:layer]
    for row, column in ((0, 0), (side // 2, side - 1)):
        image = torch.randn(1, 1, 28, 28, requires_grad=True)
        # Unlike max-pooling and ReLU, mean-pooling passes gradients to all pixels.
        maps = image
        for block in blocks:
            maps = nn.functional.avg_pool2d(block.conv(maps), 2)
        maps[0, :, row, column].abs().sum().backward()
        reached = image.grad[0, 0].nonzero()
        top, left, size = explain.receptive_field(blocks, row, column)
        assert reached.amin(0).tolist() == [max(top, 0), max(left, 0)]
        assert reached.amax(0).tolist() == [min(top + size, 28) - 1, min(left + size, 28) - 1]


def test_selectivity_is_1_for_a_single_class_and_0_for_all():
    labels = np.repeat(np.arange(10), 5)
    one = (labels == 3).astype(float)
    strongest = np.stack([one, np.ones(50), np.zeros(50), one + 1], axis=1)
    assert explain.class_selectivity(strongest, labels) == pytest.approx([1, 0, 0, 1 / 3])


def test_units_are_ordered_by_selectivity_with_their_most_activating_images(cnn, images):
    labels = np.arange(60) % 10
    units = explain.find_units(cnn, torch.from_numpy(images), torch.from_numpy(labels), layer=2)
    activations = np.stack(
        [explain.record_activations(cnn, image).activations[1] for image in images]
    )
    selectivity = explain.class_selectivity(activations.max((2, 3)), labels)
    best = np.sort(selectivity)[::-1][: explain.UNITS_SHOWN]
    assert [unit.selectivity for unit in units] == pytest.approx(best, abs=1e-4)
    for unit in units:
        maps = activations[:, unit.number]
        highest = maps.max((1, 2))
        assert highest[unit.images] == pytest.approx(unit.activations, abs=1e-4)
        assert np.sort(highest)[::-1][:9] == pytest.approx(unit.activations, abs=1e-4)
        for index, patch in zip(unit.images, unit.patches, strict=True):
            place = np.unravel_index(maps[index].argmax(), (6, 6))
            assert patch == explain.receptive_field(conv_blocks(cnn.model)[:2], *map(int, place))


def test_requested_units_keep_their_order(images):
    labels = torch.arange(60) % 10
    checkpoint = make_checkpoint(Small)
    units = explain.find_units(checkpoint, torch.from_numpy(images), labels, 1, [3, 1])
    assert [unit.number for unit in units] == [3, 1]


# Saliency


@pytest.mark.parametrize("network", NETWORKS)
def test_occlusion_is_the_decrease_of_the_log_odds(image, network):
    checkpoint = make_checkpoint(network)
    label = int(explain.class_probabilities(checkpoint, image[None])[0].argmax())
    decrease = explain.occlusion(checkpoint, image, label)
    assert np.abs(decrease).max() > 0.1
    # Squares in the black margin change nothing.
    assert decrease[:2] == pytest.approx(np.zeros((2, 28)), abs=1e-4)
    for row, column in ((14, 14), (5, 0), (27, 10)):
        occluded = image.copy()
        occluded[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = 0
        before, after = log_odds_of(checkpoint, [image, occluded], label)
        assert decrease[row, column] == pytest.approx(before - after, abs=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_integrated_gradients_add_up_to_the_difference_from_black(image, network):
    checkpoint = make_checkpoint(network)
    label = int(explain.class_probabilities(checkpoint, image[None])[0].argmax())
    contributions = explain.integrated_gradients(checkpoint, image, label)
    black, full = log_odds_of(checkpoint, [np.zeros_like(image), image], label)
    assert abs(full - black) > 0.5
    assert contributions.sum() == pytest.approx(full - black, rel=0.05)
    assert (contributions[image == 0] == 0).all()
    assert all(weight.grad is None for weight in checkpoint.model.parameters())


def log_odds_of(checkpoint, images, label):
    """The log-odds of a class for images, with calibrated logits."""
    inputs = normalize(torch.tensor(np.stack(images)), checkpoint.mean, checkpoint.std)
    with torch.no_grad():
        logits = checkpoint.model(inputs).numpy().astype(float) / TEMPERATURE
    return logits[:, label] - logsumexp(np.delete(logits, label, axis=1), axis=1)


def test_log_odds_change_where_the_probability_is_1():
    logits = torch.tensor([[50.0, *[0.0] * 9], [80.0, *[0.0] * 9], [0.0, 1000.0, *[0.0] * 8]])
    assert logits.softmax(1)[:2, 0].tolist() == [1, 1]
    expected = [50 - np.log(9), 80 - np.log(9), -1000]
    assert explain.log_odds(logits, 0).tolist() == pytest.approx(expected)


# Embedding


@pytest.mark.parametrize("network", NETWORKS)
def test_last_hidden_layer_determines_the_predictions(images, network):
    checkpoint = make_checkpoint(network)
    features, predictions = explain.last_hidden(checkpoint, torch.from_numpy(images))
    *_, output = (each for each in checkpoint.model.modules() if isinstance(each, nn.Linear))
    assert (output(torch.from_numpy(features)).argmax(1).numpy() == predictions).all()
    expected = explain.class_probabilities(checkpoint, images)
    assert (expected.argmax(1) == predictions).all()


def test_embedding_keeps_groups_together_and_is_deterministic():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 40)
    features = generator.normal(size=(120, 16)) + 20 * np.eye(16)[groups]
    places = explain.embed(features.astype(np.float32))
    assert places.shape == (120, 2)
    centres = np.stack([places[groups == group].mean(axis=0) for group in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == groups).all()
    assert (explain.embed(features.astype(np.float32)) == places).all()
