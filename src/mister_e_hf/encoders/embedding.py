"""A corpus of dialogues -> its vectors, by the encoders of stage 1, in shards that are made once each.

A shard is a run of whole dialogues of one split: `train-00002-of-00007.safetensors` with `speech_features` (N, Ds) and `text_features` (N, Dt),
and the table of the same name. Each appears whole or not at all, the table last, so that a run that was killed goes on with the first shard
that is not there; processes take shards in turn.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save

from ..base import progress
from ..base.errors import InputError, short
from ..base.files import UNFINISHED, check_output_folder, write_atomically, write_json
from ..base.processes import own_folder, processes, report
from ..base.records import check_same
from ..corpora.dialogues import corpus_fingerprint, cross_fitting_folds, load_dialogues, turns_of_dialogues
from ..corpora.provenance import Provenance
from ..vectors.corpus_labels import LABELS_KEY
from .alignment import Alignment, align
from .modeling_utterance_encoder import UtteranceEncoder
from .packing import packed_batches
from .processing_utterance_encoder import MisterEProcessor
from .utterances import Utterances

logger = logging.getLogger(__name__)

RECORD = "embedding.json"

_MOST_ROWS = 256

_ALIGNED_ON = 4096  # turns, about

# An encoder, its processor, which of a shard's dialogues are its own, and how its vectors come to those of the others.
_Maker = tuple[UtteranceEncoder, MisterEProcessor, np.ndarray, Alignment | None]


def embed_corpus(
    corpus: str | Path | datasets.DatasetDict,
    encoders: Mapping[str, tuple[UtteranceEncoder, MisterEProcessor]],
    folder: str | Path,
    bad_audio: str = "error",
    token_budget: int = 8192,
    second_budget: float = 120.0,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    shard_turns: int = 4096,
    fold_encoders: Mapping[str, Sequence[UtteranceEncoder]] | None = None,
    use_cpu: bool = False,
) -> Path:
    r"""
    Embed every turn of a corpus; whole shards in the folder are skipped. Processes of one launch share the work.

    Args:
        corpus: as [`load_dialogues`] takes it.
        encoders: by modality, the encoder, on the device it is to run on or on the CPU, and its processor.
        folder: where to; `read_corpus(folder)` reads it.
        bad_audio: `"error"`, or `"missing"`: sound that cannot be used is then a missing modality, with a warning.
        token_budget, second_budget: largest batch of text, in tokens, and of sound, in seconds, padding included.
        num_workers: processes that decode sound and prepare batches ahead of the model.
        dtype: of the computation; by default bfloat16 on a device that is made for it, else the encoder's own.
        shard_turns: turns of a shard, about.
        fold_encoders: by modality, an encoder for each fold of the split `train` that has not seen it ([`cross_fitting_folds`]): training
            turns get cross-fitted vectors then, turned into the space of `encoders`, which other splits get theirs from.
        use_cpu: run on the CPU even if a GPU is available.

    Raises:
        InputError: if a size is not positive, or the folder holds vectors of another corpus or other encoders, or is an input.
    """
    _check_sizes(token_budget=token_budget, second_budget=second_budget, shard_turns=shard_turns)
    if num_workers < 0:
        raise InputError(f"num_workers must not be negative, got {num_workers}")
    check_output_folder(folder, [corpus if isinstance(corpus, str | Path) else None])
    corpus, folder, fold_encoders = load_dialogues(corpus), Path(folder), fold_encoders or {}
    if not encoders or set(encoders) - {"speech", "text"}:
        raise InputError(f"encoders must name speech, text or both, got {list(encoders)}")
    if set(fold_encoders) - set(encoders):
        raise InputError(f"fold_encoders name {list(fold_encoders)}, encoders {list(encoders)} alone")
    state = processes(use_cpu)
    dtype = dtype or _default_dtype(state.device)
    record = {
        "corpus": {split: corpus_fingerprint(data) for split, data in corpus.items()},
        "encoders": {modality: encoder.fingerprint() for modality, (encoder, _) in sorted(encoders.items())},
        "processor settings": {
            modality: _settings(processor) for modality, (_, processor) in sorted(encoders.items())
        },
        "bad_audio": bad_audio,
        "dtype": str(dtype),
        "shard_turns": shard_turns,
        "fold encoders": {
            modality: [encoder.fingerprint() for encoder in folds] for modality, folds in sorted(fold_encoders.items())
        },
    }
    options = {
        "bad_audio": bad_audio,
        "num_workers": num_workers,
        "dtype": dtype,
        "second_budget": second_budget,
        "token_budget": token_budget,
    }
    with own_folder(folder):
        with state.main_process_first():
            _claim(folder, record, state.is_main_process)
        _write_missing(corpus, encoders, fold_encoders, folder, shard_turns, options)
    return folder


def _check_sizes(**sizes: float):
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise InputError(f"{name} must be a positive number, got {size}")


def _write_missing(
    corpus: datasets.DatasetDict,
    encoders: Mapping[str, tuple[UtteranceEncoder, MisterEProcessor]],
    fold_encoders: Mapping[str, Sequence[UtteranceEncoder]],
    folder: Path,
    shard_turns: int,
    options: dict[str, Any],
):
    """The shards that are not in the folder whole, those that are this process's turn."""
    state = PartialState()
    shards = [
        (split, number, len(parts), rows)
        for split, data in corpus.items()
        for parts in [_shards(data, shard_turns)]
        for number, rows in enumerate(parts)
    ]

    def makers_of(modality: str, split: str, rows: tuple[int, int]) -> list[_Maker]:
        encoder, processor = encoders[modality]
        folds = fold_encoders.get(modality)
        if split != "train" or folds is None:
            return [(encoder, processor, np.ones(rows[1] - rows[0], dtype=bool), None)]
        fold = cross_fitting_folds(len(corpus["train"]), len(folds))[slice(*rows)]
        return [(other, processor, fold == number, alignments[modality][number]) for number, other in enumerate(folds)]

    missing = [shard for shard in shards if not _is_whole(*_paths(folder, *shard[:3]))]
    if len(missing) < len(shards):
        some = f"{len(shards) - len(missing)} of {len(shards)} shards " if missing else ""
        report(f"vectors: {some}embedded earlier ({folder})")
    waiting = missing[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # till all have seen what is there: a table made now would shift the turns of the others
    alignments = {}
    if any(split == "train" for split, *_ in waiting):
        for modality in fold_encoders:
            report(f"vectors: aligning the {modality} encoders of the folds")
        alignments = {
            modality: _alignments(corpus["train"], *encoders[modality], folds, options)
            for modality, folds in fold_encoders.items()
        }
    turns = sum(_num_turns(corpus[split], rows) for split, _, _, rows in waiting)
    total, title = turns * len(encoders), f"embedding {' and '.join(encoders)}"
    with progress.bar(title, total, "turns", shown=state.is_main_process and bool(waiting)) as bar:
        for split, number, count, rows in waiting:
            data = corpus[split].select(range(*rows))
            makers = {modality: makers_of(modality, split, rows) for modality in encoders}
            _write_shard(*_paths(folder, split, number, count), data, makers, options, bar)
    state.wait_for_everyone()
    if missing:
        turns = sum(_num_turns(corpus[split], rows) for split, _, _, rows in missing)
        report(f"vectors: {turns:,} turns embedded")


def _is_whole(vectors: Path, table: Path) -> bool:
    """Whether a shard is there: the table, which is written last, can be read, and the vectors have the size that their header says."""
    if not table.is_file():
        return False
    try:
        pq.read_metadata(table)
        with safe_open(vectors, framework="pt"):
            return True
    except Exception as error:  # libraries raise errors of every kind for damaged content
        logger.warning("'%s' or its vectors are damaged (%s); they are embedded again", table, short(error))
        return False


def embed_turns(
    encoder: UtteranceEncoder,
    processor: MisterEProcessor,
    utterances: Utterances,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    token_budget: int = 8192,
    second_budget: float = 120.0,
    bar: progress.Bar | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Vectors of a split's turns.

    Returns:
        embeddings (N, D) float32, 0 where the turn lacks the modality, and presence (N,).
    """
    texts = utterances.modality == "text"
    sizes = processor.sizes(
        [utterances[item]["turn"] for item in range(len(utterances))] if texts else utterances.lengths
    )
    batches = list(packed_batches(sizes, token_budget if texts else second_budget, _MOST_ROWS))
    loader = torch.utils.data.DataLoader(
        utterances,
        batch_sampler=batches,
        collate_fn=_Preparing(processor),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
    )
    embeddings = torch.zeros(utterances.num_turns, encoder.config.embedding_dim)
    present = torch.zeros(utterances.num_turns, dtype=torch.bool)
    device = next(encoder.parameters()).device
    dtype = dtype or _default_dtype(device)
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        for indices, batch in loader:
            if batch is not None:
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    vectors = encoder(**{name: value.to(device) for name, value in batch.items()}).embeddings
                embeddings[indices["given"]] = vectors.float().cpu()
                present[indices["given"]] = True
            if bar is not None:
                bar.update(indices["count"])
    encoder.train(was_training)
    return embeddings, present


def _default_dtype(device: torch.device) -> torch.dtype | None:
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


def _settings(processor: MisterEProcessor) -> dict[str, Any]:
    """What makes another vector of the same turn."""
    return {name: getattr(processor, name) for name in ("prompt", "max_tokens", "window_seconds", "trailing_silence")}


class _Preparing:
    """In a worker: items -> their numbers and the encoder's input; None where nothing could be used."""

    def __init__(self, processor: MisterEProcessor):
        self.processor = processor

    def __call__(self, items: list[dict[str, Any]]):
        given = [item for item in items if item["turn"] is not None]
        batch = dict(self.processor([item["turn"] for item in given])) if given else None
        return {"given": torch.tensor([item["index"] for item in given], dtype=torch.long), "count": len(items)}, batch


def _claim(folder: Path, record: dict, writes: bool):
    path = folder / RECORD
    if check_same(path, record, "vectors", "folder") or not writes:
        return
    if any(not path.name.startswith(UNFINISHED) for path in folder.iterdir()):
        raise InputError(f"'{folder}' is not empty and holds no {RECORD}; choose another folder")
    write_json(path, record)


def _num_turns(data: datasets.Dataset, rows: tuple[int, int]) -> int:
    return int(turns_of_dialogues(data)[slice(*rows)].sum())


def _shards(data: datasets.Dataset, turns: int) -> list[tuple[int, int]]:
    """Runs of whole dialogues of about so many turns, first row to behind the last."""
    ends = np.cumsum(turns_of_dialogues(data))
    cuts = [0, *(int(np.searchsorted(ends, goal)) + 1 for goal in range(turns, int(ends[-1]), turns)), len(ends)]
    cuts = sorted(set(cuts))
    return list(zip(cuts, cuts[1:], strict=False))


def _paths(folder: Path, split: str, number: int, count: int) -> tuple[Path, Path]:
    name = f"{split}-{number:05}-of-{count:05}"
    return folder / f"{name}.safetensors", folder / f"{name}.parquet"


def _alignments(
    data: datasets.Dataset,
    encoder: UtteranceEncoder,
    processor: MisterEProcessor,
    folds: Sequence[UtteranceEncoder],
    options: dict[str, Any],
) -> list[Alignment]:
    """From each fold's encoder to that of all, on some turns of dialogues that both have seen."""
    fold = cross_fitting_folds(len(data), len(folds))
    some = np.arange(len(data)) % max(1, round(int(turns_of_dialogues(data).sum()) / _ALIGNED_ON)) == 0

    target, _, _ = _vectors(encoder, processor, data, some, options)
    found = []
    for number, other in enumerate(folds):
        own, present, _ = _vectors(other, processor, data, some & (fold != number), options)
        other.to("cpu")
        found.append(align(own[present], target[present]))
    return found


def _vectors(
    encoder: UtteranceEncoder,
    processor: MisterEProcessor,
    data: datasets.Dataset,
    dialogues: np.ndarray,
    options: dict[str, Any],
    bar: progress.Bar | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """As [`embed_turns`], of some dialogues and on this process's device; and how many turns were given to it."""
    options = dict(options)
    utterances = Utterances(data, processor.modality, bad_audio=options.pop("bad_audio"), dialogues=dialogues)
    embeddings, present = embed_turns(encoder.to(PartialState().device), processor, utterances, bar=bar, **options)
    return embeddings, present, len(utterances)


def _write_shard(
    vectors: Path,
    table: Path,
    data: datasets.Dataset,
    makers: Mapping[str, list[_Maker]],
    options: dict[str, Any],
    bar: progress.Bar,
):
    features, columns = {}, _columns(data)
    num_turns = int(turns_of_dialogues(data).sum())
    for modality, parts in makers.items():
        there, given = torch.zeros(num_turns, dtype=torch.bool), 0
        features[f"{modality}_features"] = whole = torch.zeros(num_turns, parts[0][0].config.embedding_dim)
        for encoder, processor, dialogues, alignment in parts:
            embeddings, present, count = _vectors(encoder, processor, data, dialogues, options, bar)
            if len(parts) > 1:
                encoder.to("cpu")  # one of many has room there, not all
            whole[present] = embeddings[present] if alignment is None else alignment(embeddings[present])
            there |= present
            given += count
        bar.update(num_turns - given)
        columns["has_audio" if modality == "speech" else "has_text"] = _by_dialogue(pa.array(there.numpy()), data)
    names = data.features["utterances"].feature["emotion"].names  # those that no turn has, too
    metadata = {LABELS_KEY: json.dumps(names).encode()}
    metadata |= Provenance.of(data.info).metadata()  # the corpus's licence holds for its vectors, too
    # not save_file, which writes to a name of its own first and leaves that behind where it is killed
    write_atomically(vectors, lambda partial: partial.write_bytes(save(features)))
    write_atomically(table, lambda partial: pq.write_table(pa.table(columns, metadata=metadata), partial))


def _columns(data: datasets.Dataset) -> dict[str, pa.Array]:
    """What stage 2 and its reader want to know of a turn: all but its sound."""
    turns = [chunk.flatten() for chunk in data.data.column("utterances").chunks]
    fields = {"utterance_ids": "utterance_id", "texts": "text", "speakers": "speaker"}
    fields |= {"labels": "emotion", "sentiment": "sentiment"}
    flat = {name: pa.concat_arrays([chunk.field(field) for chunk in turns]) for name, field in fields.items()}
    names = data.features["utterances"].feature["emotion"].names
    flat["labels"] = pa.array(
        [None if label is None or label < 0 else names[label] for label in flat["labels"].to_pylist()], pa.string()
    )
    return {"dialogue_id": pa.array(data["dialogue_id"][:], pa.string())} | {
        name: _by_dialogue(values, data) for name, values in flat.items()
    }


def _by_dialogue(values: pa.Array, data: datasets.Dataset) -> pa.ListArray:
    lengths = turns_of_dialogues(data)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)
