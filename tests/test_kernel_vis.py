import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import explain
import kernel_vis
from training import RECIPES, Trainer, checkpoint_content, load_checkpoint, write_tensors

PICTURES = {
    "kernel_grid.png",
    "image_transform_grid.png",
    "feature_progression.png",
    "top_activations.png",
    "saliency.png",
    "embedding.png",
    "training.gif",
}
OF_AN_IMAGE = {"kernel_grid.png", "image_transform_grid.png", "feature_progression.png"}


@pytest.fixture(autouse=True)
def short_embedding(monkeypatch):
    """Let t-SNE take a few steps only: test_explain.py sees to what it is worth."""
    for steps in ("early_exaggeration_iter", "n_iter"):
        monkeypatch.setitem(explain.EMBEDDING, steps, 10)


@pytest.fixture
def run(trained_folder, tmp_path, quick_drawing):
    """Run the script on the trained models, writing to the folder out."""

    def start(*arguments):
        options = ["--checkpoint", trained_folder / "cnn.pt", "--out", tmp_path / "out", *arguments]
        return kernel_vis.main([str(option) for option in options])

    return start


@pytest.fixture
def figures(monkeypatch):
    """The figures that the script makes, by file name, in place of the files."""
    made = {}
    monkeypatch.setattr(
        kernel_vis.plots, "save_figure", lambda figure, path: made.update({path.name: figure})
    )
    return made


def draw_garment_file(path):
    pixels = np.full((90, 60), 255, dtype=np.uint8)
    pixels[20:70, 15:45] = 60
    Image.fromarray(pixels).save(path)
    return path


# Files


def test_every_picture_is_written_and_names_the_stand_in(run, tmp_path, monkeypatch, capsys):
    titles = []
    save_figure = kernel_vis.plots.save_figure

    def note_title(figure, path):
        titles.append(figure.get_suptitle())
        save_figure(figure, path)

    monkeypatch.setattr(kernel_vis.plots, "save_figure", note_title)
    assert run() == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES
    printed = capsys.readouterr().out
    assert "test image 0" in printed and all(name in printed for name in PICTURES)
    for name in PICTURES:
        assert min(Image.open(tmp_path / "out" / name).size) > 300
    assert len(titles) == len(PICTURES) - 1  # the GIF is no figure
    assert all("drawn stand-in, not Fashion-MNIST" in title for title in titles)


@pytest.mark.parametrize("layer", [2, 3])
def test_deeper_layers_can_be_shown(run, tmp_path, figures, layer):
    assert run("--layer", layer, "--only", "kernel_grid", "image_transform_grid") == 0
    for figure in figures.values():
        assert f"convolution {layer}" in figure.get_suptitle()


def test_only_what_is_asked_for_is_made(run, tmp_path):
    assert run("--only", "top_activations", "kernel_grid", "top_activations") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "top_activations.png",
        "kernel_grid.png",
    }


def test_own_picture_needs_no_dataset(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_vis, "load_dataset", lambda *_: pytest.fail("data was loaded"))
    assert run("--image", draw_garment_file(tmp_path / "shirt.png")) == 0
    assert "shirt.png" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == OF_AN_IMAGE


def test_without_the_ffn_the_cnn_is_shown_alone(
    trained_folder, tmp_path, quick_drawing, figures, capsys
):
    shutil.copy(trained_folder / "cnn.pt", tmp_path)
    arguments = ["--checkpoint", tmp_path / "cnn.pt", "--out", tmp_path / "out", "--only"]
    arguments += ["saliency", "embedding"]
    assert kernel_vis.main([str(argument) for argument in arguments]) == 0
    assert "ffn.pt" in capsys.readouterr().err
    (embedding,) = figures["embedding.png"].axes
    assert embedding.get_title().startswith("CNN")


def test_without_a_recording_the_others_are_made_and_it_is_said(
    trained_folder, tmp_path, quick_drawing, capsys
):
    shutil.copy(trained_folder / "cnn.pt", tmp_path)
    arguments = ["--checkpoint", tmp_path / "cnn.pt", "--out", tmp_path / "out", "--only"]
    arguments = [str(argument) for argument in arguments]
    assert kernel_vis.main([*arguments, "kernel_grid", "training"]) == 0
    assert "--record" in capsys.readouterr().out
    assert kernel_vis.main([*arguments, "training"]) == 2
    assert "--record" in capsys.readouterr().err


# What they show


def test_kernels_and_what_they_see_come_in_one_order_under_one_name(run, figures, trained_folder):
    assert run("--only", "kernel_grid", "image_transform_grid") == 0
    kernel_axes = [axes for axes in figures["kernel_grid.png"].axes if axes.images]
    picture, *map_axes = (axes for axes in figures["image_transform_grid.png"].axes if axes.images)
    names = [axes.get_title() for axes in map_axes]
    assert [axes.get_title() for axes in kernel_axes] == names * 2 and len(names) == 32
    checkpoint = load_checkpoint(trained_folder / "cnn.pt", "cnn")
    image = np.asarray(picture.images[0].get_array()).astype(np.uint8)
    responses = explain.follow(checkpoint, image).responses[0]
    weights = checkpoint.model.blocks[0].conv.weight[:, 0].detach().numpy()
    for name, kernel, response in zip(names, kernel_axes[32:], map_axes, strict=True):
        number = int(name.split()[0])
        assert (kernel.images[0].get_array() == weights[number]).all()
        assert np.allclose(response.images[0].get_array(), responses[number])


def test_after_shows_what_batch_norm_and_relu_leave(run, figures):
    assert run("--only", "image_transform_grid", "--after") == 0
    figure = figures["image_transform_grid.png"]
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images][1:]
    assert all((each >= 0).all() for each in maps) and "ReLU" in figure.get_suptitle()


def test_of_a_large_layer_the_largest_kernels_are_shown(trained_folder):
    checkpoint = load_checkpoint(trained_folder / "cnn.pt", "cnn")
    numbers = kernel_vis.choose_kernels(checkpoint, 3).numbers
    assert len(set(numbers)) == kernel_vis.MAX_TILES
    norms = checkpoint.model.blocks[2].conv.weight.detach().flatten(1).norm(dim=1).numpy()
    assert norms[numbers].min() >= np.delete(norms, numbers).max()


def test_units_that_are_asked_for_are_shown(run, figures):
    assert run("--only", "top_activations", "--layer", 2, "--units", 5, 63) == 0
    labels = [axes.get_ylabel() for axes in figures["top_activations.png"].axes]
    assert [label.split("\n")[0] for label in labels if label] == ["unit 5", "unit 63"]


def test_saliency_shows_each_case_by_images_that_fit_it():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 50)
    right = {name: generator.random(500) < 0.7 for name in ("ffn", "cnn")}
    surety = {name: generator.uniform(0.5, 1, 500) for name in right}
    probabilities = {}
    for name, fits in right.items():
        guesses = np.where(fits, labels, (labels + 1) % 10)
        probabilities[name] = np.full((500, 10), 0.01)
        probabilities[name][np.arange(500), guesses] = surety[name]
    chosen = kernel_vis.choose_saliency_examples(probabilities, labels)
    assert [case for _, case in chosen] == [
        case for case, _, count in kernel_vis.SALIENCY_CASES for _ in range(count)
    ]
    cases = {case: fits for case, fits, _ in kernel_vis.SALIENCY_CASES}
    for index, case in chosen:
        assert (right["ffn"][index], right["cnn"][index]) == cases[case]
        less_sure = min(surety["ffn"][index], surety["cnn"][index])
        assert less_sure == pytest.approx(kernel_vis.SALIENCY_SURETY, abs=0.05)
    assert len({labels[index] for index, _ in chosen}) == len(chosen)


# Mistakes


def test_missing_checkpoint_names_the_command_that_makes_one(tmp_path, capsys):
    arguments = ["--checkpoint", str(tmp_path / "cnn.pt"), "--out", str(tmp_path / "out")]
    assert kernel_vis.main(arguments) == 2
    assert "python fashionmnist.py" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--layer", "0"),
        ("--layer", "4"),
        ("--layer", "one"),
        ("--only", "nonsense"),
        ("--units", "128", "--only", "top_activations"),
        ("--units", "-1"),
        ("--image", "-1"),
        ("--image", "2000"),
        ("--image", "no-such-file.png"),
        ("--image", "."),
        ("--nonsense", "1"),
    ],
)
def test_wrong_argument_is_refused_in_words(run, tmp_path, capsys, arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert arguments[0] in error and len(error.splitlines()) <= 2
    assert not list(tmp_path.glob("out/*"))


def test_models_of_different_data_are_not_shown_together(
    trained_folder, tiny_dataset, tmp_path, quick_drawing, capsys
):
    shutil.copy(trained_folder / "cnn.pt", tmp_path)
    other = replace(tiny_dataset, name="fashion-mnist")
    trainer = Trainer("ffn", other, RECIPES["ffn"], 0, torch.float32)
    write_tensors(tmp_path / "ffn.pt", checkpoint_content(trainer))
    arguments = ["--checkpoint", tmp_path / "cnn.pt", "--out", tmp_path / "out"]
    arguments += ["--only", "embedding"]
    assert kernel_vis.main([str(argument) for argument in arguments]) == 2
    assert "train both again" in capsys.readouterr().err


def test_missing_data_for_a_real_checkpoint_is_an_error(tmp_path, tiny_dataset, no_network, capsys):
    trainer = Trainer(
        "cnn", replace(tiny_dataset, name="fashion-mnist"), RECIPES["cnn"], 0, torch.float32
    )
    write_tensors(tmp_path / "cnn.pt", checkpoint_content(trainer))
    arguments = ["--checkpoint", tmp_path / "cnn.pt", "--data-dir", tmp_path / "data"]
    arguments += ["--out", tmp_path / "out"]
    assert kernel_vis.main([str(argument) for argument in arguments]) == 1
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
