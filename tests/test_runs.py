import json
from dataclasses import replace

import pytest
import torch

from fashion import runs
from fashion.checkpoint import load_weights
from fashion.data import normalize
from fashion.evaluation import average_over_flip
from fashion.files import RunError, UsageError
from fashion.layers import count_parameters
from fashion.runs import Workers, find_run, run_path, save_run, score
from fashion.training import Trainer
from ffn import FFN

MODEL = {"widths": [64, 48, 32, 16], "dropout": 0.125}
FILES = ["ffn-seed3.json", "ffn-seed3.logits.safetensors", "ffn-seed3.safetensors"]


def make_trainer(dataset, seed=3, **settings):
    recipe = replace(FFN.recipe, **{"epochs": 2, "batch_size": 100, "model": MODEL} | settings)
    return Trainer(FFN, dataset, recipe, seed, torch.float32)


@pytest.fixture(scope="module")
def trainer(tiny_dataset):
    """An FFN trained for two epochs."""
    trainer = make_trainer(tiny_dataset)
    while not trainer.finished:
        trainer.train_epoch()
    return trainer


@pytest.fixture(scope="module")
def run(trainer):
    """Its run."""
    return score(trainer, "ffn")


@pytest.fixture
def folder(run, tmp_path):
    """A folder with the saved run."""
    save_run(tmp_path, run)
    return tmp_path


# Scoring


def test_score_uses_the_averaged_weights_on_validation_and_test_images(run, trainer, tiny_dataset):
    chosen = tiny_dataset.validation_indices
    assert run.validation_logits.shape == (100, 10) and run.test_logits.shape == (200, 10)
    correct = (run.validation_logits.argmax(1) == tiny_dataset.labels[chosen]).float().mean()
    assert trainer.history[-1]["validation_accuracy"] == pytest.approx(correct.item())
    correct = (run.test_logits.argmax(1) == tiny_dataset.test_labels).float().mean()
    assert run.test.accuracy == pytest.approx(correct.item())
    both = average_over_flip(
        trainer.averaged,
        tiny_dataset.test_images,
        tiny_dataset.mean,
        tiny_dataset.std,
    )
    correct = (both.argmax(1) == tiny_dataset.test_labels).float().mean()
    assert run.flip_averaged_accuracy == pytest.approx(correct.item())
    assert run.probabilities == pytest.approx(run.test_logits.softmax(1).numpy())


def test_model_of_a_run_is_built_without_drawing_random_numbers(run, trainer):
    before = torch.get_rng_state()
    assert run.build_model().arguments == MODEL
    assert run.parameters == count_parameters(trainer.model)
    assert torch.get_rng_state().equal(before)


# Files


def test_saved_run_is_found_as_it_was(folder, run, tiny_dataset):
    found = find_run(folder, "ffn", make_trainer(tiny_dataset))
    for part in vars(run).keys() - {"weights", "validation_logits", "test_logits"}:
        assert getattr(found, part) == getattr(run, part)
    assert found.weights.keys() == run.weights.keys()
    assert all(found.weights[key].equal(run.weights[key]) for key in run.weights)
    assert found.validation_logits.equal(run.validation_logits)
    assert found.test_logits.equal(run.test_logits)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_saved_weights_are_a_checkpoint(folder, run):
    checkpoint = load_weights(run_path(folder, "ffn", 3, ".safetensors"), FFN)
    assert checkpoint.metadata == run.metadata


def test_json_file_has_settings_and_results(folder, run):
    figures = json.loads((folder / "ffn-seed3.json").read_text())
    assert figures == {"identity": run.identity, **run.figures()}
    assert figures["identity"] | {"epochs": 2, "seed": 3, **MODEL} == figures["identity"]
    assert figures["test_accuracy"] == run.test.accuracy
    assert figures["confusion_matrix"] == run.test.confusion_matrix
    assert figures["train_seconds"] == sum(run.epoch_seconds)


def test_incomplete_run_and_other_seeds_are_not_found(folder, tiny_dataset):
    assert find_run(folder, "ffn", make_trainer(tiny_dataset, seed=4)) is None
    assert find_run(folder, "other", make_trainer(tiny_dataset)) is None
    (folder / "ffn-seed3.json").unlink()
    assert find_run(folder, "ffn", make_trainer(tiny_dataset)) is None


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"epochs": 3}, "epochs 2, this series has 3"),
        ({"learning_rate": 0.5}, "learning_rate 0.004, this series has 0.5"),
        ({"model": MODEL | {"dropout": 0.9}}, "dropout 0.125, this series has 0.9"),
    ],
)
def test_runs_with_other_settings_are_not_mixed(folder, tiny_dataset, settings, difference):
    with pytest.raises(UsageError, match=f"is a run with {difference}; .* are not mixed"):
        find_run(folder, "ffn", make_trainer(tiny_dataset, **settings))


def test_runs_with_other_data_are_not_mixed(folder, tiny_dataset):
    fewer = replace(tiny_dataset, train_indices=tiny_dataset.train_indices[:100])
    with pytest.raises(UsageError, match="is a run with images 500, this series has 100"):
        find_run(folder, "ffn", make_trainer(fewer))


@pytest.mark.parametrize("name", FILES)
def test_damaged_run_is_an_error_that_names_the_file(folder, tiny_dataset, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"{path} is damaged"):
        find_run(folder, "ffn", make_trainer(tiny_dataset))


@pytest.mark.parametrize("name", FILES[1:])
def test_run_without_its_weights_or_predictions_is_an_error(folder, tiny_dataset, name):
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"cannot read {folder / name}"):
        find_run(folder, "ffn", make_trainer(tiny_dataset))


# Several processes

JOBS = [("cnn", 0), ("cnn", 1), ("cnn", 2), ("ffn", 0), ("ffn", 1), ("ffn", 2)]


def test_one_process_does_all_missing_jobs():
    with Workers(torch.device("cpu")) as alone:
        assert alone.first and alone.size == 1
        assert alone.select(JOBS, done=[("cnn", 1), ("ffn", 2)]) == [
            ("cnn", 0),
            ("cnn", 2),
            ("ffn", 0),
            ("ffn", 1),
        ]
        assert alone.share(lambda: "made") == "made"
        assert alone.gather({JOBS[0]: "run"}) == {JOBS[0]: "run"}


def test_processes_share_the_jobs_that_none_has_done(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    # The other process has done ("cnn", 2), this one ("ffn", 1).
    monkeypatch.setattr(
        runs.dist,
        "all_gather_object",
        lambda everywhere, mine: everywhere.__setitem__(slice(None), [mine, {("cnn", 2)}]),
    )
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        workers = Workers(torch.device("cpu"))
        assert workers.first == (rank == 0)
        shares.append(workers.select(JOBS, done=[("ffn", 1)]))
    assert shares == [[("cnn", 0), ("ffn", 0)], [("cnn", 1), ("ffn", 2)]]


def test_each_process_has_its_own_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Workers(torch.device("cuda")).device == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Workers(torch.device("cuda")).device == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]


def test_end_of_another_process_is_explained(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Connection closed by peer")

    for function in ("broadcast_object_list", "all_gather_object", "gather_object"):
        monkeypatch.setattr(runs.dist, function, fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    workers = Workers(torch.device("cpu"))
    for call in (
        lambda: workers.share(dict),
        lambda: workers.select(JOBS, []),
        lambda: workers.gather({}),
    ):
        with pytest.raises(RunError, match="another process of this job has ended"):
            call()


def test_scores_are_computed_in_float32(tiny_dataset):
    recipe = replace(FFN.recipe, epochs=1, batch_size=100)
    trainer = Trainer(FFN, tiny_dataset, recipe, 0, torch.bfloat16)
    trainer.train_epoch()
    run = score(trainer, "ffn")
    images = normalize(tiny_dataset.test_images, tiny_dataset.mean, tiny_dataset.std)
    with torch.inference_mode():
        expected = trainer.averaged.eval()(images)
    assert torch.allclose(run.test_logits, expected, atol=1e-5)


def test_more_processes_than_gpus_are_rejected(monkeypatch):
    for key, value in (("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"3 processes .* and it has 2"):
        Workers(torch.device("cuda"))


def test_run_of_another_environment_is_used_with_a_warning(folder, trainer, monkeypatch, caplog):
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    run = find_run(folder, "ffn", trainer)
    assert "this process has torch 0.0.1" in caplog.text
    assert run.figures()["environment"]["torch"] != "0.0.1"
