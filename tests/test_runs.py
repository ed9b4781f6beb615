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
    statistics = tiny_dataset.mean, tiny_dataset.std
    both = average_over_flip(trainer.averaged, tiny_dataset.test_images, *statistics)
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
    torch.testing.assert_close(
        [found.weights, found.validation_logits, found.test_logits],
        [run.weights, run.validation_logits, run.test_logits],
        rtol=0,
        atol=0,
    )
    for part in vars(run).keys() - {"weights", "validation_logits", "test_logits"}:
        assert getattr(found, part) == getattr(run, part)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_saved_weights_are_a_checkpoint(folder, run):
    checkpoint = load_weights(run_path(folder, "ffn", 3, ".safetensors"), FFN)
    assert checkpoint.metadata == run.metadata


def test_json_file_has_settings_and_results(folder, run):
    figures = json.loads((folder / "ffn-seed3.json").read_text())
    assert figures == {"identity": run.identity, **run.measurements()}
    assert figures["identity"] | {"epochs": 2, "seed": 3, **MODEL} == figures["identity"]
    assert figures["test_accuracy"] == run.test.accuracy
    assert figures["confusion_matrix"] == run.test.confusion_matrix
    assert figures["train_seconds"] == sum(run.epoch_seconds)


def test_other_seeds_and_models_are_not_found(folder, tiny_dataset, trainer):
    assert find_run(folder, "ffn", make_trainer(tiny_dataset, seed=4)) is None
    assert find_run(folder, "other", trainer) is None


@pytest.mark.parametrize(
    ("settings", "images", "difference"),
    [
        ({"epochs": 3}, 500, "epochs 2, but this command has 3"),
        ({"model": MODEL | {"dropout": 0.9}}, 500, "dropout 0.125, but this command has 0.9"),
        ({}, 100, "images 500, but this command has 100"),
    ],
)
def test_other_settings_or_data_are_not_mixed(folder, tiny_dataset, settings, images, difference):
    dataset = replace(tiny_dataset, train_indices=tiny_dataset.train_indices[:images])
    with pytest.raises(UsageError, match=f"is a run with {difference}"):
        find_run(folder, "ffn", make_trainer(dataset, **settings))


@pytest.mark.parametrize("name", FILES)
def test_damaged_or_incomplete_run_is_an_error_that_names_the_file(folder, trainer, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"{path} is damaged"):
        find_run(folder, "ffn", trainer)
    path.unlink()
    if name == FILES[0]:  # written last
        assert find_run(folder, "ffn", trainer) is None
    else:
        with pytest.raises(RunError, match=f"cannot read {path}"):
            find_run(folder, "ffn", trainer)


# Several processes

JOBS = [("cnn", 0), ("cnn", 1), ("cnn", 2), ("ffn", 0), ("ffn", 1), ("ffn", 2)]


def test_one_process_does_all_missing_jobs():
    with Workers(torch.device("cpu")) as alone:
        assert alone.first and alone.size == 1
        assert alone.select(JOBS, done=[JOBS[1], JOBS[5]]) == [JOBS[0], *JOBS[2:5]]
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


@pytest.mark.parametrize(
    ("method", "arguments"), [("share", [dict]), ("select", [JOBS, []]), ("gather", [{}])]
)
def test_end_of_another_process_is_explained(monkeypatch, method, arguments):
    def fail(*_, **__):
        raise RuntimeError("Connection closed by peer")

    for function in ("broadcast_object_list", "all_gather_object"):
        monkeypatch.setattr(runs.dist, function, fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="another process of this job has ended"):
        getattr(Workers(torch.device("cpu")), method)(*arguments)


def test_scores_are_computed_in_float32(tiny_dataset):
    recipe = replace(FFN.recipe, epochs=1, batch_size=100, model=MODEL)
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
    with pytest.raises(UsageError, match=r"3 processes .* this machine has 2; start fewer"):
        Workers(torch.device("cuda"))


def test_run_of_another_environment_is_used_with_a_warning(folder, trainer, monkeypatch, caplog):
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    run = find_run(folder, "ffn", trainer)
    assert "this process has torch 0.0.1" in caplog.text
    assert run.measurements()["environment"]["torch"] != "0.0.1"
