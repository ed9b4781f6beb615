import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import kernel_vis
from cnn import CNN
from fashion import cli, explain
from fashion.checkpoint import (
    RECORDING_NAME,
    load_recording,
    load_weights,
    save_recording,
    save_tensors,
)
from fashion.data import FASHION_MNIST
from ffn import FFN

FILES = {
    "kernel_grid.png",
    "image_transform_grid.png",
    "feature_progression.png",
    "top_activations.png",
    "saliency.png",
    "embedding.png",
    "training.gif",
}


@pytest.fixture(scope="module")
def cnn(trained_folder):
    return load_weights(trained_folder / "cnn.safetensors", CNN)


def run(checkpoint, out, *arguments):
    options = ["--checkpoint", checkpoint, "--out", out, *arguments]
    return cli.run(kernel_vis.parse_arguments, kernel_vis.main, [str(each) for each in options])


def save_model(path, model, cnn, **changes):
    """Write an untrained model with the metadata of the CNN, some of it changed."""
    metadata = {"class": type(model).__name__, "arguments": model.arguments, **changes}
    save_tensors(path, model.state_dict(), {**cnn.metadata, **metadata})


@pytest.fixture(scope="module", autouse=True)
def short_embedding():
    """Shorten t-SNE, which test_explain.py tests at full length."""
    with pytest.MonkeyPatch.context() as patch:
        for steps in ("early_exaggeration_iter", "n_iter"):
            patch.setitem(explain.EMBEDDING, steps, 10)
        yield


@pytest.fixture
def small_data(monkeypatch, tiny_dataset):
    """Replace the dataset by one with 200 test images."""
    monkeypatch.setattr(kernel_vis, "load_dataset", lambda *_: tiny_dataset)


@pytest.fixture
def figures(monkeypatch):
    """The figures that a run draws, by file name; they are not written."""
    drawn = {}
    monkeypatch.setattr(
        kernel_vis, "save_figure", lambda figure, path: drawn.update({path.name: figure})
    )
    return drawn


@pytest.fixture(scope="module")
def full_run(trained_folder, cnn, tiny_dataset, tmp_path_factory):
    """A run of the whole script: its folder and figures."""
    folder = tmp_path_factory.mktemp("full_run")
    shutil.copytree(trained_folder, folder, dirs_exist_ok=True)
    # Three frames of the recording are enough.
    recording = load_recording(folder / RECORDING_NAME, cnn.model)
    frames = dict(zip(recording.steps, recording.kernels, strict=True))
    chosen = {step: frames[step] for step in (0, 20, 40)}
    save_recording(folder / RECORDING_NAME, chosen, recording.steps_per_epoch)
    figures = {}
    save_figure = kernel_vis.save_figure

    def save_and_keep(figure, path):
        figures[path.name] = figure
        save_figure(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_vis, "load_dataset", lambda *_: tiny_dataset)
        patch.setattr(kernel_vis, "save_figure", save_and_keep)
        assert run(folder / "cnn.safetensors", folder / "out") == 0
    return SimpleNamespace(folder=folder / "out", figures=figures)


# The full run


def test_all_files_are_written_and_titles_name_the_dataset(full_run):
    assert {path.name for path in full_run.folder.iterdir()} == FILES | {"report.html"}
    for name in FILES:
        with Image.open(full_run.folder / name) as image:
            assert min(image.size) > 300
    for figure in full_run.figures.values():
        assert "synthetic images, not Fashion-MNIST" in figure.get_suptitle()


def test_kernels_and_feature_maps_share_order_and_names(full_run, cnn):
    kernels, (image, *maps) = (
        [axes for axes in full_run.figures[name].axes if axes.images]
        for name in ("kernel_grid.png", "image_transform_grid.png")
    )
    names = [axes.get_title() for axes in maps]
    numbers = [name.split()[0] for name in names]  # without the symbols of trained kernels
    assert [axes.get_title() for axes in kernels] == numbers + names
    assert sorted(int(name.split()[0]) for name in names) == list(range(32))
    pixels = np.asarray(image.images[0].get_array()).astype(np.uint8)
    responses = explain.record_activations(cnn, pixels).responses[0]
    weights = cnn.model.blocks[0].conv.weight[:, 0].detach().numpy()
    for name, kernel, response in zip(names, kernels[32:], maps, strict=True):
        number = int(name.split()[0])
        assert (kernel.images[0].get_array() == weights[number]).all()
        assert np.allclose(response.images[0].get_array(), responses[number])


# Options


def test_layer_and_after_select_the_feature_maps(small_data, figures, trained_folder, tmp_path):
    options = ("--only", "image_transform_grid", "--layer", 2, "--after")
    assert run(trained_folder / "cnn.safetensors", tmp_path, *options) == 0
    figure = figures["image_transform_grid.png"]
    _, *maps = (axes.images[0].get_array() for axes in figure.axes if axes.images)
    assert len(maps) == 64 and maps[0].shape == (12, 12)
    assert all((values >= 0).all() for values in maps)
    assert "convolution 2 after batch norm and ReLU" in figure.get_suptitle()


def test_requested_figure_and_units_are_drawn_once(
    small_data, figures, trained_folder, tmp_path, capsys
):
    options = ("--only", "top_activations", "top_activations", "--layer", 2, "--units", 5, 63)
    assert run(trained_folder / "cnn.safetensors", tmp_path, *options) == 0
    assert capsys.readouterr().out.count("top_activations ...") == 1
    (figure,) = figures.values()
    labels = [axes.get_ylabel().split("\n")[0] for axes in figure.axes]
    assert [label for label in labels if label] == ["unit 5", "unit 63"]


def test_own_image_needs_no_dataset(monkeypatch, figures, trained_folder, tmp_path, capsys):
    monkeypatch.setattr(kernel_vis, "load_dataset", lambda *_: pytest.fail("data was loaded"))
    pixels = np.full((90, 60), 255, dtype=np.uint8)
    pixels[20:70, 15:45] = 60
    Image.fromarray(pixels).save(tmp_path / "shirt.png")
    options = ("--image", tmp_path / "shirt.png")
    for name in kernel_vis.FIGURES:
        if name != "feature_progression":
            monkeypatch.setitem(kernel_vis.FIGURES, name, lambda _: None)
    assert run(trained_folder / "cnn.safetensors", tmp_path, *options) == 0
    assert "shirt.png; CNN prediction: " in capsys.readouterr().out
    assert set(figures) == {
        "kernel_grid.png",
        "image_transform_grid.png",
        "feature_progression.png",
    }


def test_model_alone_is_shown_without_the_others(
    small_data, figures, trained_folder, tmp_path, capsys
):
    # Also under another name, as the models of several runs have.
    shutil.copy(trained_folder / "cnn.safetensors", tmp_path / "cnn-seed1.safetensors")
    options = ("--only", "saliency", "embedding")
    assert run(tmp_path / "cnn-seed1.safetensors", tmp_path, *options) == 0
    assert f"{tmp_path / 'ffn.safetensors'} does not exist" in capsys.readouterr().err
    (axes,) = figures["embedding.png"].axes
    assert axes.get_title().startswith("CNN: ")


def test_missing_recording_matters_only_if_it_is_requested(
    small_data, monkeypatch, figures, trained_folder, tmp_path, capsys
):
    for name in kernel_vis.FIGURES:
        monkeypatch.setitem(kernel_vis.FIGURES, name, lambda _: None)
    shutil.copy(trained_folder / "cnn.safetensors", tmp_path)
    checkpoint = tmp_path / "cnn.safetensors"
    assert run(checkpoint, tmp_path) == 0
    assert "--record" not in capsys.readouterr().out and len(figures) == len(kernel_vis.FIGURES)
    figures.clear()
    assert run(checkpoint, tmp_path, "--only", "kernel_grid", "training") == 2
    assert "--record" in capsys.readouterr().err and not figures


# Choices


def test_largest_kernels_of_a_large_layer_are_chosen(cnn):
    numbers, names = kernel_vis.choose_kernels(cnn, 3)
    assert len(set(numbers)) == len(names) == kernel_vis.MAX_KERNELS
    norms = cnn.model.blocks[2].conv.weight.detach().flatten(1).norm(dim=1).numpy()
    assert norms[numbers].min() >= np.delete(norms, numbers).max()


@pytest.mark.parametrize(
    ("models", "cases"),
    [
        ("a", ["a"] * 3 + [""] * 3),
        ("ab", ["ab", "ab", "a", "b", ""]),
        ("abc", ["abc", "abc", "a", "b", "c", ""]),
    ],
)
def test_saliency_examples_fit_their_cases(models, cases):
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    correct = {name: generator.random(1000) < 0.6 for name in models}
    confidence = {name: generator.uniform(0.5, 1, 1000) for name in models}
    probabilities = {}
    for name in models:
        predicted = np.where(correct[name], labels, (labels + 1) % 10)
        probabilities[name] = np.full((1000, 10), 0.01)
        probabilities[name][np.arange(1000), predicted] = confidence[name]
    chosen = kernel_vis.choose_saliency_examples(probabilities, labels)
    assert ["".join(case) for case in chosen.values()] == cases
    for index, case in chosen.items():
        assert {name for name in models if correct[name][index]} == set(case)
        least = min(values[index] for values in confidence.values())
        assert least == pytest.approx(kernel_vis.SALIENCY_CONFIDENCE, abs=0.05)
    assert len({labels[index] for index in chosen}) == len(chosen)


# Errors


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_unusable_checkpoint_gives_the_command_to_train_one(tmp_path, capsys, content):
    if content:
        (tmp_path / "cnn.safetensors").write_bytes(content)
    assert run(tmp_path / "cnn.safetensors", tmp_path / "out") == 2
    assert f"python fashionmnist.py --out {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--layer", "4"),
        ("--only", "nonsense"),
        ("--units", "128", "--only", "top_activations"),
        ("--image", "-1"),
        ("--image", "200"),
        ("--image", "no-such-file.png"),
        ("--image", "."),
    ],
)
def test_invalid_argument_is_rejected(small_data, trained_folder, tmp_path, capsys, arguments):
    assert run(trained_folder / "cnn.safetensors", tmp_path / "out", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_of_different_datasets_are_rejected(small_data, cnn, tmp_path, capsys):
    save_model(tmp_path / "cnn.safetensors", cnn.model, cnn)
    save_model(tmp_path / "ffn.safetensors", FFN(), cnn, dataset=FASHION_MNIST)
    assert run(tmp_path / "cnn.safetensors", tmp_path, "--only", "embedding") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/ffn.safetensors on Fashion-MNIST" in error
    assert "cnn.safetensors on synthetic images" in error and "train the models with" in error


@pytest.fixture
def without_data(cnn, no_network, tmp_path):
    """Run the script with a CNN trained on Fashion-MNIST, which is not available."""
    save_model(tmp_path / "cnn.safetensors", cnn.model, cnn, dataset=FASHION_MNIST)
    options = ("--data-dir", tmp_path / "data")
    return lambda *more: run(tmp_path / "cnn.safetensors", tmp_path / "out", *options, *more)


def test_without_the_dataset_a_drawing_replaces_the_test_image(without_data, figures, capsys):
    assert without_data() == 0
    printed = capsys.readouterr().out
    (note,) = [line for line in printed.splitlines() if line.startswith("Left out, because")]
    assert note.endswith("not online: embedding, saliency, top_activations")
    assert "boot.png; CNN prediction" in printed
    assert set(figures) == {f"{name}.png" for name in list(kernel_vis.FIGURES)[:3]}


@pytest.mark.parametrize("request_", [("--image", "3"), ("--only", "saliency")])
def test_requested_test_images_need_the_dataset(without_data, capsys, request_):
    assert without_data(*request_) == 1
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz" in error and "--data-dir" in error


def test_shipped_models_are_used_where_none_are_trained(figures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--only", "kernel_grid"]
    assert cli.run(kernel_vis.parse_arguments, kernel_vis.main, options) == 0
    assert f"Models: {cli.PRETRAINED_FOLDER}" in capsys.readouterr().out
