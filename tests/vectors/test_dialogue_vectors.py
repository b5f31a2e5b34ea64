import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from mister_e_hf import DialogueCollator, DialogueVectors, read_corpus, write_vectors
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import MODALITIES, Modality
from mister_e_hf.vectors.dialogue_vectors import VectorColumn, regroup
from support.vector_tables import (
    FORMS,
    LABEL2ID,
    TURNS,
    VECTORS,
    WIDTHS,
    bare_table,
    changed,
    cut,
    dialogues,
    matrices,
    tensors,
    vector_table,
    write_columns,
    write_safetensors,
    write_safetensors_shards,
)


def test_negative_and_out_of_range_index():
    data = dialogues()
    assert torch.equal(data[-1]["text_embeddings"], data[2]["text_embeddings"])
    for index in (3, -4):
        with pytest.raises(IndexError):
            data[index]


def test_vector_column_over_chunks():
    torch.manual_seed(0)
    chunks = [torch.randn(size, 2) for size in (40_000, 1, 29_999)]
    column, whole = VectorColumn(chunks), torch.cat(chunks)
    assert len(column) == len(whole) and column.width == 2
    for start, stop in [(0, 5), (39_999, 40_002), (40_000, 40_001), (39_000, 70_000), (69_999, 70_000)]:
        assert torch.equal(column.rows(start, stop), whole[start:stop])
    blocks = list(column.blocks())
    assert len(blocks) > 1
    assert all(torch.equal(block, whole[start : start + len(block)]) for start, block in blocks)
    assert torch.equal(torch.cat([block for _, block in blocks]), whole)


def test_null_vectors_and_flags_make_a_modality_missing():
    vectors = cut(list(matrices()["text"]))
    vectors[0][1] = None
    kind = pa.list_(pa.list_(pa.float32()))
    data = dialogues(
        text_features=pa.array(vectors, type=kind),
        has_text=cut([True, True, False, True, None, True, True, True]),
        has_audio=cut([False, True, True, True, True, True, None, True]),
    )
    present = {modality: values.tolist() for modality, values in data.present.items()}
    assert present["text"] == [True, False, False, True, False, True, True, True]
    assert present["speech"] == [False, True, True, True, True, True, False, True]
    assert [data[index]["text_mask"].tolist() for index in range(3)] == cut(present["text"])
    assert data[0]["text_embeddings"].shape == (3, WIDTHS["text"])
    assert torch.equal(data[0]["text_embeddings"][0], torch.from_numpy(matrices()["text"][0]))
    assert torch.equal(data[2]["text_embeddings"][1:], torch.from_numpy(matrices()["text"][5:]))


@pytest.mark.parametrize("modality", WIDTHS)
def test_one_modality_alone(modality):
    other = next(name for name in WIDTHS if name != modality)
    data = dialogues(**{f"{other}_features": None})
    assert set(data[0]) == {f"{modality}_embeddings", f"{modality}_mask", "labels"}


@pytest.mark.parametrize(
    "values",
    [
        ["anger", None, "joy", None, "joy", "neutral", "neutral", "anger"],
        [0, None, 1, -100, 1, 2, 2, 0],
        [0, -100, 1, None, 1, 2, 2, 0],
    ],
)
def test_labels_by_name_and_by_index(values):
    data = dialogues(labels=cut(values))
    assert data.labels.tolist() == [0, -100, 1, -100, 1, 2, 2, 0]
    assert data[2]["labels"].dtype == torch.long


def test_no_labels_without_label_names():
    assert "labels" not in DialogueVectors(vector_table(labels=None))[0]


def test_scores_beside_the_labels():
    table = vector_table(scores=cut([0.5, None, -3.0, 0.0, 1.0, 1.0, 2.0, 3.0]))
    data = DialogueVectors(table, LABEL2ID, score_column="scores")
    np.testing.assert_array_equal(data.scores, [0.5, np.nan, -3.0, 0.0, 1.0, 1.0, 2.0, 3.0])


def test_wrong_width_raises():
    with pytest.raises(ValueError, match="test: text_features of dialogue 'd0' have width 4.*text_embedding_dim = 7"):
        dialogues("test").check({"speech": WIDTHS["speech"], "text": 7})
    dialogues().check(WIDTHS)
    dialogues().check({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", [write_columns, write_safetensors])
def test_non_finite_vector_raises_unless_it_is_absent(tmp_path, form, value):
    broken = matrices()["speech"].copy()
    broken[5, 2] = value
    flags = [True] * TURNS
    for present in (True, False):
        flags[5] = present
        changes = {"has_audio": cut(flags)}
        if form is write_columns:
            vectors = pa.array(cut(list(broken)), type=VECTORS)
            pq.write_table(vector_table(speech_features=vectors, **changes), tmp_path / "train.parquet")
        else:
            pq.write_table(bare_table(**changes), tmp_path / "train.parquet")
            save_file(tensors() | {"speech_features": torch.from_numpy(broken)}, tmp_path / "train.safetensors")
        data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
        if present:
            with pytest.raises(ValueError, match="train: speech_features of utterance 'd_5' in dialogue 'd2'.*NaN"):
                data.check(WIDTHS)
        else:
            data.check(WIDTHS)
            assert torch.isfinite(torch.stack(data.statistics("speech"))).all()


@pytest.mark.parametrize("form", [write_columns, write_safetensors_shards])
def test_statistics_cover_the_present_turns(tmp_path, form):
    present = np.array([True, False, True, True, False, True, True, True])
    form(tmp_path, "train", 0, "float32")
    for path in sorted(tmp_path.glob("*.parquet")):
        table = pq.read_table(path)
        turns = [int(name.rpartition("_")[2]) for ids in table["utterance_ids"].to_pylist() for name in ids]
        lengths = [len(ids) for ids in table["utterance_ids"].to_pylist()]
        parts = np.split(present[turns], np.cumsum(lengths)[:-1])
        pq.write_table(table.append_column("has_text", [[part.tolist() for part in parts]]), path)
    data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    for modality, kept in (("text", present), ("speech", np.ones(TURNS, dtype=bool))):
        rows = matrices()[modality][kept].astype(np.float64)
        mean, deviation = data.statistics(modality)
        assert mean.dtype == torch.float64
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(deviation, rows.std(0), rtol=1e-12)


def test_statistics_over_several_blocks():
    rows = 1000 + np.random.default_rng(0).normal(size=(70_000, 2)).astype(np.float32)
    table = pa.table({"dialogue_id": ["d"], "utterance_ids": [[str(turn) for turn in range(len(rows))]]})
    data = DialogueVectors(table, vectors={"text": VectorColumn([torch.from_numpy(rows)])})
    mean, deviation = data.statistics("text")
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, rows.astype(np.float64).std(0), rtol=1e-9)


def test_statistics_without_a_present_turn_raise():
    with pytest.raises(ValueError, match="train: no turn has speech"):
        dialogues(has_audio=cut([False] * TURNS)).statistics("speech")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_fingerprint_depends_on_the_content_not_the_form(tmp_path, dtype):
    seen = set()
    for form in FORMS:
        folder = tmp_path / form.__name__
        folder.mkdir()
        form(folder, "train", 0, dtype)
        seen.add(read_corpus(folder, LABEL2ID, splits=("train",))["train"].fingerprint())
    seen.add(dialogues(dtype=dtype).fingerprint())
    assert len(seen) == 2  # the dialogues' names differ between the files and the last one
    assert DialogueVectors(vector_table("train", dtype=dtype), LABEL2ID).fingerprint() in seen


def test_fingerprint_changes_with_every_part():
    other = matrices()["text"].copy()
    other[6, 1] = np.nextafter(other[6, 1], np.float32(9))
    utterances = cut([f"d_{turn}" for turn in range(TURNS)])
    renamed = [list(ids) for ids in utterances]
    renamed[2][0] = "x"
    variants = [
        {},
        {"text_features": pa.array(cut(list(other)), type=VECTORS)},
        {"labels": changed("labels", 7, "anger")},
        {"labels": changed("labels", 7, None)},
        {"dialogue_id": ["d0", "d1", "x"]},
        {"utterance_ids": renamed},
        {"has_text": cut([True] * (TURNS - 1) + [False])},
        {"has_audio": cut([True] * (TURNS - 1) + [False])},
        {"speech_features": None},
    ]
    assert len({dialogues(**changes).fingerprint() for changes in variants}) == len(variants)
    assert dialogues().fingerprint() == dialogues(has_text=cut([True] * TURNS)).fingerprint()


@pytest.mark.parametrize("form", [write_columns, write_safetensors_shards])
def test_workers_give_the_same_batches(tmp_path, form):
    form(tmp_path, "train", 0, "float16")
    data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    options = {"batch_size": 2, "collate_fn": DialogueCollator()}
    expected = list(DataLoader(data, **options))
    found = list(DataLoader(data, num_workers=2, **options))
    assert len(found) == len(expected) == 2
    for first, second in zip(expected, found, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("value", [1e300, -1e39, float("inf")])
def test_float64_beyond_float32_raises(value):
    given = cut([[value, 1.0]] + [[0.5, 1.0]] * 7)
    data = dialogues(speech_features=pa.array(given, pa.list_(pa.list_(pa.float64()))))
    with pytest.raises(
        InputError, match="utterance 'd_0' in dialogue 'd0' hold NaN, infinity or numbers beyond float32"
    ):
        data.check({"speech": 2, "text": 4})


def test_transcripts_of_turns_are_kept_in_any_split_of_them():
    texts = [["Hello?", None, "Yes."], ["Hm."], ["a", "b", "c", "d"]]
    data = dialogues(texts=texts)
    assert [data[index]["transcripts"] for index in range(3)] == texts
    assert [regroup([data], [2, 0], "mixed")[index]["transcripts"] for index in range(2)] == [texts[2], texts[0]]
    assert data.fingerprint() == dialogues().fingerprint()
    for unusable in (None, ["one", "text", "each"], cut([1] * TURNS), [["too", "few"], ["Hm."], ["a", "b", "c", "d"]]):
        assert "transcripts" not in dialogues(texts=unusable)[0]


def test_a_dialogue_without_a_list_of_transcripts_has_none_and_a_short_list_is_said(caplog):
    texts = [["Hello?", None, "Yes."], None, ["a", "b", "c", "d"]]
    data = dialogues(texts=texts)
    assert [data[index]["transcripts"] for index in range(3)] == [texts[0], [None], texts[2]]
    assert "transcripts" not in dialogues(texts=[["too", "few"], ["Hm."], texts[2]])[0]
    assert "'texts' of dialogue 'd0' are 2, and it has 3 turns: no transcripts are read" in caplog.text


def test_another_modality_needs_one_more_entry_of_modalities(monkeypatch, tmp_path):
    monkeypatch.setitem(MODALITIES, "motion", Modality("motion", content="pose", noun="poses"))
    motion = torch.randn(TURNS, 3)
    flags = {"has_pose": cut([True] * (TURNS - 1) + [False])}
    write_vectors(tmp_path, "train", bare_table(**flags), **tensors(), motion_features=motion)
    data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    assert list(data.vectors) == ["speech", "text", "motion"]
    batch = DialogueCollator()([data[0], data[2]])
    assert torch.equal(batch["motion_embeddings"][1], motion[4:])
    assert batch["motion_mask"].tolist() == [[True, True, True, False], [True, True, True, False]]
    assert DialogueCollator()([data[0]])["motion_mask"].all()
    with pytest.raises(InputError, match="'pose_features' is not read; rename it to 'motion_features'"):
        dialogues(pose_features=cut(list(motion.numpy())))
    with pytest.raises(InputError, match="motion_features of dialogue 'd0' have width 3.*motion_embedding_dim = 4"):
        data.check({"motion": 4})
