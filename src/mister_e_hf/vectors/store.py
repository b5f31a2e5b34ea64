"""Read, recognise and write corpora of vectors, on disk and on the Hub.

Their form is described in `dialogue_vectors.py`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..base.errors import InputError, reading
from ..base.files import OpenedFile
from ..base.modalities import MODALITIES
from ..corpora.hub_datasets import load_from_hub, tables_on_hub
from .corpus_labels import corpus_labels
from .dialogue_vectors import SPLITS, DialogueVectors, VectorColumn, check_vectors, feature_columns
from .named_columns import NAMES, check_speech_columns, speech_names, stated_in_all, stating, warn_without_speech
from .turn_fields import class_names, is_list, is_text, named, with_turn_columns

Source = str | Path | Mapping[str, datasets.Dataset]
Table = tuple[pa.Table, dict[str, VectorColumn]]  # of one split, and the vectors beside it by modality
# The columns of a Parquet file that hold the bytes and paths of a turn's media.
_MEDIA = re.compile(rf"utterances\.\w+\.\w+\.({'|'.join(each.content for each in MODALITIES.values())})\.")


def read_corpus(
    source: Source,
    label2id: Mapping[str, int] | None = None,
    label_column: str = "labels",
    score_column: str | None = None,
    splits: tuple[str, ...] = SPLITS,
    *,
    targets: Mapping[str, str] | Sequence[str] | None = None,
    speech_columns: Sequence[str] | None = None,
) -> dict[str, DialogueVectors]:
    r"""
    Read the splits of a corpus of vectors.

    Args:
        source: a folder, the id of a Hub dataset, or a `datasets.DatasetDict`, in the form that
            [`~mister_e_hf.vectors.dialogue_vectors`] describes.
        label2id, label_column, score_column: see [`DialogueVectors`]; without `label2id` the classes are those that
            the corpus names ([`~mister_e_hf.vectors.corpus_labels.corpus_labels`]), if its label column holds names.
        splits: the splits to read; each must exist.
        targets: the columns that a regression predicts, see [`DialogueVectors`].
        speech_columns: the columns of the speech vectors to keep, see [`DialogueVectors`]. A corpus that does not name
            the columns of its speech vectors counts as one without speech, with a warning.

    Raises:
        FileNotFoundError: if the folder or a split is missing.
        InputError: naming dialogue and field, if a table does not have this form, a dialogue appears twice, or the
            speech vectors have no column of a wanted name.
    """
    given = read_tables(source, splits, named=speech_columns is not None)
    if not _is_folder(source):
        for split, (table, beside) in given.items():
            given[split] = _with_label_names(table, label_column, split), beside
    if speech_columns is not None:
        check_speech_columns(speech_columns)
        given = without_unnamed_speech(source, given)
    if targets is None and label2id is None and all(_names_labels(table, label_column) for table, _ in given.values()):
        label2id = {label: index for index, label in enumerate(corpus_labels(source, label_column))}
    corpus = {
        split: DialogueVectors(
            table, label2id, label_column, score_column, vectors, split, targets=targets, speech_columns=speech_columns
        )
        for split, (table, vectors) in given.items()
    }
    check_unique_dialogues(corpus)
    return corpus


def read_tables(source: Source, splits: Sequence[str], named: bool = False) -> dict[str, Table]:
    r"""
    The table of each split of a corpus of vectors, and the vectors beside it by modality.

    Args:
        source, splits: as in [`read_corpus`].
        named: whether the names of the speech vectors' columns are needed.

    Raises:
        FileNotFoundError: if the folder or a split is missing.
        InputError: if a file cannot be read, or the names are needed and the shards of a split state different ones.
    """
    if _is_folder(source):
        return {split: _read_folder(Path(cast(str, source)).expanduser(), split, named) for split in splits}
    dataset = source if isinstance(source, Mapping) else load_from_hub(str(source))
    names = stated_speech_names(source) if named else None
    given: dict[str, Table] = {}
    for split in splits:
        if split not in dataset:
            raise FileNotFoundError(f"The dataset has no split '{split}'; it has {list(dataset)}")
        table = dataset[split].with_format("arrow")[:]
        metadata = dataset[split].features.arrow_schema.metadata | stating(names)
        given[split] = table.replace_schema_metadata(metadata), {}
    return given


def dialogue_ids(source: Source) -> dict[str, list[str]]:
    """The ids of all dialogues of a corpus, by split."""
    if _is_folder(source):
        folder = Path(cast(str, source)).expanduser()
        splits = {split: _files(folder, split, "parquet") for split in SPLITS}
        return {split: [name for path in paths for name in _ids(path)] for split, paths in splits.items() if paths}
    dataset = source if isinstance(source, Mapping) else load_from_hub(str(source))
    return {split: list(map(str, data["dialogue_id"][:])) for split, data in dataset.items()}


def _ids(path: Path) -> list[str]:
    with reading(path, "a Parquet table with a column dialogue_id"), pq.ParquetFile(path) as file:
        return list(map(str, file.read(["dialogue_id"])["dialogue_id"].drop_null().to_pylist()))


def _is_folder(source: Source) -> bool:
    return isinstance(source, str | Path) and Path(source).expanduser().is_dir()


def modalities_in(given: Table) -> set[str]:
    """The modalities whose vectors a split holds, in its table or beside it."""
    table, beside = given
    return {name for name, each in MODALITIES.items() if name in beside or each.features in table.column_names}


def without_unnamed_speech(source: Source, given: dict[str, Table]) -> dict[str, Table]:
    """
    The tables without their speech vectors if they do not name the columns by which [`read_corpus`] is to pick them.
    """
    where = "the corpus" if isinstance(source, Mapping) else f"'{source}'"
    schemas = {split: each[0].schema for split, each in given.items() if "speech" in modalities_in(each)}
    if not schemas or stated_in_all(schemas, where):
        return given
    return without_speech(given, f"{where} does not name the columns of its speech vectors")


def without_speech(given: dict[str, Table], reason: str) -> dict[str, Table]:
    r"""
    The tables of a corpus without their speech vectors, with a warning.

    Args:
        given: table and vectors of each split.
        reason: why no columns of speech can be picked.

    Raises:
        InputError: if nothing is left.
    """
    for split, each in given.items():
        if modalities_in(each) == {"speech"}:
            raise InputError(
                f"{reason}, by which speech_columns pick, and has no other vectors in {split}. State their names "
                f"('{NAMES}' in the metadata 'erc' of its tables), or leave out speech_columns or the corpus"
            )
    warn_without_speech(reason)
    field = MODALITIES["speech"].features
    return {
        split: (
            table.drop_columns([field]) if field in table.column_names else table,
            {modality: column for modality, column in beside.items() if modality != "speech"},
        )
        for split, (table, beside) in given.items()
    }


def _names_labels(table: pa.Table, label_column: str) -> bool:
    """Whether the labels of a table are names rather than class indices."""
    if "utterances" in table.column_names and label_column not in table.column_names:
        table = with_turn_columns(table.slice(0, 1), "labels")
    if label_column not in table.column_names or not is_list(kind := table[label_column].type):
        return False
    kind = kind.value_type
    return is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def holds_vectors(source: Source) -> bool:
    """Whether a source of [`read_corpus`] holds vectors, rather than audio and transcripts alone."""
    return bool(vector_modalities(source))


def vector_modalities(source: Source, speech_columns: Sequence[str] | None = None) -> list[str]:
    """
    The modalities whose vectors a source of [`read_corpus`] holds; none in a corpus of dialogues. With columns to pick
    speech is among them only if the tables name the columns of their speech vectors.
    """
    if isinstance(source, str | Path) and Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
        columns: set[str] = set().union(*map(_columns, folder.glob("*.parquet")))
        found = columns.union(*map(_tensors, folder.glob("*.safetensors")))
    else:
        dataset = source if isinstance(source, Mapping) else load_from_hub(str(source))
        found = {name for data in dataset.values() for name in data.column_names}
    modalities = [modality for modality, names in MODALITIES.items() if names.features in found]
    if "speech" in modalities and speech_columns is not None and stated_speech_names(source) is None:
        modalities.remove("speech")
    return modalities


def stated_speech_names(source: Source) -> list[str] | None:
    """The names of the columns of a corpus's speech vectors; None if its tables state none."""
    if isinstance(source, Mapping):
        return None  # datasets drops the metadata
    paths = Path(source).expanduser().glob("*.parquet") if _is_folder(source) else tables_on_hub(str(source))
    for path in sorted(paths):
        with reading(path, "a Parquet table"):
            schema = pq.read_schema(path)
        if (names := speech_names(schema, f"'{path}'")) is not None:
            return names
    return None


def vector_width(source: Source, modality: str) -> int | None:
    """Width of the vectors of a modality in a source of [`read_corpus`]; None without any."""
    field = MODALITIES[modality].features
    if isinstance(source, str | Path) and Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
        for path in sorted(folder.glob("*.safetensors")):
            if field in _tensors(path):
                with safe_open(path, framework="pt") as store:
                    return store.get_slice(field).get_shape()[-1]
        parts = (
            batch.column(0)
            for path in sorted(folder.glob("*.parquet"))
            if field in _columns(path)
            for batch in pq.ParquetFile(path).iter_batches(batch_size=8, columns=[field])
        )
    else:
        dataset = source if isinstance(source, Mapping) else load_from_hub(str(source))
        tables = [
            data.with_format("arrow").select_columns(field) for data in dataset.values() if field in data.features
        ]
        parts = (chunk for data in tables for table in data.iter(batch_size=8) for chunk in table[field].chunks)
    vectors = (vector for part in parts for dialogue in part.to_pylist() for vector in dialogue or () if vector)
    return next(map(len, vectors), None)


def _tensors(path: Path) -> set[str]:
    with reading(path, "a safetensors file of vectors"), safe_open(path, framework="pt") as store:
        return _names(store, path)


def _names(store, path: Path) -> set[str]:
    names = set(store.keys())
    if other := sorted(names - {each.features for each in MODALITIES.values()}):
        raise InputError(f"'{path}' holds a tensor '{other[0]}'; expected {feature_columns()}")
    return names


def _columns(path: Path) -> set[str]:
    with reading(path, "a Parquet table"):
        return set(pq.read_schema(path).names)


def _with_label_names(table: pa.Table, label_column: str, split: str) -> pa.Table:
    """Replace `ClassLabel` integers by their names: the order of its classes may differ from the model's."""
    names = class_names(table.schema, label_column) if label_column in table.column_names else None
    if names is None:
        return table
    labels = [named(turns or [], names, f"{split}: '{label_column}'") for turns in table[label_column].to_pylist()]
    index = table.column_names.index(label_column)
    return table.set_column(index, label_column, pa.array(labels, pa.list_(pa.string())))


def _files(folder: Path, split: str, ending: str) -> list[Path]:
    """The files of a split in a folder: one, or its shards; raises FileNotFoundError if a shard is missing."""
    shards = sorted(folder.glob(f"{split}-*-of-*.{ending}"))
    for path in shards:
        if (count := path.stem.rpartition("-of-")[2]).isdecimal() and int(count) != len(shards):
            raise FileNotFoundError(
                f"'{folder}' holds {len(shards)} shards '{split}-*.{ending}', but '{path.name}' says {int(count)}"
            )
    return [*folder.glob(f"{split}.{ending}"), *shards]


def _read_folder(folder: Path, split: str, named: bool) -> Table:
    """The table of a split and the vectors beside it, by modality."""
    tables = _files(folder, split, "parquet")
    if not tables:
        there = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"No '{split}.parquet' in '{folder}', which holds {there}")
    chunks: dict[str, list[torch.Tensor]] = {}
    opened: dict[str, list[OpenedFile]] = {}
    for path in _files(folder, split, "safetensors"):
        opened_file = OpenedFile(path)
        with reading(path, "a safetensors file of vectors"), safe_open(path, framework="pt") as store:
            for name in sorted(_names(store, path)):
                tensor = store.get_tensor(name)
                check_vectors(f"'{path}'", name, [tensor])
                modality = name.removesuffix("_features")
                chunks.setdefault(modality, []).append(tensor)
                opened.setdefault(modality, []).append(opened_file)
    for modality, parts in chunks.items():
        check_vectors(f"'{folder}'", f"{modality}_features of split {split}", parts)
    read = [_read_table(path) for path in tables]
    where = f"'{folder}', {split}"
    if named and any(speech_names(table.schema, where) != speech_names(read[0].schema, where) for table in read):
        raise InputError(f"'{folder}': the shards of {split} name the columns of their speech vectors differently")
    with reading(folder, f"a corpus whose shards '{split}-*.parquet' have the same columns"):
        table = pa.concat_tables(read)
    return table, {modality: VectorColumn(parts, opened[modality]) for modality, parts in chunks.items()}


def _read_table(path: Path) -> pa.Table:
    """A table without the audio and video in its turns, which may be large and are not needed."""
    with reading(path, "a Parquet table"), pq.ParquetFile(path) as file:
        columns = [file.schema.column(number).path for number in range(len(file.schema.names))]
        table = file.read([name for name in columns if not _MEDIA.match(name)])
    try:
        class_names(table.schema, "utterances", "emotion")
    except InputError as error:
        raise InputError(f"'{path}': {error}") from error
    return table


def check_unique_dialogues(corpus: Mapping[str, DialogueVectors]):
    """Raise an `InputError` if a dialogue appears twice in the splits of a corpus."""
    seen: dict[str, str] = {}
    for split, data in corpus.items():
        for dialogue in data.dialogue_ids:
            if dialogue in seen:
                where = f"twice in {split}" if seen[dialogue] == split else f"in {seen[dialogue]} and in {split}"
                raise InputError(
                    f"dialogue_id: dialogue '{dialogue}' appears {where}; each must appear once in the corpus"
                )
            seen[dialogue] = split


def write_vectors(folder: str | Path, split: str, table: pa.Table, **features: torch.Tensor):
    r"""
    Write one split: the table, and its vectors in safetensors beside it.

    Each file appears whole or not at all, the table last.

    Args:
        folder: created if it does not exist.
        split: `"train"`, `"validation"` or `"test"`.
        table: a row per dialogue, without vectors.
        features: `speech_features` (N, Ds), `text_features` (N, Dt), `visual_features` (N, Dv), or some of them.

    Raises:
        InputError: if they could not be read again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    expected = {each.features for each in MODALITIES.values()}
    for name, tensor in features.items():
        if name not in expected or tensor.ndim != 2:
            raise InputError(
                f"{split}: expected {feature_columns()} of shape (N, D), got '{name}' of shape {tuple(tensor.shape)}"
            )
    # The reader checks it, so that nothing is written that cannot be read.
    data = DialogueVectors(
        table,
        vectors={name.removesuffix("_features"): VectorColumn([tensor]) for name, tensor in features.items()},
        name=split,
    )
    check_unique_dialogues({split: data})
    vectors, rows = folder / f"{split}.safetensors", folder / f"{split}.parquet"
    partial = folder / f"{split}.partial"
    rows.unlink(missing_ok=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in features.items()}, partial)
        os.replace(partial, vectors)
        pq.write_table(table, partial)
        os.replace(partial, rows)
    finally:
        partial.unlink(missing_ok=True)
