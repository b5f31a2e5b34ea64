"""One split of a corpus of dialogues as vectors, one vector per turn and modality.

Two forms are read. In both, a row of the split's table has `dialogue_id`, `utterance_ids`, a label column, and
optionally `texts` (the transcripts) and a boolean column per modality (`has_audio`, `has_text`, `has_video`).

- `train.parquet` with the vectors as list columns `speech_features`, `text_features` and `visual_features`, or some of
  them; any `datasets` dataset of that form.
- `train.parquet` without them and `train.safetensors` beside it, with tensors of those names and shape (N, D): the
  turns of the split, one after another, in the order of the table. They are memory-mapped. `write_vectors` writes this
  form.

In place of `utterance_ids`, `labels` and so on, a row may have `utterances`, as the corpora of this package do
(`corpora/schema.py`); `turn_fields.TURN_COLUMNS` says which column each of its fields is read as.

Either may be split into shards (`train-00000-of-00002.parquet`), as the Hub does.

Letters: n dialogues, N turns of the split, D vector width.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..base.errors import InputError
from ..base.files import OpenedFile
from ..base.modalities import MODALITIES
from ..base.plain_text import count_of, for_terminal
from ..corpora.schema import SPLITS as SPLITS
from .dialogue_datasets import mean_and_deviation
from .named_columns import places_of, speech_names
from .tables import TurnColumns
from .targets import as_targets

_CHECK_ROWS = 65536
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class VectorColumn:
    r"""
    The vectors of one modality, (N, D), as a sequence of tensors, which may be memory-mapped.

    Args:
        chunks: the tensors, which follow one another.
        files: the file that each of them is mapped from, None for one in memory; reading from a file that has changed
            since raises `InputError`.
    """

    def __init__(self, chunks: list[torch.Tensor], files: Sequence[OpenedFile | None] = ()):
        self.chunks, self.files = chunks, list(files) or [None] * len(chunks)
        self.starts = np.cumsum([0, *map(len, chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __repr__(self) -> str:
        return f"VectorColumn(num_rows={len(self)}, width={self.width}, dtype={self.chunks[0].dtype})"

    @property
    def width(self) -> int:
        """D"""
        return self.chunks[0].shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop`, in the stored dtype."""
        parts, chunk = [], int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            first = int(self.starts[chunk])
            if (file := self.files[chunk]) is not None:
                file.check()
            part = self.chunks[chunk][start - first : stop - first]
            parts.append(part)
            start, chunk = start + len(part), chunk + 1
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the rows in blocks of bounded size, each with the number of its first row."""
        for start in range(0, len(self), _CHECK_ROWS):
            yield start, self.rows(start, min(start + _CHECK_ROWS, len(self)))

    def picked(self, places: Sequence[int]) -> "VectorColumn":
        """Some of the D columns, in this order, copied into memory."""
        return VectorColumn([block[:, list(places)] for _, block in self.blocks()])


class DialogueVectors(torch.utils.data.Dataset):
    r"""
    One split as a map-style dataset of dialogues.

    An item is a dictionary of `speech_embeddings` (T, Ds), `text_embeddings` (T, Dt), `visual_embeddings` (T, Dv),
    a mask (T,) of each such as `speech_mask`, `labels`, and `transcripts`, a list with a string or None per turn. What
    the corpus does not have is left out. `labels` are class indices (T,), -100 where a turn is not scored; for a
    regression scores (T, S) in float32, NaN where a turn has none.

    Args:
        table (`pyarrow.Table`): a row per dialogue, in the form that this module describes.
        label2id (`dict[str, int]`, *optional*):
            class index of each label name, kept as an attribute; without it the turns have no labels. With `targets`,
            the index of each target, which is otherwise its place in `targets`.
        label_column: column of labels, as names or as class indices (null or -100: not labelled).
        score_column: column of real-valued scores to keep beside the labels.
        vectors (`dict[str, VectorColumn]`, *optional*): vectors by modality, if the table does not hold them.
        name: name of the split in messages.
        targets (`list[str]` or `dict[str, str]`, *optional*):
            the S columns of numbers that a regression predicts, or the column by the name of each target. Null and NaN
            mean that a turn has no value.
        speech_columns (`list[str]`, *optional*):
            the columns of the speech vectors to keep, in this order, by the names that the table states (see
            [`~mister_e_hf.vectors.named_columns`]).

    Raises:
        InputError: naming dialogue and field, if the table does not have this form.
    """

    def __init__(
        self,
        table: pa.Table,
        label2id: Mapping[str, int] | None = None,
        label_column: str = "labels",
        score_column: str | None = None,
        vectors: dict[str, VectorColumn] | None = None,
        name: str = "train",
        *,
        targets: Mapping[str, str] | Sequence[str] | None = None,
        speech_columns: Sequence[str] | None = None,
    ):
        turns = TurnColumns(table, name)
        self.targets = None if targets is None else as_targets(targets, label2id)
        if self.targets is not None:
            if score_column is not None:
                raise InputError(f"{name}: score_column keeps scores beside classes; a regression has targets alone")
            label2id = {target: index for index, target in enumerate(self.targets)}
        if label2id and not self.targets:
            turns.require(label_column, "label_column")
        if score_column is not None:
            turns.require(score_column, "score_column")
        self.name, self.label2id = name, label2id
        self.dialogue_ids, self.utterance_ids = turns.dialogue_ids, turns.utterance_ids
        self.lengths, self.offsets = turns.lengths, turns.offsets
        self.labels: np.ndarray | None = None
        if self.targets is not None:
            self.labels = turns.targets(self.targets)
        elif label2id:
            self.labels = turns.labels(label_column, label2id)
        self.scores = turns.scores(score_column) if score_column else None
        self.transcripts = turns.transcripts()
        self.vectors: dict[str, VectorColumn] = {}
        self.present: dict[str, np.ndarray] = {}
        for modality, names in MODALITIES.items():
            column = names.features
            present = turns.flags(names.has) if names.has in turns.names else np.ones(self.num_turns, dtype=bool)
            if vectors and modality in vectors:
                if column in turns.names:
                    raise InputError(f"{name}: {column} are given twice, in the table and as tensors beside it")
                check_vectors(name, column, vectors[modality].chunks)
                if len(vectors[modality]) != self.num_turns:
                    raise InputError(
                        f"{name}: {column} holds {len(vectors[modality])} vectors, but the table {self.num_turns} "
                        "turns"
                    )
                self.vectors[modality] = vectors[modality]
            elif column in turns.names:
                matrix, given = turns.vectors(column)
                self.vectors[modality] = VectorColumn([torch.from_numpy(matrix)])
                present &= given
            if modality in self.vectors:
                self.present[modality] = present
        if speech_columns is not None and "speech" in self.vectors:
            speech = self.vectors["speech"]
            stated = speech_names(table.schema, name)
            self.vectors["speech"] = speech.picked(places_of(speech_columns, stated, speech.width, name))
        if not self.vectors:
            raise InputError(
                f"{name}: no vectors. Expected at least one of the columns {feature_columns()} in the table, or "
                f"a '{name}.safetensors' with tensors of those names beside it; the table has {turns.names}. Encoders "
                "make vectors from audio and transcripts, before stage 2 is trained."
            )

    @property
    def task(self) -> str:
        """`"regression"` if the labels are scores of targets, else `"classification"`."""
        return "classification" if self.targets is None else "regression"

    @property
    def num_turns(self) -> int:
        """N"""
        return int(self.offsets[-1])

    def __len__(self) -> int:
        return len(self.dialogue_ids)

    def __repr__(self) -> str:
        lines = [f"split: {self.name}", f"num_dialogues: {len(self)}", f"num_turns: {self.num_turns}", self._labels()]
        for modality, column in self.vectors.items():
            lines.append(f"{modality}: {int(self.present[modality].sum())} vectors of width {column.width}")
        return "DialogueVectors({\n" + "".join(f"    {for_terminal(line)}\n" for line in lines) + "})"

    def _labels(self) -> str:
        """The labels in a line: turns of each class; mean and standard deviation of each target and its turns."""
        if self.labels is None or self.label2id is None:
            return "labels: none"
        if self.targets is None:
            counts = np.bincount(self.labels[self.labels >= 0], minlength=max(self.label2id.values()) + 1)
            return f"labels: {', '.join(f'{name} {counts[index]}' for name, index in self.label2id.items())}"
        described = []
        for name, values in zip(self.targets, self.labels.T.astype(np.float64), strict=True):
            values = values[~np.isnan(values)]
            spread = f"mean {values.mean():.2f}, sd {values.std():.2f} of " if len(values) else ""
            described.append(f"{name} ({spread}{count_of(len(values), 'turn')})")
        return f"targets: {', '.join(described)}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        item: dict[str, Any] = {}
        for modality, column in self.vectors.items():
            item[MODALITIES[modality].embeddings] = column.rows(start, stop)
            item[MODALITIES[modality].mask] = torch.from_numpy(self.present[modality][start:stop])
        if self.labels is not None:
            item["labels"] = torch.from_numpy(self.labels[start:stop])
        if self.transcripts is not None:
            item["transcripts"] = self.transcripts[index]
        return item

    def dialogue_of(self, turn: int) -> str:
        """Id of the dialogue that a turn of the split belongs to."""
        return self.dialogue_ids[self._row_of(turn)]

    def _row_of(self, turn: int) -> int:
        return int(np.searchsorted(self.offsets, turn, side="right")) - 1

    def statistics(self, modality: str) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mean and standard deviation (D,) over the turns that have the modality, in float64.

        Raises:
            InputError: if no turn has it.
        """
        kept = torch.from_numpy(self.present[modality])
        found = mean_and_deviation(
            lambda: ((block, kept[start : start + len(block)]) for start, block in self.vectors[modality].blocks())
        )
        if found is None:
            raise InputError(f"{self.name}: no turn has {modality}, so its vectors cannot be standardised")
        return found

    def check(self, widths: Mapping[str, int]):
        r"""
        Check the vectors before they are used.

        Args:
            widths: width that the model expects, by modality.

        Raises:
            InputError: naming dialogue and field, if a modality has another width, or the vector of a turn that has
                the modality holds NaN or infinity.
        """
        for modality, column in self.vectors.items():
            field = MODALITIES[modality].features
            if modality in widths and column.width != widths[modality]:
                raise InputError(
                    f"{self.name}: {field} of dialogue '{self.dialogue_ids[0]}' have width {column.width}, but the "
                    f"model expects {MODALITIES[modality].width} = {widths[modality]}"
                )
            for start, block in column.blocks():
                # In the model's dtype: a finite float64 may be infinite there.
                broken = ~torch.isfinite(block.float()).all(1) & torch.from_numpy(
                    self.present[modality][start : start + len(block)]
                )
                if broken.any():
                    turn = start + int(broken.nonzero()[0, 0])
                    row = self._row_of(turn)
                    dialogue, utterance = self.dialogue_ids[row], self.utterance_ids[row][turn - self.offsets[row]]
                    raise InputError(
                        f"{self.name}: {field} of utterance '{utterance}' in dialogue '{dialogue}' hold NaN, infinity "
                        f"or numbers beyond float32 ({int(broken.sum())} such vectors in this block). Mark the turn "
                        "as absent or fix the vector."
                    )

    def fingerprint(self) -> str:
        """A hash of ids, labels, vectors and of which turns have them."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.dialogue_ids, self.utterance_ids)).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        for modality, column in self.vectors.items():
            digest.update(modality.encode() + self.present[modality].tobytes())
            for _, block in column.blocks():
                digest.update(block.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def feature_columns() -> str:
    """The columns of vectors, for a message."""
    return ", ".join(each.features for each in MODALITIES.values())


def check_vectors(where: str, field: str, chunks: Sequence[torch.Tensor]):
    """Raise an `InputError` unless these are vectors (N, D) of one width, of real numbers in a dtype of torch."""
    shapes = [tuple(chunk.shape) for chunk in chunks]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise InputError(f"{where}: {field} must be (N, D) of one width D, got {shapes}")
    refused = {chunk.dtype for chunk in chunks} - {*_FLOATS, *_INTEGERS}
    if refused:
        raise InputError(
            f"{where}: {field} must be real numbers of 16, 32 or 64 bits, such as float32; got "
            f"{', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in refused))}"
        )


def regroup(splits: Sequence[DialogueVectors], dialogues: Sequence[int] | np.ndarray, name: str) -> DialogueVectors:
    r"""
    A new split of some dialogues, whose vectors are copied.

    Args:
        splits: where the dialogues come from.
        dialogues: their numbers, counted through all the splits, in the order of the new one.
        name: name of the new split.

    Raises:
        InputError: if the splits have vectors of different modalities.
    """
    for data in splits[1:]:
        if set(data.vectors) != set(splits[0].vectors):
            raise InputError(
                f"{splits[0].name} has vectors of {', '.join(splits[0].vectors)}, but {data.name} of "
                f"{', '.join(data.vectors)}; their dialogues can be mixed only if both have the same modalities"
            )
    starts = np.cumsum([0, *map(len, splits)])
    homes = np.searchsorted(starts, dialogues, side="right") - 1
    chosen = [(splits[home], int(number - starts[home])) for home, number in zip(homes, dialogues, strict=True)]

    def turns(values: str) -> np.ndarray | None:
        if getattr(splits[0], values) is None:
            return None
        parts = [getattr(data, values)[data.offsets[number] : data.offsets[number + 1]] for data, number in chosen]
        return np.concatenate(parts)

    new = copy.copy(splits[0])
    new.name = name
    new.dialogue_ids = [data.dialogue_ids[number] for data, number in chosen]
    new.utterance_ids = [data.utterance_ids[number] for data, number in chosen]
    new.lengths = np.array([data.lengths[number] for data, number in chosen], dtype=np.int64)
    new.offsets = np.concatenate([[0], np.cumsum(new.lengths)])
    new.labels, new.scores = turns("labels"), turns("scores")
    items = [data[number] for data, number in chosen]
    transcripts = [item.get("transcripts") for item in items]
    new.transcripts = None if None in transcripts else transcripts
    new.vectors, new.present = {}, {}
    for modality in splits[0].vectors:
        names = MODALITIES[modality]
        new.vectors[modality] = VectorColumn([torch.cat([item[names.embeddings] for item in items])])
        new.present[modality] = torch.cat([item[names.mask] for item in items]).numpy()
    return new
