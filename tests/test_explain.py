import numpy as np
import pytest
import torch

import explain
from explain import KernelKind
from training import RECIPES, Trainer, load_checkpoint

NAMES = ["ffn", "cnn"]


@pytest.fixture
def models(trained_folder):
    return {name: load_checkpoint(trained_folder / f"{name}.pt", name) for name in NAMES}


@pytest.fixture
def cnn(models):
    return models["cnn"]


@pytest.fixture
def picture(tiny_dataset):
    return tiny_dataset.test_images[0].numpy()


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
def test_kernels_are_told_apart_whatever_their_size(kernel, expected):
    for scale in (1e-3, 1, 50):
        kind = explain.classify_kernel(scale * np.array(kernel, dtype=np.float32))
        assert (kind.kind, kind.sign) == (expected.kind, expected.sign)
        assert kind.angle == pytest.approx(expected.angle, abs=1e-3)


def test_edges_come_first_by_direction_then_spots_then_areas_then_the_rest():
    line = np.array([[-1, 2, -1]] * 3, dtype=float)
    right, up = np.array([[-1, 0, 1]] * 3, dtype=float), np.array([[1] * 3, [0] * 3, [-1] * 3])
    spot = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], dtype=float)
    area = np.ones((3, 3))
    order, kinds = explain.order_kernels(
        np.stack([line, -area, area, -spot, spot, up, right, 2 * line])
    )
    assert order.tolist() == [6, 5, 4, 3, 2, 1, 7, 0]
    assert [kind.kind for kind in kinds] == ["edge"] * 2 + ["spot"] * 2 + ["area"] * 2 + [
        "other"
    ] * 2


def test_deeper_kernels_are_shown_by_their_strongest_slice(cnn):
    with torch.no_grad():
        cnn.model.blocks[1].conv.weight[3, 17] = 9
    tiles, slices = explain.kernel_tiles(cnn.model, 2)
    assert (tiles[3] == 9).all() and slices[3] == 17
    first, slices = explain.kernel_tiles(cnn.model, 1)
    assert (first == cnn.model.blocks[0].conv.weight[:, 0].detach().numpy()).all()
    assert not slices.any()


@pytest.mark.parametrize("name", NAMES)
def test_untrained_model_is_the_one_that_the_training_began_with(models, tiny_dataset, name):
    state = torch.get_rng_state()
    untrained = explain.untrained_model(models[name]).state_dict()
    assert torch.get_rng_state().equal(state)
    first = Trainer(name, tiny_dataset, RECIPES[name], 0, torch.float32).model.state_dict()
    assert all(untrained[key].equal(value) for key, value in first.items())
    trained = models[name].model.state_dict()
    assert any(not untrained[key].equal(value) for key, value in trained.items())


# What a picture turns into


def test_progression_is_that_of_the_model(cnn, picture):
    progression = explain.follow(cnn, picture)
    assert [maps.shape[1] for maps in progression.responses] == [28, 14, 7]
    assert [maps.shape[1] for maps in progression.rectified] == [28, 14, 7]
    assert [maps.shape[1] for maps in progression.activations] == [14, 7, 3]
    assert [values.shape for values in progression.hidden] == [(256,), (128,)]
    for part in (progression.activations, progression.rectified, progression.hidden):
        assert all((values >= 0).all() for values in part)
    expected = explain.class_probabilities(cnn, picture[None])[0]
    assert np.allclose(progression.probabilities, expected, atol=1e-6)
    # The first response, computed pixel by pixel: a kernel slid over the normalised picture.
    image = np.pad((picture / 255 - cnn.mean) / cnn.std, 1)
    kernel = cnn.model.blocks[0].conv.weight[5, 0].detach().numpy()
    by_hand = [[(image[y : y + 3, x : x + 3] * kernel).sum() for x in range(28)] for y in range(28)]
    assert np.allclose(progression.responses[0][5], by_hand, atol=1e-4)


def test_batch_norm_keeps_the_order_so_that_pooling_may_come_first(cnn, picture):
    """With a positive scale, the map after ReLU pooled is the block's activation."""
    progression = explain.follow(cnn, picture)
    pooled = progression.rectified[0].reshape(32, 14, 2, 14, 2).max(axis=(2, 4))
    positive = cnn.model.blocks[0].norm.weight.detach().numpy() > 0
    assert positive.any()
    assert np.allclose(pooled[positive], progression.activations[0][positive], atol=1e-5)


# Units


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_receptive_field_is_what_the_gradient_reaches(cnn, layer):
    side = 28 // 2**layer
    for row, column in ((0, 0), (side // 2, side - 1)):
        image = torch.randn(1, 1, 28, 28, requires_grad=True)
        # Averages in place of maxima and without ReLU, every pixel that can matter does.
        maps = image
        for block in cnn.model.blocks[:layer]:
            maps = torch.nn.functional.avg_pool2d(block.conv(maps), 2)
        maps[0, :, row, column].abs().sum().backward()
        reached = image.grad[0, 0].nonzero()
        top, left, size = explain.receptive_field(layer, row, column)
        assert reached[:, 0].min() == max(top, 0) and reached[:, 1].min() == max(left, 0)
        assert reached[:, 0].max() == min(top + size, 28) - 1
        assert reached[:, 1].max() == min(left + size, 28) - 1


def test_selectivity_is_1_for_one_class_and_0_for_all():
    labels = np.repeat(np.arange(10), 5)
    one = (labels == 3).astype(float)
    strongest = np.stack([one, np.ones(50), np.zeros(50), one + 1], axis=1)
    assert explain.class_selectivity(strongest, labels) == pytest.approx([1, 0, 0, 1 / 3])


def test_units_come_by_selectivity_with_their_most_exciting_images(cnn, tiny_dataset):
    images, labels = tiny_dataset.test_images, tiny_dataset.test_labels
    units = explain.find_units(cnn, images, labels, layer=3, count=6, examples=9)
    selectivities = [unit.selectivity for unit in units]
    assert len(units) == 6 and selectivities == sorted(selectivities, reverse=True)
    for unit in units:
        maps = np.stack(
            [explain.follow(cnn, image).activations[2][unit.number] for image in images.numpy()]
        )
        best = maps.max(axis=(1, 2))
        assert best[unit.images] == pytest.approx(unit.activations, abs=1e-4)
        assert sorted(best, reverse=True)[:9] == pytest.approx(unit.activations, abs=1e-4)
        for index, patch in zip(unit.images, unit.patches, strict=True):
            place = np.unravel_index(maps[index].argmax(), (3, 3))
            assert patch == explain.receptive_field(3, *map(int, place))


def test_units_that_are_asked_for_come_in_that_order(cnn, tiny_dataset):
    images, labels = tiny_dataset.test_images, tiny_dataset.test_labels
    units = explain.find_units(cnn, images, labels, 1, 8, 4, wanted=[7, 2])
    assert [unit.number for unit in units] == [7, 2]
    assert all(len(unit.images) == len(unit.patches) == 4 for unit in units)


# Saliency


@pytest.mark.parametrize("name", NAMES)
def test_occlusion_is_the_fall_of_the_probability(models, picture, name):
    label = int(explain.class_probabilities(models[name], picture[None])[0].argmax())
    fall = explain.occlusion(models[name], picture, label)
    for row, column in ((14, 14), (0, 0), (27, 10)):
        covered = picture.copy()
        covered[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = 0
        before, after = explain.class_probabilities(models[name], np.stack([picture, covered]))
        assert fall[row, column] == pytest.approx(before[label] - after[label], abs=1e-5)


def test_where_all_is_black_already_occlusion_changes_nothing(cnn):
    picture = np.zeros((28, 28), np.uint8)
    picture[10:, :] = 200
    fall = explain.occlusion(cnn, picture, 0)
    assert np.abs(fall[:8]).max() < 1e-5 < np.abs(fall[8:]).max()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_add_up_to_the_difference_from_black(models, picture, name):
    black = np.zeros_like(picture)
    start, end = explain.class_probabilities(models[name], np.stack([black, picture]))
    label = int(end.argmax())
    contributions = explain.integrated_gradients(models[name], picture, label)
    assert contributions.sum() == pytest.approx(end[label] - start[label], abs=0.03)
    assert (contributions[picture == 0] == 0).all()
    assert all(weight.grad is None for weight in models[name].model.parameters())


# Embedding


@pytest.mark.parametrize("name", NAMES)
def test_last_hidden_layer_leads_to_the_predictions(models, tiny_dataset, name):
    model = models[name]
    features, predictions = explain.last_hidden(model, tiny_dataset.test_images)
    *_, output = (part for part in model.model.modules() if isinstance(part, torch.nn.Linear))
    logits = output(torch.from_numpy(features)).detach().numpy()
    assert (logits.argmax(1) == predictions).all()
    expected = explain.class_probabilities(model, tiny_dataset.test_images.numpy())
    assert (expected.argmax(1) == predictions).all()


def test_embedding_keeps_groups_together_and_is_always_the_same():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 40)
    features = generator.normal(size=(120, 16)) + 20 * np.eye(16)[groups]
    places = explain.embed(features.astype(np.float32))
    assert places.shape == (120, 2)
    middles = np.stack([places[groups == group].mean(axis=0) for group in range(3)])
    nearest = np.linalg.norm(places[:, None] - middles, axis=2).argmin(axis=1)
    assert (nearest == groups).all()
    assert (explain.embed(features.astype(np.float32)) == places).all()
