from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import kernel_vis
from training import RECIPES, Trainer, checkpoint_content, load_checkpoint, write_tensors

PICTURES = {"kernel_grid.png", "image_transform_grid.png", "feature_progression.png"}


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory, tiny_dataset):
    """A CNN trained for one epoch on the stand-in."""
    path = tmp_path_factory.mktemp("checkpoint") / "cnn.pt"
    trainer = Trainer("cnn", tiny_dataset, replace(RECIPES["cnn"], epochs=1), 0, torch.float32)
    trainer.train_epoch()
    write_tensors(path, checkpoint_content(trainer))
    return path


@pytest.fixture
def run(checkpoint_path, tmp_path, quick_drawing):
    """Run the script on that checkpoint, writing to the folder out."""

    def start(*arguments):
        options = ["--checkpoint", checkpoint_path, "--out", tmp_path / "out", *arguments]
        return kernel_vis.main([str(option) for option in options])

    return start


def draw_garment_file(path, light_ground=False, mode="L"):
    pixels = np.full((90, 60), 255 if light_ground else 0, dtype=np.uint8)
    pixels[20:70, 15:45] = 60 if light_ground else 200
    Image.fromarray(pixels).convert(mode).save(path)
    return path


# Files


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_every_picture_is_written_for_each_layer(run, tmp_path, layer, capsys):
    assert run("--layer", layer) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES
    printed = capsys.readouterr().out
    assert "test image 0" in printed and all(name in printed for name in PICTURES)
    for name in PICTURES:
        assert min(Image.open(tmp_path / "out" / name).size) > 500


def test_stand_in_is_named_in_every_title(run, monkeypatch):
    titles = []
    monkeypatch.setattr(
        kernel_vis.plots, "save_figure", lambda figure, path: titles.append(figure.get_suptitle())
    )
    assert run() == 0
    assert len(titles) == 3
    assert all("drawn stand-in, not Fashion-MNIST" in title for title in titles)


def test_own_picture_needs_no_dataset(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_vis, "load_dataset", lambda *_: pytest.fail("data was loaded"))
    assert run("--image", draw_garment_file(tmp_path / "shirt.png")) == 0
    assert "shirt.png" in capsys.readouterr().out


# What they show


def test_feature_maps_are_those_of_the_model(checkpoint_path, tiny_dataset):
    checkpoint = load_checkpoint(checkpoint_path, "cnn")
    picture = tiny_dataset.test_images[0].numpy()
    responses, activations = kernel_vis.feature_maps(checkpoint, picture)
    assert [maps.shape[1] for maps in responses] == [28, 14, 7]
    assert [maps.shape[1] for maps in activations] == [14, 7, 3]
    assert all((maps >= 0).all() for maps in activations)
    # The first response, computed pixel by pixel: a kernel slid over the normalised picture.
    image = np.pad((picture / 255 - checkpoint.mean) / checkpoint.std, 1)
    kernel = checkpoint.model.blocks[0].conv.weight[5, 0].detach().numpy()
    by_hand = [[(image[y : y + 3, x : x + 3] * kernel).sum() for x in range(28)] for y in range(28)]
    assert np.allclose(responses[0][5], by_hand, atol=1e-4)


def test_deeper_kernels_are_shown_by_their_strongest_slice(checkpoint_path):
    model = load_checkpoint(checkpoint_path, "cnn").model
    with torch.no_grad():
        model.blocks[1].conv.weight[3, 17] = 9
    tiles, explanation = kernel_vis.kernel_tiles(model, 2)
    assert (tiles[3] == 9).all() and "strongest" in explanation


def test_of_a_large_layer_the_largest_kernels_are_shown_in_order(checkpoint_path):
    model = load_checkpoint(checkpoint_path, "cnn").model
    numbers = kernel_vis.strongest_kernels(model, 3)
    assert len(numbers) == kernel_vis.MAX_TILES and (np.diff(numbers) > 0).all()
    norms = model.blocks[2].conv.weight.detach().flatten(1).norm(dim=1).numpy()
    assert norms[numbers].min() >= np.delete(norms, numbers).max()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("light_ground", [True, False])
def test_own_picture_becomes_light_on_black(tmp_path, mode, light_ground):
    name = "garment.tiff" if mode == "CMYK" else "garment.png"
    picture = kernel_vis.read_picture(draw_garment_file(tmp_path / name, light_ground, mode))
    assert picture.shape == (28, 28) and picture.dtype == np.uint8
    assert picture[0, 0] < 10 and picture[14, 14] > 150


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


@pytest.mark.parametrize("content", [b"", b"random bytes" * 50, b"\x89PNG\r\n\x1a\n broken"])
def test_file_that_is_no_picture_is_refused(run, tmp_path, capsys, content):
    (tmp_path / "picture.png").write_bytes(content)
    assert run("--image", tmp_path / "picture.png") == 2
    assert "picture.png" in capsys.readouterr().err


def test_truncated_picture_is_refused(run, tmp_path, capsys):
    path = draw_garment_file(tmp_path / "picture.png", mode="RGB")
    path.write_bytes(path.read_bytes()[:-30])
    assert run("--image", path) == 2
    assert "damaged" in capsys.readouterr().err


def test_missing_data_for_a_real_checkpoint_is_an_error(tmp_path, tiny_dataset, no_network, capsys):
    trainer = Trainer(
        "cnn", replace(tiny_dataset, name="fashion-mnist"), RECIPES["cnn"], 0, torch.float32
    )
    write_tensors(tmp_path / "cnn.pt", checkpoint_content(trainer))
    arguments = ["--checkpoint", tmp_path / "cnn.pt", "--data-dir", tmp_path / "data"]
    arguments += ["--out", tmp_path / "out"]
    assert kernel_vis.main([str(argument) for argument in arguments]) == 1
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
