import json
from dataclasses import replace

import pytest
import torch

import runs
from files import UserMistake
from runs import Workers, find_run, keep_run, run_path, score
from training import RECIPES, Trainer, load_checkpoint


@pytest.fixture(scope="module")
def trainer(tiny_dataset):
    """An FFN trained for two epochs."""
    recipe = replace(RECIPES["ffn"], epochs=2, batch_size=100)
    trainer = Trainer("ffn", tiny_dataset, recipe, seed=3, precision=torch.float32)
    while not trainer.finished:
        trainer.train_epoch()
    return trainer


@pytest.fixture
def kept(trainer, tmp_path):
    """That training's run, and the folder that it was kept in."""
    run = score(trainer)
    keep_run(tmp_path, run)
    return run, tmp_path


def test_score_looks_at_validation_and_test_images(trainer, tiny_dataset):
    run = score(trainer)
    assert run.validation_logits.shape == (100, 10) and run.test_logits.shape == (200, 10)
    right = (run.test_logits.argmax(1) == tiny_dataset.test_labels).float().mean().item()
    assert run.test.accuracy == pytest.approx(right)
    right = run.validation_logits.argmax(1) == tiny_dataset.labels[tiny_dataset.validation_indices]
    assert run.history[-1]["validation_accuracy"] == pytest.approx(right.float().mean().item())


def test_kept_run_comes_back_as_it_was(kept, trainer, tiny_dataset):
    run, folder = kept
    again = find_run(folder, trainer.identity(), tiny_dataset)
    assert again.test_logits.equal(run.test_logits) and again.test == run.test
    assert again.validation_logits.equal(run.validation_logits)
    for part in ("name", "seed", "identity", "history", "epoch_seconds", "tested_at"):
        assert getattr(again, part) == getattr(run, part)
    assert {path.name for path in folder.iterdir()} == {"ffn-seed3.json", "ffn-seed3.pt"}


def test_kept_weights_are_a_checkpoint(kept, trainer):
    checkpoint = load_checkpoint(run_path(kept[1], "ffn", 3, "pt"), "ffn")
    weights = trainer.averaged.state_dict()
    assert all(checkpoint.model.state_dict()[key].equal(weights[key]) for key in weights)


def test_figures_stand_in_the_json_file(kept):
    run, folder = kept
    figures = json.loads(run_path(folder, "ffn", 3, "json").read_text())
    assert figures["test_accuracy"] == run.test.accuracy
    assert figures["identity"]["epochs"] == 2 and len(figures["history"]) == 2


def test_run_without_its_figures_is_not_there(kept, trainer, tiny_dataset):
    run_path(kept[1], "ffn", 3, "json").unlink()
    assert find_run(kept[1], trainer.identity(), tiny_dataset) is None


def test_run_of_another_seed_is_not_there(kept, trainer, tiny_dataset):
    assert find_run(kept[1], trainer.identity() | {"seed": 4}, tiny_dataset) is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 3), ("lr", 0.1), ("dataset", "fashion-mnist"), ("images", 7), ("dropout", 0.9)],
)
def test_runs_of_other_settings_or_data_are_not_mixed(kept, trainer, tiny_dataset, setting, value):
    identity = trainer.identity() | {setting: value}
    with pytest.raises(UserMistake, match=f"run with {setting} .* not mixed"):
        find_run(kept[1], identity, tiny_dataset)


@pytest.mark.parametrize("ending", ["json", "pt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"nonsense"])
def test_damaged_run_is_an_error_that_names_a_file(kept, trainer, tiny_dataset, ending, content):
    run_path(kept[1], "ffn", 3, ending).write_bytes(content)
    with pytest.raises(UserMistake, match=r"ffn-seed3\..* damaged"):
        find_run(kept[1], trainer.identity(), tiny_dataset)


# Sharing out


JOBS = [("cnn", 0), ("cnn", 1), ("cnn", 2), ("ffn", 0), ("ffn", 1), ("ffn", 2)]


def test_one_process_does_all_that_is_missing():
    with Workers(torch.device("cpu")) as alone:
        assert alone.leads and alone.size == 1
        assert alone.portion(JOBS, have=[("cnn", 1), ("ffn", 2)]) == [
            ("cnn", 0),
            ("cnn", 2),
            ("ffn", 0),
            ("ffn", 1),
        ]
        assert alone.share(lambda: "made") == "made"
        assert alone.gather({JOBS[0]: "run"}) == {JOBS[0]: "run"}


def test_portions_are_disjoint_and_leave_out_what_any_process_has(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    # The other process has one run, and this one another: what the two exchange.
    monkeypatch.setattr(
        runs.dist,
        "all_gather_object",
        lambda everywhere, mine: everywhere.__setitem__(slice(None), [mine, {("cnn", 2)}]),
    )
    portions = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        workers = Workers(torch.device("cpu"))
        assert workers.leads == (rank == 0)
        portions.append(workers.portion(JOBS, have=[("ffn", 1)]))
    assert portions == [[("cnn", 0), ("ffn", 0)], [("cnn", 1), ("ffn", 2)]]
