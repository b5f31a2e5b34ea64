"""Tables whose labels are the scores of a regression."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mister_e_hf import DialogueCollator, DialogueVectors, read_corpus, write_vectors
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.models.baselines.configuration import LogisticRegressionConfig
from mister_e_hf.vectors.corpus_facts import corpus_facts
from mister_e_hf.vectors.dialogue_datasets import check_dialogues, target_statistics
from mister_e_hf.vectors.dialogue_vectors import SPLITS, regroup
from mister_e_hf.vectors.folds import development_folds, validation_by_group
from mister_e_hf.vectors.targets import as_targets
from mister_e_hf.vectors.turn_fields import turn_columns
from support.arrow_memory import counted_arrow_memory
from support.vector_tables import LABEL2ID, LABELS, LENGTHS, TURNS, bare_table, cut, tensors, vector_table

NAN = float("nan")
VALENCE = [0.5, None, -1.25, 0.1, NAN, 2.0, 3.0, -3.0]
AROUSAL = [1, 2, 3, 4, 5, None, 1, 2]
EXPECTED = np.array(
    [[0.5, 1], [NAN, 2], [-1.25, 3], [0.1, 4], [NAN, 5], [2.0, NAN], [3.0, 1], [-3.0, 2]], dtype=np.float32
)
COLUMNS = {"valence": cut(VALENCE), "arousal": cut(AROUSAL)}


def scored(name: str = "train", targets=("valence", "arousal"), **changes) -> DialogueVectors:
    return DialogueVectors(vector_table(**{**COLUMNS, **changes}), name=name, targets=list(targets))


def written(folder, **changes):
    for seed, split in enumerate(SPLITS):
        write_vectors(folder, split, bare_table(split, **{**COLUMNS, **changes}), **tensors(seed))
    return folder


# Reading


def test_targets_are_columns_of_numbers():
    data = scored()
    assert data.task == "regression"
    assert data.label2id == {"valence": 0, "arousal": 1}
    assert data.labels.dtype == np.float32
    np.testing.assert_array_equal(data.labels, EXPECTED)
    for item, expected in zip(data, cut(EXPECTED), strict=True):
        assert item["labels"].dtype == torch.float32
        np.testing.assert_array_equal(item["labels"].numpy(), np.stack(expected))


def test_classes_are_the_other_task():
    data = DialogueVectors(vector_table(**COLUMNS), LABEL2ID)
    assert data.task == "classification"
    assert data.targets is None
    assert DialogueVectors(vector_table()).task == "classification"


def test_targets_have_names_of_their_own():
    data = DialogueVectors(vector_table(**COLUMNS), targets={"pleasure": "valence", "energy": "arousal"})
    assert data.targets == {"pleasure": "valence", "energy": "arousal"}
    assert data.label2id == {"pleasure": 0, "energy": 1}
    np.testing.assert_array_equal(data.labels, EXPECTED)


def test_one_column_may_be_two_targets():
    data = DialogueVectors(vector_table(**COLUMNS), targets={"first": "valence", "second": "valence"})
    np.testing.assert_array_equal(data.labels, EXPECTED[:, [0, 0]])


def test_the_order_is_that_of_a_model():
    data = DialogueVectors(vector_table(**COLUMNS), {"arousal": 0, "valence": 1}, targets=["valence", "arousal"])
    assert data.label2id == {"arousal": 0, "valence": 1}
    np.testing.assert_array_equal(data.labels, EXPECTED[:, ::-1])
    with pytest.raises(InputError, match=r"targets are \['valence'\], but the model's targets are \['arousal'"):
        DialogueVectors(vector_table(**COLUMNS), {"arousal": 0, "valence": 1}, targets=["valence"])


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64(), pa.uint16()])
def test_numbers_of_every_kind(kind):
    values = np.arange(TURNS).astype(np.float16) if kind == pa.float16() else list(range(TURNS))
    flat = pa.array(values, kind)
    column = pa.ListArray.from_arrays(np.cumsum([0, *LENGTHS]).astype(np.int32), flat)
    assert scored(targets=["valence"], valence=column).labels[:, 0].tolist() == list(range(TURNS))


def test_a_target_that_no_turn_of_a_split_has():
    for column in (pa.array(cut([None] * TURNS)), pa.array(cut([None] * TURNS), pa.list_(pa.float64()))):
        data = scored(valence=column)
        assert np.isnan(data.labels[:, 0]).all()
        assert "valence (0 turns), arousal (mean 2.57" in repr(data)


def test_repr_describes_the_targets():
    described = "targets: valence (mean 0.23, sd 1.98 of 6 turns), arousal (mean 2.57, sd 1.40 of 7 turns)"
    assert described in repr(scored())


def test_a_folder_and_a_dataset(tmp_path):
    folder = written(tmp_path)
    dataset = datasets.DatasetDict(
        {split: datasets.Dataset(vector_table(split, seed, **COLUMNS)) for seed, split in enumerate(SPLITS)}
    )
    for source in (folder, dataset):
        corpus = read_corpus(source, targets=["valence", "arousal"])
        for split in SPLITS:
            np.testing.assert_array_equal(corpus[split].labels, EXPECTED)
    assert read_corpus(folder)["train"].task == "classification"


# Wrong tables


WRONG = {
    "names": ({"valence": cut(LABELS)}, "'valence' must hold a number per turn, not string; name columns of numbers"),
    "numbers as text": ({"valence": cut(["0.5"] * TURNS)}, "'valence' must hold a number per turn, not string"),
    "flags": ({"valence": cut([True] * TURNS)}, "'valence' must hold a number per turn, not bool"),
    "a list per turn": ({"valence": cut([[0.5]] * TURNS)}, "'valence' must hold a number per turn, not list"),
    "a number per dialogue": ({"valence": [0.5] * 3}, "'valence' must hold one list per dialogue, not double"),
    "infinity": (
        {"valence": cut([*VALENCE[:3], float("-inf"), *VALENCE[4:]])},
        "'d1' has an infinite score in 'valence'",
    ),
    "a large number": (
        {"valence": cut([*VALENCE[:4], 1e300, *VALENCE[5:]])},
        "'d2' has 1e.300 in 'valence', which is beyond 1e.15",
    ),
    "a number whose gradient is infinite": (
        {"valence": cut([*VALENCE[:4], -1e30, *VALENCE[5:]])},
        "'d2' has -1e.30 in 'valence', which is beyond 1e.15",
    ),
    "too few": ({"valence": [[0.5] * 3, [0.5], [0.5] * 3]}, "'d2' has 4 turns .*, but 3 entries in 'valence'"),
    "a null list": ({"valence": [[0.5] * 3, None, [0.5] * 4]}, "'d1' has 1 turns .*, but 0 entries in 'valence'"),
    "a misnamed column": (
        {"valence": None, "valance": cut(VALENCE)},
        r"no column 'valence', which .* did you mean 'valance'\? The columns of numbers are \['arousal', 'valance'\]",
    ),
    "another name": ({"valence": None}, r"no column 'valence', .* name; the columns of numbers are \['arousal'\]"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_wrong_columns_raise(changes, message):
    with pytest.raises(InputError, match=f"validation: .*{message}"):
        scored("validation", **changes)


def test_classes_by_index_are_not_scores(tmp_path):
    """`datasets` stores them as integers; the schema says that they have names."""
    features = datasets.Features(
        {
            "dialogue_id": datasets.Value("string"),
            "utterance_ids": datasets.List(datasets.Value("string")),
            "mood": datasets.List(datasets.ClassLabel(names=["good", "bad"])),
            "text_features": datasets.List(datasets.List(datasets.Value("float32"))),
        }
    )
    row = {"dialogue_id": "a", "utterance_ids": ["b"], "mood": ["bad"], "text_features": [[1.0]]}
    data = datasets.Dataset.from_list([row], features=features)
    data.to_parquet(str(tmp_path / "train.parquet"))
    for source in (tmp_path, datasets.DatasetDict(train=data)):
        with pytest.raises(InputError, match=r"'mood' must hold a number per turn, not classes \(\['good', 'bad'\]\)"):
            read_corpus(source, splits=("train",), targets=["mood"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "name no column; leave them out"),
        ({}, "name no column"),
        ("valence", "must be a list of columns, such as .valence, activation.,.* got valence"),
        (0.5, "must be a list of columns"),
        (["valence", "valence"], "must name each column once"),
        ([""], "none of them empty, got ''"),
        ([None], "none of them empty, got None"),
        ({"valence": 3}, "none of them empty, got 3"),
    ],
)
def test_wrong_targets_raise(targets, message):
    with pytest.raises(InputError, match=message):
        DialogueVectors(vector_table(**COLUMNS), targets=targets)
    with pytest.raises(InputError, match=f"corpus.targets.*{message}"):
        as_targets(targets, where="corpus.targets")


def test_scores_beside_scores_raise():
    with pytest.raises(InputError, match="score_column keeps scores beside classes"):
        DialogueVectors(vector_table(**COLUMNS), score_column="valence", targets=["arousal"])


# Turns in `utterances`


def turn_table(scores=("valence",), other_labels=("emotion_text",)) -> pa.Table:
    names = list(LABEL2ID)
    turns = [
        {
            "utterance_id": f"d_{turn}",
            "text": "Hm.",
            "start": float(turn),
            "end": turn + 1.0,
            "duration": 1.0,
            "video": {"bytes": bytes(2**21), "path": None},
            "emotion": names.index(label),
            "sentiment": turn / 2,
            **dict.fromkeys(scores, VALENCE[turn]),
            **dict.fromkeys(other_labels, 2 - names.index(label)),
        }
        for turn, label in enumerate(LABELS)
    ]
    rows = [{"dialogue_id": f"d{row}", "utterances": part} for row, part in enumerate(cut(turns))]
    features = dialogue_features(names, list(scores), list(other_labels))
    return pa.Table.from_pylist(rows, schema=features.arrow_schema)


def with_text(table: pa.Table) -> pa.Table:
    return table.append_column("text_features", vector_table()["text_features"].combine_chunks())


def test_further_fields_of_turns_are_columns():
    data = DialogueVectors(with_text(turn_table()), targets=["valence", "sentiment"])
    np.testing.assert_array_equal(data.labels[:, 0], EXPECTED[:, 0])
    assert data.labels[:, 1].tolist() == [turn / 2 for turn in range(TURNS)]


def test_further_classes_of_turns_are_read_by_name():
    table = with_text(turn_table())
    names = list(LABEL2ID)
    by_name = [LABEL2ID[names[2 - names.index(label)]] for label in LABELS]
    assert DialogueVectors(table, LABEL2ID, label_column="emotion_text").labels.tolist() == by_name
    turned = {"neutral": 0, "joy": 1, "anger": 2}
    assert DialogueVectors(table, turned, label_column="emotion_text").labels.tolist() == [
        2 - label for label in by_name
    ]
    with pytest.raises(InputError, match="'emotion_text' must hold a number per turn, not string"):
        DialogueVectors(table, targets=["emotion_text"])


def test_turns_of_a_dataset():
    """The names of classes are those of its features; slices of a dataset are read as such."""
    table = with_text(turn_table())
    whole = datasets.Dataset(table)
    data = read_corpus(datasets.DatasetDict(train=whole), splits=("train",), targets=["valence"])["train"]
    np.testing.assert_array_equal(data.labels, EXPECTED[:, :1])
    part = whole.select(range(1, 3))
    flat = turn_columns(part.data.column("utterances"), part.features.arrow_schema, "the corpus")
    assert flat["valence"].to_pylist()[:3] == VALENCE[3:4] + [pytest.approx(NAN, nan_ok=True)] + VALENCE[5:6]
    names = list(LABEL2ID)
    assert flat["emotion_text"].to_pylist() == [names[2 - names.index(label)] for label in LABELS[3:]]
    assert set(flat) == {"utterance_ids", "texts", "speakers", "labels", "sentiment", "valence", "emotion_text"}


def test_places_of_turns_are_not_scores():
    with pytest.raises(InputError, match=r"no column 'duration'.*numbers are \['sentiment', 'valence'\]"):
        DialogueVectors(with_text(turn_table()), targets=["duration"])


def test_a_column_takes_precedence_over_a_field():
    table = with_text(turn_table()).append_column("valence", pa.array(cut(AROUSAL)))
    np.testing.assert_array_equal(DialogueVectors(table, targets=["valence"]).labels[:, 0], EXPECTED[:, 1])


def test_video_in_turns_is_not_read(tmp_path):
    pq.write_table(with_text(turn_table()), tmp_path / "train.parquet")
    with counted_arrow_memory() as pool:
        corpus = read_corpus(tmp_path, splits=("train",), targets=["valence"])
    np.testing.assert_array_equal(corpus["train"].labels[:, 0], EXPECTED[:, 0])
    assert pool.max_memory() < 2**21


# Batches


def test_padding_of_scores_is_nan():
    data = scored()
    batch = DialogueCollator()([data[0], data[1], data[2]])
    assert batch["labels"].shape == (3, 4, 2)
    assert batch["labels"].dtype == torch.float32
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(batch["labels"][row, :length].numpy(), np.stack(cut(EXPECTED)[row]))
        assert batch["labels"][row, length:].isnan().all()


def test_scores_as_lists_and_in_other_types():
    for labels in ([[0.5], [NAN]], np.array([[0.5], [NAN]]), torch.tensor([[0.5], [NAN]], dtype=torch.float16)):
        batch = DialogueCollator()([{"text_embeddings": [[1.0], [2.0]], "labels": labels}])
        assert batch["labels"].dtype == torch.float32
        np.testing.assert_array_equal(batch["labels"].numpy(), [[[0.5], [NAN]]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[[0.5], [0.1]], [[0.5, 0.1], [0.1, 0.2]]], "'labels' of the dialogues in the batch must be of one width"),
        ([[[0.5], [0.1]], [1, 2]], "'labels' of the dialogues in the batch must be of one width"),
        ([[[[0.5]], [[0.1]]]] * 2, "must be of one width"),
        (
            [[[1, 0], [0, 1]]] * 2,
            r"for a regression scores \(turns, targets\) as floats.*got integers of shape \(2, 2\)",
        ),
        ([[0.5, 0.1]] * 2, r"for a regression scores \(turns, targets\) as floats.*; got numbers with decimals"),
        ([[[0.5], [None]]] * 2, "for a regression scores .* NaN where a turn has none: .*NoneType"),
        ([[[0.5]]] * 2, "one entry per turn in each field"),
    ],
)
def test_scores_of_another_form_raise(labels, message):
    with pytest.raises(InputError, match=message):
        DialogueCollator()([{"text_embeddings": [[1.0], [2.0]], "labels": each} for each in labels])


REGRESSION = {"problem_type": "regression", "id2label": {0: "valence", 1: "arousal"}}


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        (
            REGRESSION,
            [0, 1],
            "the model predicts 2 scores, valence, arousal, so .* floats .turns, 2.*shape .2,.*targets=",
        ),
        (REGRESSION, [[0.5], [NAN]], r"so 'labels' must be floats \(turns, 2\).*shape \(2, 1\)"),
        (REGRESSION, None, "no labels, .*a score per turn and target; read_corpus takes them from .* targets"),
        ({}, [[0.5, 0.1], [NAN, 1.0]], 'a class index per turn; got .* shape .2, 2.*problem_type="regression"'),
    ],
)
def test_labels_must_be_those_of_the_task(settings, labels, message):
    config = LogisticRegressionConfig(modalities=["text"], text_embedding_dim=1, **settings)
    dialogue = {"text_embeddings": [[1.0], [2.0]]} | ({} if labels is None else {"labels": labels})
    with pytest.raises(InputError, match=f"train_dataset: .*{message}"):
        check_dialogues([dialogue], "train_dataset", config)
    right = [[0.5, 0.1], [NAN, 1.0]] if settings else [0, -100]
    check_dialogues([dialogue | {"labels": right}], "train_dataset", config)


# Statistics, folds, fingerprints, facts


def test_statistics_of_targets():
    mean, deviation = target_statistics(scored())
    np.testing.assert_allclose(mean, np.nanmean(EXPECTED.astype(np.float64), 0))
    np.testing.assert_allclose(deviation, np.nanstd(EXPECTED.astype(np.float64), 0))
    own = [{"labels": np.stack(part).tolist()} for part in cut(EXPECTED)]
    for found, expected in zip(target_statistics(own), (mean, deviation), strict=True):
        np.testing.assert_allclose(found, expected)


def test_statistics_of_what_is_missing_raise():
    with pytest.raises(InputError, match="validation: no turn has a score of target 'valence'"):
        target_statistics(scored("validation", valence=cut([NAN] * TURNS)))
    with pytest.raises(InputError, match="the dataset: no turn has a score of target '1'"):
        target_statistics([{"labels": [[0.5, NAN]]}])
    with pytest.raises(InputError, match="the dataset: a turn has an infinite score of target '0'"):
        target_statistics([{"labels": [[float("inf"), 1.0]]}])


def test_regrouped_dialogues_keep_their_scores():
    first, second = scored(), scored(valence=cut(AROUSAL))
    new = regroup([first, second], [3, 2], "new")
    assert new.task == "regression"
    np.testing.assert_array_equal(new.labels, np.concatenate([second.labels[:3], first.labels[4:]]))
    np.testing.assert_array_equal(new[1]["labels"].numpy(), first.labels[4:])


def test_folds_and_groups_keep_scores(tmp_path):
    corpus = read_corpus(written(tmp_path), targets=["valence"])
    for fold in [*development_folds(corpus, 2), validation_by_group(corpus, "[a-z]+", "train")]:
        total = sum(np.nansum(data.labels) for data in fold.values())
        assert total == pytest.approx(2 * np.nansum(EXPECTED[:, 0]))


def test_fingerprint_depends_on_scores_and_on_which_are_missing():
    same = scored().fingerprint()
    assert scored().fingerprint() == same
    assert (
        scored(valence=cut([None if value is None or value != value else value for value in VALENCE])).fingerprint()
        == same
    )
    for value in (0.25, None):
        assert scored(valence=cut([value, *VALENCE[1:]])).fingerprint() != same
    assert scored(targets=["arousal", "valence"]).fingerprint() != same


def test_facts_of_a_corpus_of_scores(tmp_path):
    corpus = read_corpus(written(tmp_path), targets={"pleasure": "valence"})
    corpus["test"] = DialogueVectors(
        vector_table("test", valence=cut([NAN] * TURNS)), targets={"pleasure": "valence"}, name="test"
    )
    corpus["validation"] = DialogueVectors(
        vector_table("test", valence=cut([2.0] * TURNS)), targets={"pleasure": "valence"}, name="validation"
    )
    facts = corpus_facts(tmp_path, corpus, ["pleasure"])
    assert facts["labelled_turns"] == {"train": 6, "validation": 8, "test": 0}
    assert facts["targets"]["train"]["pleasure"] == {
        "turns": 6,
        "mean": pytest.approx(np.nanmean(EXPECTED[:, 0])),
        "sd": pytest.approx(np.nanstd(EXPECTED[:, 0])),
    }
    assert facts["targets"]["test"]["pleasure"] == {"turns": 0, "mean": None, "sd": None}
    assert facts["shortcomings"][:2] == [
        "validation has one score of pleasure at all turns: its correlation is undefined.",
        "test has no turn with a score of pleasure.",
    ]
    assert "temperature" not in " ".join(facts["shortcomings"])


# Real scores


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "targets", "missing", "limits"),
    [
        ("mosi", {"sentiment": "labels"}, [3, 0, 1], (-3, 3)),
        ("iemocap", ["valence", "activation", "dominance"], [0, 0, 0], (0.5, 5.5)),
    ],
)
def test_real_scores(shared_dir, name, targets, missing, limits):
    corpus = read_corpus(shared_dir / "data" / name, targets=targets)
    assert [int(np.isnan(data.labels).any(1).sum()) for data in corpus.values()] == missing
    for data in corpus.values():
        assert data.labels.shape == (data.num_turns, len(targets))
        assert limits[0] <= np.nanmin(data.labels) < np.nanmax(data.labels) <= limits[1]
