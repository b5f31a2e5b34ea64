"""The columns of a table with a row per dialogue, read as one value per turn.

Letters: N turns of the split, D vector width.
"""

import difflib
import logging
import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ..base.errors import InputError, short
from ..base.modalities import IGNORE_INDEX, MODALITIES
from .targets import LARGEST_TARGET
from .turn_fields import class_names, is_list, is_number, is_text, is_vectors, with_turn_columns

logger = logging.getLogger(__name__)

MISSPELT_RATIO = 0.85  # difflib's ratio from which a name may be a misspelling of another


class TurnColumns:
    r"""
    The columns of one split.

    Args:
        table (`pyarrow.Table`): a row per dialogue, as `dialogue_vectors.py` describes.
        name: name of the split in messages.

    Raises:
        InputError: naming dialogue and field, if the table does not have this form.
    """

    def __init__(self, table: pa.Table, name: str):
        self.name = name
        self.table = with_turn_columns(table, name) if "utterances" in table.column_names else table
        self.names = self.table.column_names
        self._check_names()
        for column in ("dialogue_id", "utterance_ids"):
            self.require(column)
        self.dialogue_ids = self._dialogue_ids(self.table["dialogue_id"])
        utterance_ids = self.table["utterance_ids"]
        if not is_list(utterance_ids.type):
            raise InputError(f"{name}: 'utterance_ids' must hold one list per dialogue, not {utterance_ids.type}")
        self.utterance_ids: list[list] = utterance_ids.to_pylist()
        self.lengths = np.array([len(ids or []) for ids in self.utterance_ids], dtype=np.int64)
        for dialogue, length in zip(self.dialogue_ids, self.lengths, strict=True):
            if length == 0:
                raise InputError(f"{name}: dialogue '{dialogue}' has no turns (utterance_ids is empty)")
        if not self.dialogue_ids:
            raise InputError(f"{name}: the table has no dialogues")
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._check_utterance_ids()

    @property
    def num_turns(self) -> int:
        """N"""
        return int(self.offsets[-1])

    def require(self, column: str, setting: str | None = None):
        """Raise an `InputError` if the table does not have the column, which a setting of a recipe may name."""
        if column not in self.names:
            advice = f". Name another with {setting} (corpus.{setting} of a recipe)" if setting else ""
            raise InputError(f"{self.name}: the table has no column '{column}'; it has {self.names}{advice}")

    def _check_names(self):
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise InputError(f"{self.name}: the table has two columns '{twice[0]}'")
        read = _read_columns()
        known = _other_names() | {_plain(name): name for name in read}
        for name in self.names:
            meant = known.get(_plain(name)) or known.get(_plain(name) + "s")
            if meant is None and is_vectors(self.table[name].type):
                near = difflib.get_close_matches(_plain(name), known, 1, MISSPELT_RATIO)
                meant = known[near[0]] if near else None
            if meant and name not in read and meant not in self.names:
                raise InputError(
                    f"{self.name}: the table's column '{name}' is not read; rename it to '{meant}', or drop it"
                )
        left = [name for name in self.names if name not in read and is_vectors(self.table[name].type)]
        if left:
            logger.warning("%s: the vectors in the columns %s are not read", self.name, short(", ".join(left)))

    def _dialogue_ids(self, column: pa.ChunkedArray) -> list[str]:
        if pa.types.is_nested(column.type) or pa.types.is_boolean(column.type):
            raise InputError(f"{self.name}: 'dialogue_id' must hold a name or number, not {column.type}")
        ids = column.to_pylist()
        for row, value in enumerate(ids):
            if value is None or value != value:
                raise InputError(f"{self.name}: 'dialogue_id' is null in row {row}")
        return [str(value) for value in ids]

    def _check_utterance_ids(self):
        kind = self.table["utterance_ids"].type.value_type
        if pa.types.is_nested(kind) or pa.types.is_boolean(kind):
            raise InputError(f"{self.name}: 'utterance_ids' must hold a name or number per turn, not {kind}")
        for dialogue, ids in zip(self.dialogue_ids, self.utterance_ids, strict=True):
            seen = set()
            for turn, value in enumerate(ids):
                if value is None or value != value:
                    raise InputError(f"{self.name}: dialogue '{dialogue}': 'utterance_ids' is null at turn {turn}")
                if value in seen:
                    raise InputError(
                        f"{self.name}: dialogue '{dialogue}': 'utterance_ids' has '{short(value)}' twice; "
                        "each must appear once"
                    )
                seen.add(value)

    def dialogue_of(self, turn: int) -> str:
        """Id of the dialogue that a turn of the split belongs to."""
        return self.dialogue_ids[int(np.searchsorted(self.offsets, turn, side="right")) - 1]

    def flat(self, field: str) -> pa.Array:
        """The items of a list column, one per turn of the split."""
        column = self.table[field]
        if not is_list(column.type):
            raise InputError(f"{self.name}: '{field}' must hold one list per dialogue, not {column.type}")
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        lengths = np.array(column.value_lengths().fill_null(0))
        if not np.array_equal(lengths, self.lengths):
            row = int(np.flatnonzero(lengths != self.lengths)[0])
            raise InputError(
                f"{self.name}: dialogue '{self.dialogue_ids[row]}' has {self.lengths[row]} turns (utterance_ids), but "
                f"{lengths[row]} entries in '{field}'"
            )
        return column.flatten()

    def flags(self, field: str) -> np.ndarray:
        """A column of booleans (N,); null is false."""
        given = self.flat(field)
        if not pa.types.is_boolean(given.type):
            raise InputError(f"{self.name}: '{field}' must hold true or false per turn, not {given.type}")
        return given.fill_null(False).to_numpy(zero_copy_only=False).copy()

    def labels(self, field: str, label2id: Mapping[str, int]) -> np.ndarray:
        """Class indices (N,), -100 where a turn has no label."""
        values = self.flat(field)
        if pa.types.is_floating(values.type):
            raise InputError(
                f"{self.name}: '{field}' holds real numbers. Name a column of labels or class indices with "
                "label_column (corpus.label_column of a recipe), or predict the numbers themselves with targets "
                "(corpus.targets)"
            )
        names = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if not (is_text(names) or pa.types.is_integer(names) or pa.types.is_null(names)):
            raise InputError(f"{self.name}: '{field}' must hold a name or a class index per turn, not {values.type}")
        labels = np.full(self.num_turns, IGNORE_INDEX, dtype=np.int64)
        indices = set(label2id.values())
        for turn, value in enumerate(values.to_pylist()):
            if value is None or value == IGNORE_INDEX:
                continue
            if (value not in label2id) if isinstance(value, str) else (value not in indices):
                raise InputError(
                    f"{self.name}: dialogue '{self.dialogue_of(turn)}' has the label {value!r} in '{field}', which is "
                    f"not one of the model's labels {dict(label2id)}; name those of the corpus with --corpus.labels, "
                    "or leave corpus.labels out of the recipe"
                )
            labels[turn] = label2id[value] if isinstance(value, str) else value
        return labels

    def scores(self, field: str, remedy: str = "name another score_column") -> np.ndarray:
        r"""
        Real-valued scores (N,), NaN where a turn has none (null or NaN).

        Args:
            field: name of the column.
            remedy: what to do about a column of other values, for messages.

        Raises:
            InputError: if the column does not hold numbers, or holds infinity.
        """
        values = self.flat(field)
        kind = values.type
        names = class_names(self.table.schema, field)
        if names or not (is_number(kind) or pa.types.is_null(kind)):
            raise InputError(
                f"{self.name}: '{field}' must hold a number per turn, not "
                f"{f'classes ({short(names)})' if names else kind}; {remedy}"
            )
        scores = values.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        if np.isinf(scores).any():
            turn = int(np.flatnonzero(np.isinf(scores))[0])
            raise InputError(f"{self.name}: dialogue '{self.dialogue_of(turn)}' has an infinite score in '{field}'")
        return scores

    def targets(self, targets: Mapping[str, str]) -> np.ndarray:
        """
        The values (N, S) of the columns of a regression's targets, in float32; NaN where a turn has none.

        Raises:
            InputError: naming column and dialogue, if a column is missing, does not hold numbers, or holds infinity or
                numbers beyond `LARGEST_TARGET`.
        """
        columns = []
        for column in targets.values():
            self._require_numbers(column)
            remedy = "name columns of numbers as targets, or a label_column without targets to predict classes"
            scores = self.scores(column, remedy)
            with np.errstate(over="ignore"):
                values = scores.astype(np.float32)
            if (large := np.abs(values) > LARGEST_TARGET).any():
                turn = int(np.flatnonzero(large)[0])
                raise InputError(
                    f"{self.name}: dialogue '{self.dialogue_of(turn)}' has {scores[turn]:g} in '{column}', which is "
                    f"beyond {LARGEST_TARGET:g}: gradients in float32 would be infinite. Scale the column"
                )
            values[np.isnan(values)] = np.nan  # one NaN of many, so that equal scores have equal fingerprints
            columns.append(values)
        return np.stack(columns, axis=1)

    def _require_numbers(self, column: str):
        """Raise an `InputError` that names the columns of numbers if a target's column does not exist."""
        if column in self.names:
            return
        kinds = {name: self.table[name].type for name in self.names}
        numbers = [name for name, kind in kinds.items() if is_list(kind) and is_number(kind.value_type)]
        near = difflib.get_close_matches(column, numbers, 1)
        suggestion = f"did you mean '{near[0]}'? The" if near else "the"
        other = near[0] if near else "labels" if "labels" in numbers else next(iter(numbers), None)
        example = f"; to predict one under this name: --corpus.targets '{{{column}: {other}}}'" if other else ""
        raise InputError(
            f"{self.name}: the table has no column '{column}', which targets name; {suggestion} columns of "
            f"numbers are {numbers}{example}"
        )

    def transcripts(self) -> list[list[str | None]] | None:
        """
        The transcripts of each dialogue's turns, None where a turn has none; None without such a column, or, with a
        warning, if it has not as many as a dialogue has turns.
        """
        if "texts" not in self.names or not is_list(self.table["texts"].type):
            return None
        if not (is_text(kind := self.table["texts"].type.value_type) or pa.types.is_null(kind)):
            return None
        texts: list[list[str | None]] = []
        for row, (turns, length) in enumerate(zip(self.table["texts"].to_pylist(), self.lengths, strict=True)):
            texts.append([None] * int(length) if turns is None else turns)
            if len(texts[-1]) != length:
                logger.warning(
                    "%s: 'texts' of dialogue '%s' are %d, and it has %d turns: no transcripts are read",
                    self.name,
                    self.dialogue_ids[row],
                    len(texts[-1]),
                    length,
                )
                return None
        return texts

    def vectors(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """The vectors (N, D), and whether each turn has one (N,)."""
        turns = self.flat(field)
        if pa.types.is_null(turns.type):
            turns = turns.cast(pa.list_(pa.float32()))
        if not is_list(turns.type) or not (
            pa.types.is_floating(turns.type.value_type) or pa.types.is_integer(turns.type.value_type)
        ):
            raise InputError(f"{self.name}: '{field}' must hold a list of numbers per turn, not {turns.type}")
        given = np.array(turns.is_valid())
        widths = np.array(turns.value_lengths().fill_null(0))[given]
        if not len(widths) or len(set(widths.tolist())) != 1:
            row = 0 if not len(widths) else int(np.flatnonzero(given)[np.flatnonzero(widths != widths[0])[0]])
            several = f"has vectors of widths {sorted(set(widths.tolist()))}"
            found = several if len(widths) else "is null at every turn"
            raise InputError(f"{self.name}: '{field}' {found} (see dialogue '{self.dialogue_of(row)}')")
        values = turns.flatten()
        if not widths[0] or values.null_count:
            broken = int(np.flatnonzero(np.array(values.is_null()))[0]) // widths[0] if widths[0] else 0
            row = int(np.flatnonzero(given)[broken])
            raise InputError(
                f"{self.name}: '{field}' holds {'vectors with null entries' if widths[0] else 'vectors of width 0'} "
                f"(see dialogue '{self.dialogue_of(row)}')"
            )
        matrix = np.array(values).reshape(-1, widths[0])
        if not given.all():
            everywhere = np.zeros((self.num_turns, widths[0]), dtype=matrix.dtype)
            everywhere[given] = matrix
            matrix = everywhere
        return matrix, given


def _read_columns() -> set[str]:
    """The columns that are read by a fixed name."""
    vectors = [column for each in MODALITIES.values() for column in (each.features, each.has)]
    return {"dialogue_id", "utterance_ids", "utterances", *vectors}


def _other_names() -> dict[str, str]:
    """What other programs and other parts of this package call these columns, in [`_plain`] form."""
    names: dict[str, str] = {}
    for each in MODALITIES.values():
        vectors = (
            f"{each.name}embeddings",
            f"{each.name}vectors",
            f"{each.content}features",
            f"{each.content}embeddings",
        )
        masks = (f"has{each.name}", f"{each.name}mask", f"{each.content}mask")
        names |= dict.fromkeys(vectors, each.features) | dict.fromkeys(masks, each.has)
    return names


def _plain(name: str) -> str:
    """The name of a column without case and punctuation."""
    return re.sub(r"[\W_]", "", name).lower()
