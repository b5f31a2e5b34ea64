import json
import logging
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mister_e_hf import Recipe
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.whole_files import UNFINISHED
from mister_e_hf.corpora.demo import demo_corpus
from mister_e_hf.evaluation.metrics import softmax
from mister_e_hf.training.checkpoints import MANIFEST, damage, finished_checkpoints, newest_whole, remove, seal
from mister_e_hf.training.experiment import run_experiment
from mister_e_hf.training.first_steps import FirstSteps
from mister_e_hf.training.run_folder import claim_run, read_results
from mister_e_hf.vectors.store import write_vectors

ROOT = Path(__file__).parents[2]
# The best epoch is not the last one, so that two checkpoints stay until the end.
WORDS = ["--hidden_size", "8", "--disable_tqdm", "--num_train_epochs", "4", "--learning_rate", "0.1"]
WORDS += ["--early_stopping_patience", "null"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, table in demo_corpus(0, sizes={"train": 16, "validation": 6, "test": 6}).items():
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def train(corpus: Path, folder: Path, *words: str) -> dict:
    recipe = Recipe.load(ROOT / "hub_configs" / "demo.yaml", ["--corpus", str(corpus), *WORDS, *words])
    return run_experiment(recipe, folder, seed=0)


def outcome(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "predictions.parquet").read_bytes()


CHANGES = ("replace", "unlink", "remove", "rmdir", "mkdir")


def train_dying(corpus: Path, folder: Path, at: int | None) -> int:
    """Train in a process that is killed before the `at`-th renaming of a file or folder; return the number of them."""
    counted, writing = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def dying(real):
            def change(*arguments, **kwargs):
                nonlocal count
                count += 1
                if count == at:
                    os._exit(137)
                return real(*arguments, **kwargs)

            return change

        for name in CHANGES:
            setattr(os, name, dying(getattr(os, name)))
        try:
            train(corpus, folder)
            os.write(writing, str(count).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(counted) as file:
        return int(file.read() or 0)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    results = train(corpus, folder)
    assert results["best_epoch"] < results["epochs"] == 4
    assert [path.name for path in finished_checkpoints(folder)] == [f"checkpoint-{round(2 * results['best_epoch'])}"]
    return folder


@pytest.fixture(scope="module")
def killed(corpus, whole, tmp_path_factory) -> Path:
    """Before the newest checkpoint, which is not the best, goes."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    child = os.fork()
    if not child:
        from mister_e_hf.training.epoch_trainer import EpochTrainer

        EpochTrainer._finalize_training = lambda *arguments, **kwargs: os._exit(137)
        train(corpus, folder)
    os.waitpid(child, 0)
    assert len(finished_checkpoints(folder)) == 2 and finished_checkpoints(folder)[-1].name == "checkpoint-8"
    return folder


@pytest.mark.slow
def test_a_run_killed_before_any_rename_resumes_to_the_same_result(corpus, whole, tmp_path):
    count = train_dying(corpus, tmp_path / "counted", None)
    assert outcome(tmp_path / "counted") == outcome(whole) and count > 50
    for at in (count // 2, count - 4):
        folder = tmp_path / f"killed-{at}"
        assert train_dying(corpus, folder, at) == 0
        assert all(damage(path) is None for path in finished_checkpoints(folder)), at
        train(corpus, folder)
        assert outcome(folder) == outcome(whole), at
        assert not list(folder.rglob(f"{UNFINISHED}*")), at


def weights_of_nan(checkpoint: Path):
    path = checkpoint / "model.safetensors"
    save_file({name: value * torch.nan for name, value in load_file(path).items()}, path, {"format": "pt"})


def cut(name: str):
    return lambda checkpoint: os.truncate(checkpoint / name, (checkpoint / name).stat().st_size - 99)


DAMAGES = {
    "optimizer.pt is missing": lambda checkpoint: (checkpoint / "optimizer.pt").unlink(),
    "model.safetensors was changed": weights_of_nan,
    "trainer_state.json has": cut("trainer_state.json"),
    "manifest.json' is not a manifest": cut(MANIFEST),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(corpus, whole, killed, tmp_path, caplog, said):
    folder = shutil.copytree(killed, tmp_path / "run")
    older, newest = finished_checkpoints(folder)
    DAMAGES[said](newest)
    with caplog.at_level(logging.WARNING):
        train(corpus, folder)
    assert outcome(folder) == outcome(whole)
    assert f"checkpoint-8 is not whole ({said}" in caplog.text.replace(str(newest) + "/", "").replace("('", "(")
    assert f"resuming from {older.name}" in caplog.text


def test_training_starts_again_without_a_complete_checkpoint(corpus, whole, killed, tmp_path, caplog):
    """Also where the newest is whole and the best one so far is not: the best could not be loaded in the end."""
    folder = shutil.copytree(killed, tmp_path / "run")
    best, _ = finished_checkpoints(folder)
    weights_of_nan(best)
    train(corpus, folder)
    assert outcome(folder) == outcome(whole)
    assert f"its best checkpoint so far, {best.name}: model.safetensors was changed" in caplog.text
    assert "training starts from the beginning" in caplog.text


def test_a_moved_run_keeps_its_best_epoch(corpus, whole, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "elsewhere")
    results = train(corpus, folder)
    assert outcome(folder) == outcome(whole) and results["best_epoch"] == read_results(whole)["best_epoch"]


def test_checkpoints_of_version_0_1_resume_without_a_manifest(corpus, whole, killed, tmp_path, caplog):
    folder = shutil.copytree(killed, tmp_path / "run")
    for checkpoint in finished_checkpoints(folder):
        (checkpoint / MANIFEST).unlink()
    train(corpus, folder)
    assert outcome(folder) == outcome(whole) and "whole" not in caplog.text


def test_a_newer_transformers_does_not_change_the_record_of_a_run(corpus, whole, killed, tmp_path, monkeypatch):
    finished, resumed = (shutil.copytree(path, tmp_path / path.parent.name) for path in (whole, killed))
    monkeypatch.setattr(transformers.configuration_utils, "__version__", "99.0.0")
    assert train(corpus, finished) == read_results(whole)
    train(corpus, resumed)
    assert json.loads((resumed / "config.json").read_text())["transformers_version"] == "99.0.0"
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_damage_is_seen_without_a_manifest(killed, tmp_path, name):
    checkpoint = Path(shutil.copytree(finished_checkpoints(killed)[-1], tmp_path / "checkpoint-6"))
    (checkpoint / MANIFEST).unlink()
    assert damage(checkpoint) is None
    os.truncate(checkpoint / name, (checkpoint / name).stat().st_size - 100)
    assert damage(checkpoint).startswith(f"{name} is cut off or damaged")


@pytest.mark.parametrize("text", ["[]", "{}", "{"])
def test_an_invalid_trainer_state_is_damage(killed, tmp_path, text):
    checkpoint = Path(shutil.copytree(finished_checkpoints(killed)[-1], tmp_path / "checkpoint-6"))
    (checkpoint / MANIFEST).unlink()
    (checkpoint / "trainer_state.json").write_text(text)
    assert "trainer_state.json" in damage(checkpoint)
    (checkpoint / MANIFEST).write_text('{"files": {}}')
    assert damage(checkpoint) == "manifest.json names no file"


def test_damage_names_the_file(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / "adapter").mkdir(parents=True)
    for name in ("trainer_state.json", "optimizer.pt", "adapter/adapter_model.safetensors"):
        (checkpoint / name).write_text("{}" * 10)
    assert damage(checkpoint) == "scheduler.pt is missing or empty"
    seal(checkpoint, "float32")
    assert damage(checkpoint) is None
    (checkpoint / "adapter/adapter_model.safetensors").write_text("[]" * 10)
    assert damage(checkpoint) == "adapter/adapter_model.safetensors was changed since it was saved"
    (checkpoint / "adapter/adapter_model.safetensors").write_text("[]")
    assert damage(checkpoint) == "adapter/adapter_model.safetensors has 2 bytes, 20 were saved"
    (tmp_path / "checkpoint-words").mkdir()
    (tmp_path / "checkpoint-4").write_text("a file")
    assert finished_checkpoints(tmp_path) == [checkpoint]
    assert newest_whole(tmp_path, with_best=False) == (
        None,
        ["checkpoint-3 is not whole (adapter/adapter_model.safetensors has 2 bytes, 20 were saved)"],
    )
    remove(checkpoint)
    assert not checkpoint.exists() and not list((tmp_path / UNFINISHED).iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", "", r"results.json' .*empty or damaged. Remove it"),
        ("results.json", "[1]", r"results.json' .*empty or damaged. Remove it"),
        ("results.json", '{"a": ', r"results.json' is not the results of a run that can be read"),
        ("run.yaml", "", r"run.yaml' is not a complete record of a run: it is empty or truncated"),
        ("run.yaml", "recipe: {rate: 1}\n", r"run.yaml' is not a complete record of a run: it lacks seed. Restore it"),
        ("run.yaml", "recipe: {rate", r"run.yaml' is not valid YAML"),
        ("run.yaml", "recipe: {rate: 1}\nseed: 3\nseed: 3\n", r"'seed' appears twice, in lines 2 and 3"),
        (
            "run.yaml",
            "recipe: {rate: 2}\nseed: 3\n",
            r"recipe.rate is 2 there and 1 here. Choose another --output_dir",
        ),
        ("run.yaml", "recipe: {rate: 1, x: a}\nseed: 4\n", r"recipe.x is 'a' there and not set here; seed is 4 there"),
    ],
)
def test_damaged_or_different_records_raise(tmp_path, name, content, message):
    record = {"recipe": {"rate": 1}, "seed": 3}
    assert not claim_run(tmp_path, record)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        claim_run(tmp_path, record)


# Numbers that are not finite


def test_a_loss_that_is_not_finite_stops_training(corpus, tmp_path):
    with pytest.raises(InputError, match=r"ended at step [23]: the loss's term .* is not finite"):
        train(corpus, tmp_path, "--learning_rate", "1e30")
    assert read_results(tmp_path) is None and not finished_checkpoints(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_first_step_and_term_that_are_not_finite_are_found():
    found = FirstSteps()
    assert found.first() is None
    for step, values in enumerate([(1.0, 2.0), (1.0, torch.inf), (torch.nan, torch.nan), (1.0, 1.0)], start=1):
        found.note(step, dict(zip(("focal", "contrastive"), map(torch.tensor, values), strict=True)))
        assert found.first() == (None if step == 1 else (2, "contrastive"))


def test_softmax_of_logits_that_are_not_finite_raises():
    with pytest.raises(InputError, match="logits are not finite"):
        softmax(torch.tensor([[0.0, torch.nan]]).numpy())


# Vectors that change under a run


def in_place(path: Path):
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))


@pytest.mark.parametrize("change", [in_place, lambda path: os.truncate(path, 1000)])
def test_vectors_changed_during_training_raise(corpus, tmp_path, monkeypatch, change):
    from mister_e_hf.training import experiment

    for split in ("train", "validation", "test"):
        table = pq.read_table(corpus / f"{split}.parquet")
        columns = ("speech_features", "text_features")
        parts = {name: torch.tensor([row for turns in table[name].to_pylist() for row in turns]) for name in columns}
        write_vectors(tmp_path / "v", split, table.drop_columns(list(columns)), **parts)
    trained = experiment.train_model

    def train_and_change(*arguments):
        found = trained(*arguments)
        change(tmp_path / "v" / "test.safetensors")
        return found

    monkeypatch.setattr(experiment, "train_model", train_and_change)
    with pytest.raises(InputError, match="test.safetensors' was changed while it was read"):
        train(tmp_path / "v", tmp_path / "run", "--num_train_epochs", "1")
    assert read_results(tmp_path / "run") is None


def test_a_run_in_the_folder_of_its_corpus_raises(corpus):
    before = sorted(corpus.iterdir())
    with pytest.raises(InputError, match="an input of this command; choose another output"):
        train(corpus, corpus)
    with pytest.raises(InputError, match="an input of this command; choose another output"):
        train(corpus, corpus / "run")
    assert sorted(corpus.iterdir()) == before


def test_checkpoints_are_ordered_by_step(tmp_path):
    for step in (9, 10, 100, 99):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / ".unfinished" / "checkpoint-200").mkdir(parents=True)
    assert [path.name for path in finished_checkpoints(tmp_path)] == [
        f"checkpoint-{step}" for step in (9, 10, 99, 100)
    ]
    assert finished_checkpoints(tmp_path / "nothing") == []
