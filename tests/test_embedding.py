from fashion import embedding
from fashion.activations import survey
from fashion.data import CLASSES
from fashion.style import CLASS_COLOURS

import numpy as np
from matplotlib.colors import to_hex


def test_groups_stay_together_and_the_result_is_always_the_same():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 40)
    features = (generator.normal(size=(120, 16)) + 20 * np.eye(16)[groups]).astype(np.float32)
    places = embedding.embed(features)
    centres = np.stack([places[groups == group].mean(axis=0) for group in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == groups).all()
    assert (embedding.embed(features) == places).all()


def test_each_network_has_a_map_with_classes_by_colour_and_errors_circled(
    networks, tiny, monkeypatch
):
    monkeypatch.setattr(embedding, "POINTS", 100)
    surveys = {name: survey(network, tiny.test_images) for name, network in networks.items()}
    figure = embedding.draw(list(networks.values()), surveys, tiny)
    labels = tiny.test_labels[::3].numpy()
    assert "100 test images" in figure.get_suptitle()
    for axes, name in zip(figure.axes, networks, strict=True):
        wrong = surveys[name].probabilities[::3].argmax(1).numpy() != labels
        assert axes.get_title() == f"{name.upper()}: {wrong.sum()} errors"
        places = embedding.embed(surveys[name].features[::3].numpy())
        for points, chosen in zip(axes.collections, (~wrong, wrong), strict=True):
            assert (points.get_offsets() == places[chosen]).all()
            colours = [to_hex(colour) for colour in points.get_facecolors()]
            assert colours == [to_hex(CLASS_COLOURS[label]) for label in labels[chosen]]
        assert axes.collections[0].get_linewidths()[0] == 0 < axes.collections[1].get_linewidths()
        for text in axes.texts:
            members = labels == CLASSES.index(text.get_text())
            assert text.get_position() == tuple(np.median(places[members], axis=0))
