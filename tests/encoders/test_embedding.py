import copy
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mister_e_hf import Recipe, read_corpus
from mister_e_hf.base import threads
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.dialogues import cross_fitting_folds
from mister_e_hf.corpora.publishing import corpus_of, push_corpus
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.encoders.alignment import align
from mister_e_hf.encoders.embedding import RECORD, EmbeddingOptions, embed_corpus, embed_turns
from mister_e_hf.encoders.utterances import Utterances
from mister_e_hf.media.audio import AudioError
from mister_e_hf.training.experiment import run_experiment
from support.small_encoders import LABELS, RATE, read_lines, tiny_encoder, write_backbone, write_lines

pytestmark = pytest.mark.usefixtures("own_cache")

SIZES = {"train": 12, "validation": 3, "test": 3}
LABEL2ID = {label: index for index, label in enumerate(LABELS)}
SHARD = 8  # turns


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> datasets.DatasetDict:
    folder = tmp_path_factory.mktemp("lines")
    return read_lines(write_lines(folder / "source", SIZES), folder / "cache")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    return {modality: write_backbone(folder / modality, modality) for modality in ("speech", "text")}


@pytest.fixture(scope="module")
def encoders(backbones):
    return {modality: tiny_encoder(folder, modality) for modality, folder in backbones.items()}


@pytest.fixture(scope="module")
def whole(corpus, encoders, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    return embed_corpus(corpus, encoders, tmp_path_factory.mktemp("whole"), shard_turns=SHARD)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def progress(capfd) -> list[tuple[int, int]]:
    """Every (count, total) that was shown."""
    return [(int(done), int(total)) for done, total in re.findall(r"(\d+) of (\d+) turns", capfd.readouterr().err)]


# What stands in the folder


def one_at_a_time(encoder, processor, utterances: Utterances) -> torch.Tensor:
    vectors = torch.zeros(utterances.num_turns, encoder.config.embedding_dim)
    for item in (utterances[number] for number in range(len(utterances))):
        with torch.no_grad():
            vectors[item["index"]] = encoder(**processor([item["turn"]])).embeddings[0]
    return vectors


def test_vectors_are_those_of_each_turn_alone_in_the_order_of_the_corpus(corpus, encoders, whole):
    shards = [path.name for path in sorted(whole.glob("train-*.parquet"))]
    assert len(shards) > 3 and shards[-1] == f"train-{len(shards) - 1:05}-of-{len(shards):05}.parquet"
    read = read_corpus(whole, LABEL2ID, score_column="sentiment")
    for split, data in read.items():
        rows = corpus[split].to_list()
        turns = [turn for row in rows for turn in row["utterances"]]
        assert data.dialogue_ids == [row["dialogue_id"] for row in rows]
        assert data.utterance_ids == [[turn["utterance_id"] for turn in row["utterances"]] for row in rows]
        assert data.labels.tolist() == [-100 if turn["emotion"] is None else turn["emotion"] for turn in turns]
        np.testing.assert_array_equal(data.scores, [turn["sentiment"] for turn in turns])
        assert data.present["speech"].tolist() == [turn["audio"] is not None for turn in turns]
        assert data.present["text"].tolist() == [turn["text"] is not None for turn in turns]
        for modality, (encoder, processor) in encoders.items():
            expected = one_at_a_time(encoder, processor, Utterances(corpus[split], modality))
            found = data.vectors[modality].rows(0, data.num_turns)
            assert found.dtype == torch.float32 and not data.present[modality].all()
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(found.abs().sum(1) > 0, torch.from_numpy(data.present[modality]))
    tables = [row for path in sorted(whole.glob("train-*.parquet")) for row in pq.read_table(path).to_pylist()]
    for row, table in zip(corpus["train"].to_list(), tables, strict=True):
        assert table["texts"] == [turn["text"] for turn in row["utterances"]]
        assert table["speakers"] == [turn["speaker"] for turn in row["utterances"]]
        assert "audio" not in str(table.keys() - {"has_audio"})


def test_training_turns_get_the_vectors_of_the_encoder_that_has_not_seen_them(
    corpus, encoders, backbones, whole, tmp_path
):
    encoder, processor = encoders["text"]
    others = [tiny_encoder(backbones["text"], "text", seed=seed)[0] for seed in (1, 2, 3)]
    options = {"shard_turns": SHARD, "fold_encoders": {"text": others}}
    folder = embed_corpus(corpus, encoders, tmp_path / "crossed", **options)
    crossed, plain = read_corpus(folder, LABEL2ID), read_corpus(whole, LABEL2ID)
    for split, data in crossed.items():
        for modality in ("speech", "text"):
            found = data.vectors[modality].rows(0, data.num_turns)
            present = data.present[modality]
            assert present.tolist() == plain[split].present[modality].tolist()
            same = torch.equal(found, plain[split].vectors[modality].rows(0, data.num_turns))
            assert same == ((split, modality) != ("train", "text"))
    data = crossed["train"]
    found, present = data.vectors["text"].rows(0, data.num_turns), torch.from_numpy(data.present["text"])
    turns = Utterances(corpus["train"], "text")
    target = one_at_a_time(encoder, processor, turns)
    fold = torch.from_numpy(np.repeat(cross_fitting_folds(len(data), 3), data.lengths))
    for number, other in enumerate(others):
        own = one_at_a_time(other, processor, turns)
        seen, held_out = present & (fold != number), present & (fold == number)
        alignment = align(own[seen], target[seen])
        torch.testing.assert_close(found[held_out], alignment(own[held_out]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="holds vectors with other settings: fold encoders"):
        embed_corpus(corpus, encoders, folder, shard_turns=SHARD, fold_encoders={"text": others[::-1]})
    with pytest.raises(ValueError, match=r"fold_encoders name \['text'\], but encoders only \['speech'\]"):
        embed_corpus(corpus, {"speech": encoders["speech"]}, tmp_path / "other", fold_encoders={"text": others})
    assert not (tmp_path / "other").exists()


def test_encoders_that_differ_by_a_rotation_give_the_same_vectors(corpus, encoders, whole, tmp_path):
    encoder, processor = encoders["text"]
    turned = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        rotation = torch.linalg.qr(torch.randn(6, 6))[0]
        other = copy.deepcopy(encoder)
        other.projection.weight.data = rotation @ other.projection.weight.data
        other.projection.bias.data = rotation @ other.projection.bias.data + torch.randn(6)
        turned.append(other)
    folder = embed_corpus(corpus, encoders, tmp_path / "turned", fold_encoders={"text": turned})
    found, plain = (read_corpus(path, LABEL2ID)["train"] for path in (folder, whole))
    rows = [data.vectors["text"].rows(0, data.num_turns) for data in (found, plain)]
    torch.testing.assert_close(*rows, atol=1e-4, rtol=1e-4)


def test_a_dialogue_is_never_cut(corpus, encoders, tmp_path):
    alone = embed_corpus(corpus, {"text": encoders["text"]}, tmp_path / "alone", shard_turns=1)
    tables = sorted(alone.glob("train-*.parquet"))
    assert [pq.read_table(path)["dialogue_id"].to_pylist() for path in tables] == [
        [name] for name in corpus["train"]["dialogue_id"]
    ]
    one = embed_corpus(corpus, {"text": encoders["text"]}, tmp_path / "one")
    assert [path.name for path in one.glob("train-*.parquet")] == ["train-00000-of-00001.parquet"]
    first, second = (read_corpus(folder, LABEL2ID)["train"].vectors["text"] for folder in (alone, one))
    torch.testing.assert_close(first.rows(0, len(first)), second.rows(0, len(second)), atol=1e-5, rtol=1e-5)


def test_stage_2_is_trained_on_it(whole, tmp_path):
    sizes = {"hidden_size": 8, "attention_dim": 6, "num_attention_heads": 3, "fusion_num_layers": 1}
    widths = {"speech_embedding_dim": 6, "text_embedding_dim": 6}
    training = {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True}
    recipe = Recipe({"model": sizes | widths, "corpus": {"labels": LABELS, "path": str(whole)}, "training": training})
    results = run_experiment(recipe, tmp_path, seed=0)
    labelled = (read_corpus(whole, LABEL2ID)["test"].labels >= 0).sum()
    assert 0 < results["test"]["mixture"]["num_utterances"] == labelled


def test_one_modality_alone(corpus, encoders, tmp_path):
    folder = embed_corpus(corpus, {"speech": encoders["speech"]}, tmp_path / "speech")
    data = read_corpus(folder, LABEL2ID)["test"]
    assert set(data[0]) == {"speech_embeddings", "speech_mask", "labels", "transcripts"}
    assert "has_text" not in pq.read_schema(next(folder.glob("test-*.parquet"))).names


@pytest.mark.parametrize("encoders", [{}, {"video": None}])
def test_wrong_encoders_are_named(corpus, encoders, tmp_path):
    with pytest.raises(ValueError, match="encoders must name one or more of speech, text"):
        embed_corpus(corpus, encoders, tmp_path / "out")


def test_the_corpus_s_licence_goes_where_its_vectors_go(corpus, encoders, tmp_path):
    named = corpus["test"].select(range(2))
    named.info.dataset_name = "meld"
    source = write_corpus(datasets.DatasetDict(test=named), tmp_path / "corpus")
    for number, origin in enumerate((datasets.DatasetDict(test=named), source)):
        folder = embed_corpus(origin, {"text": encoders["text"]}, tmp_path / str(number), shard_turns=1)
        assert [corpus_of(path) for path in folder.glob("*.parquet")] == ["meld", "meld"]
        with pytest.raises(ValueError, match="'meld' is not pushed"):
            push_corpus(folder, "org/vectors", token="none")
    assert {corpus_of(path) for path in write_corpus(corpus, tmp_path / "own").glob("*.parquet")} == {
        "dialogue_folder"
    }


# Sound that cannot be used


def test_a_corrupt_file_stops_or_is_a_missing_modality(encoders, tmp_path, caplog, capfd, monkeypatch):
    monkeypatch.setattr("mister_e_hf.base.progress._FIRST_NOTE", 0.0)
    lines = write_lines(tmp_path / "lines", {"train": 3, "validation": 1, "test": 1})
    corpus = read_lines(lines, tmp_path / "cache")
    path = lines / "train_0_1.wav"
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(content[:30])
    speech = {"speech": encoders["speech"]}
    with pytest.raises(AudioError, match="Turn train_0_1: .*train_0_1.wav"):
        embed_corpus(corpus, speech, tmp_path / "strict")
    with pytest.raises(FileNotFoundError):
        read_corpus(tmp_path / "strict")
    lenient = embed_corpus(corpus, speech, tmp_path / "lenient", bad_audio="missing")
    done, total = progress(capfd)[-1]
    assert done == total == sum(len(row["utterances"]) for data in corpus.values() for row in data.to_list())
    assert "Turn train_0_1 is used without audio" in caplog.text
    has_audio = [turn["audio"] is not None for row in corpus["train"].to_list() for turn in row["utterances"]]
    assert has_audio[:2] == [True, True]
    data = read_corpus(lenient, LABEL2ID)["train"]
    assert data.present["speech"].tolist() == [True, False, *has_audio[2:]]
    assert not data.vectors["speech"].rows(1, 2).any()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    mended = embed_corpus(corpus, speech, tmp_path / "mended")
    assert read_corpus(mended, LABEL2ID)["train"].present["speech"].tolist() == has_audio


# How it is made changes nothing


def test_workers_give_the_same_files(corpus, encoders, whole, tmp_path):
    folder = embed_corpus(corpus, encoders, tmp_path / "workers", shard_turns=SHARD, num_workers=2)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_audio_that_cannot_be_read_is_named_with_and_without_workers(encoders, tmp_path, num_workers):
    data = read_lines(write_lines(tmp_path / "source", {"train": 4}), tmp_path / "cache")["train"]
    turns = [turn for dialogue in data["utterances"] for turn in dialogue]
    last = [turn for turn in turns if turn["audio"] is not None][-1]
    Path(last["audio"]["path"]).write_bytes(b"RIFF" * 20)
    options = EmbeddingOptions(second_budget=1.0, num_workers=num_workers)
    with pytest.raises(AudioError, match=f"^Turn {last['utterance_id']}: '.*' is corrupt"):
        embed_turns(*encoders["speech"], Utterances(data, "speech"), options)


def test_batches_change_nothing(corpus, encoders, whole, tmp_path):
    folder = embed_corpus(corpus, encoders, tmp_path / "small", shard_turns=SHARD, token_budget=6, second_budget=0.4)
    one, other = (read_corpus(path)["train"].vectors for path in (whole, folder))
    for modality in one:
        rows = [vectors[modality].rows(0, len(one[modality])) for vectors in (one, other)]
        torch.testing.assert_close(*rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_no_batch_is_over_its_budget(corpus, encoders, modality):
    encoder, processor = encoders[modality]
    sizes = []

    def note(module, args, batch):
        rows = batch["input_ids" if modality == "text" else "input_values"]
        sizes.append((len(rows), rows.numel() / (1 if modality == "text" else RATE)))

    budgets = {"token_budget": 30, "second_budget": 1.2}
    hook = encoder.register_forward_pre_hook(note, with_kwargs=True)
    prompt, processor.prompt = processor.prompt, "what about {text} back"
    try:
        embed_turns(encoder, processor, Utterances(corpus["train"], modality), EmbeddingOptions(**budgets))
    finally:
        hook.remove()
        processor.prompt = prompt
    budget = budgets["token_budget" if modality == "text" else "second_budget"]
    assert all(rows == 1 or size <= budget * 1.001 for rows, size in sizes)
    assert max(rows for rows, _ in sizes) > 2
    # the largest come first, so that what does not fit in memory fails at once
    assert sizes[0][1] / sizes[0][0] == max(size / rows for rows, size in sizes)


def test_vectors_leave_the_encoder_as_it_was(corpus, encoders):
    encoder, processor = encoders["text"]
    encoder.train()
    try:
        vectors, present = embed_turns(encoder, processor, Utterances(corpus["test"], "text"))
        assert encoder.training
    finally:
        encoder.eval()
    again, _ = embed_turns(encoder, processor, Utterances(corpus["test"], "text"))
    assert torch.equal(vectors, again) and not vectors.requires_grad and 0 < present.sum() < len(present)


def test_half_precision_is_asked_for(corpus, encoders):
    utterances = Utterances(corpus["test"], "speech")
    full, half = (
        embed_turns(*encoders["speech"], utterances, EmbeddingOptions(dtype=dtype))[0]
        for dtype in (None, torch.bfloat16)
    )
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    torch.testing.assert_close(full, half, atol=0.05, rtol=0.05)


def test_progress_counts_every_turn(corpus, encoders, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("mister_e_hf.base.progress._FIRST_NOTE", 0.0)
    everything = 2 * sum(len(row["utterances"]) for data in corpus.values() for row in data.to_list())
    folder = embed_corpus(corpus, encoders, tmp_path / "out", shard_turns=SHARD)
    assert progress(capfd)[-1] == (everything, everything)
    (folder / "train-00000-of-00006.parquet").unlink()
    embed_corpus(corpus, encoders, folder, shard_turns=SHARD)
    first = sum(len(row["utterances"]) for row in corpus["train"].to_list()[:2])
    assert progress(capfd)[-1] == (2 * first, 2 * first)


def peak_memory(work: Callable[[], object]) -> int:
    """Largest memory of this process while it works, mapped files left out."""
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_the_corpus(encoders, tmp_path):
    """Words among sound that no encoder hears: of four times as much, nothing more is held."""
    sound = 1 << 21

    def rows(count: int):
        nothing = dict.fromkeys(dialogue_features(LABELS)["utterances"].feature)
        for number in range(count):
            turn = nothing | {"utterance_id": "0", "text": "what about it", "emotion": "joy"}
            yield {
                "dialogue_id": str(number),
                "utterances": [turn | {"audio": {"bytes": number.to_bytes(1, "big") * sound, "path": None}}],
            }

    peaks = []
    for number, count in enumerate((12, 12, 48)):  # the first one for what is loaded once
        data = datasets.Dataset.from_generator(
            rows, dialogue_features(LABELS), str(tmp_path), gen_kwargs={"count": count}, writer_batch_size=4
        )
        corpus, out = datasets.DatasetDict(train=data), tmp_path / str(number)
        peaks.append(peak_memory(lambda: embed_corpus(corpus, {"text": encoders["text"]}, out, shard_turns=4)))  # noqa: B023
    assert peaks[2] - peaks[1] < (48 - 12) * sound / 4


# A run that was killed


def in_another_process(work: Callable[[], object]) -> multiprocessing.Process:
    """A copy of this process, so that nothing needs to be imported again."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


class DieAtRename:
    """Kill this process, as kill -9 would, before it gives its number-th file its name."""

    def __init__(self, number: int):
        self.left = number

    def __call__(self, event: str, words: tuple):
        if event == "os.rename":
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1


def finished_shards(folder: Path) -> dict[str, int]:
    """Time of change of the files of each shard that has its table."""
    names = [path.stem for path in folder.glob("*.parquet") if not path.name.startswith(".")]
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.stem in names}


def check_killed(folder: Path, whole: Path, finished: dict[str, int]) -> dict[str, int]:
    """Files are whole, finished shards unchanged, and an incomplete folder cannot be read as if it were complete."""
    wanted = contents(whole)
    for path in folder.iterdir() if folder.is_dir() else ():
        assert path.name.startswith(".unfinished-") or path.read_bytes() == wanted[path.name]
    found = finished_shards(folder) if folder.is_dir() else {}
    assert found.items() >= finished.items()
    if len(found) < len(wanted) - 1 and folder.is_dir():
        with pytest.raises(FileNotFoundError):
            read_corpus(folder)
    return found


def test_a_run_killed_at_any_file_goes_on_to_the_same_bytes(corpus, encoders, whole, tmp_path):
    folder, finished = tmp_path / "killed", {}
    for number in (0, 1, 1, 2, 3, 6, 1, 5):
        claimed, before = (folder / RECORD).exists(), len(finished)

        def work(number=number):
            sys.addaudithook(DieAtRename(number))
            embed_corpus(corpus, encoders, folder, shard_turns=SHARD)

        process = in_another_process(work)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        finished = check_killed(folder, whole, finished)
        # two files a shard, and the first of all is the record
        assert len(finished) - before == max(0, 2 * ((number - (not claimed)) // 2))
    assert 0 < len(finished) < len(contents(whole)) - 1
    embed_corpus(corpus, encoders, folder, shard_turns=SHARD)
    assert contents(folder) == contents(whole)
    assert finished_shards(folder).items() >= finished.items()


def test_a_run_killed_at_any_time_goes_on_to_the_same_bytes(corpus, encoders, whole, tmp_path):
    folder, finished, codes = tmp_path / "killed", {}, []
    generator = random.Random(0)
    for _ in range(5):
        process = in_another_process(lambda: embed_corpus(corpus, encoders, folder, shard_turns=SHARD))
        deadline = time.monotonic() + 60
        while process.is_alive() and len(list(folder.glob("[!.]*.parquet"))) <= len(finished) // 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.02))
        process.kill()
        process.join()
        codes.append(process.exitcode)
        finished = check_killed(folder, whole, finished)
    assert codes[0] == -signal.SIGKILL and finished
    embed_corpus(corpus, encoders, folder, shard_turns=SHARD)
    assert contents(folder) == contents(whole)
    assert finished_shards(folder).items() >= finished.items()


def test_what_is_finished_is_not_made_again(corpus, encoders, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    # how it is computed may differ
    embed_corpus(corpus, encoders, whole, shard_turns=SHARD, token_budget=10, second_budget=1.0, num_workers=1)
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def with_window(processor):
    changed = type(processor).__new__(type(processor))
    changed.__dict__ |= processor.__dict__ | {"window_seconds": 0.2}
    return changed


OTHERS = {
    "corpus": lambda corpus, encoders, folder: {
        "corpus": datasets.DatasetDict(corpus | {"test": corpus["test"].select([0, 2])})
    },
    "split": lambda corpus, encoders, folder: {"corpus": datasets.DatasetDict(train=corpus["train"])},
    "weights": lambda corpus, encoders, folder: {
        "encoders": encoders | {"text": tiny_encoder(folder["text"], "text", seed=1)}
    },
    "layer": lambda corpus, encoders, folder: {
        "encoders": encoders | {"text": tiny_encoder(folder["text"], "text", layer=0)}
    },
    "modality": lambda corpus, encoders, folder: {"encoders": {"text": encoders["text"]}},
    "processor": lambda corpus, encoders, folder: {
        "encoders": encoders | {"speech": (encoders["speech"][0], with_window(encoders["speech"][1]))}
    },
    "bad_audio": lambda corpus, encoders, folder: {"bad_audio": "missing"},
    "shard_turns": lambda corpus, encoders, folder: {"shard_turns": SHARD + 1},
    "dtype": lambda corpus, encoders, folder: {"dtype": torch.bfloat16},
}
NAMED = {"split": "corpus", "weights": "encoders", "layer": "encoders", "processor": "processor settings"}


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_of_other_vectors_is_refused(corpus, encoders, backbones, whole, what):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    same = {"corpus": corpus, "encoders": encoders, "shard_turns": SHARD}
    named = NAMED.get(what, "encoders" if what == "modality" else what)
    with pytest.raises(ValueError, match=f"holds vectors with other settings: {named}"):
        embed_corpus(**same | OTHERS[what](corpus, encoders, backbones), folder=whole)
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(corpus, encoders, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and has no embedding.json"):
        embed_corpus(corpus, encoders, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    "sizes",
    [
        {"second_budget": float("nan")},
        {"second_budget": float("inf")},
        {"second_budget": 0.0},
        {"token_budget": -5},
        {"shard_turns": 0},
        {"num_workers": -1},
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(corpus, encoders, tmp_path, sizes):
    (name,) = sizes
    with pytest.raises(InputError, match=f"{name} must"):
        embed_corpus(corpus, encoders, tmp_path / "out", **sizes)
    assert not (tmp_path / "out").exists()


def test_damaged_shards_are_made_again_and_that_is_said(corpus, encoders, whole, tmp_path, caplog):
    folder = shutil.copytree(whole, tmp_path / "out")
    tables, vectors = (sorted(folder.glob(f"train-*.{ending}")) for ending in ("parquet", "safetensors"))
    tables[0].write_bytes(b"")  # as a power cut leaves it
    os.truncate(vectors[1], vectors[1].stat().st_size - 9)
    vectors[2].unlink()
    embed_corpus(corpus, encoders, folder, shard_turns=SHARD)
    assert contents(folder) == contents(whole)
    for table in tables[:3]:
        assert f"'{table}' or its vectors are damaged" in caplog.text


def test_a_small_encoder_on_a_cpu_uses_one_thread(corpus, encoders, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    encoder, processor = encoders["text"]
    used: list[int] = []
    hook = encoder.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        embed_turns(encoder, processor, Utterances(corpus["test"], "text"))
        monkeypatch.setattr(threads, "SMALL_ENCODER", 8)
        embed_turns(encoder, processor, Utterances(corpus["test"], "text"))
        assert used[0] == 1 and used[-1] == 2 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        hook.remove()
