"""Embed a corpus of dialogues: a vector of every turn, in shards ([`Shard`]) that are skipped if they exist."""

import contextlib
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..base import progress
from ..base.errors import InputError
from ..base.files import check_output_folder
from ..base.modalities import MODALITIES
from ..base.processes import own_folder, processes, report
from ..base.threads import few_threads
from ..corpora.dialogues import corpus_fingerprint, cross_fitting_folds, load_dialogues, turns_of_dialogues
from .ahead import made_ahead
from .alignment import Alignment, align
from .backbones import width_and_states
from .modeling_utterance_encoder import UtteranceEncoder
from .packing import packed_batches
from .processing_utterance_encoder import MisterEProcessor
from .shards import RECORD as RECORD
from .shards import Shard, claim, shards_of
from .utterances import Utterances

Encoder = tuple[UtteranceEncoder, MisterEProcessor]

_LARGEST_BATCH = 256  # rows; more do not fit into the cache of a processor
_LARGEST_BATCH_OF_ACCELERATORS = 2048  # fewer do not pay for their launches
_ALIGNMENT_TURNS = 4096  # about so many turns determine a rotation


@dataclass(frozen=True)
class EmbeddingOptions:
    r"""
    How turns are embedded.

    Args:
        bad_audio: `"error"`, or `"missing"`: audio that cannot be read is a missing modality, with a warning.
        token_budget, second_budget: largest batch of text, in tokens, and of audio, in seconds, padding included.
        num_workers: processes that decode audio and video and prepare batches ahead of the model.
        dtype: computation dtype; by default bfloat16 on a device with native support, else the encoder's own.
        bad_video: as `bad_audio`, of video.
        frame_budget: largest batch of video, in frames.

    Raises:
        InputError: if a size is not positive, or the number of workers negative.
    """

    bad_audio: str = "error"
    token_budget: int = 8192
    second_budget: float = 120.0
    num_workers: int = 0
    dtype: torch.dtype | None = None
    bad_video: str = "error"
    frame_budget: int = 64

    def __post_init__(self):
        _check_sizes(token_budget=self.token_budget, second_budget=self.second_budget, frame_budget=self.frame_budget)
        if self.num_workers < 0:
            raise InputError(f"num_workers must not be negative, got {self.num_workers}")

    def budget(self, unit: str) -> float:
        """Largest batch of turns whose cost is counted in this unit."""
        return {"token": self.token_budget, "second": self.second_budget, "frame": self.frame_budget}[unit]

    def policies(self, modalities: Iterable[str]) -> dict[str, str]:
        """What is done with files that cannot be read, as far as the vectors of these modalities depend on it."""
        found = {"bad_audio": self.bad_audio}  # in every record, since it was there before there were others
        return found | ({"bad_video": self.bad_video} if "visual" in modalities else {})

    def dtype_on(self, device: torch.device) -> torch.dtype | None:
        """The dtype of autocast; None for the encoder's own."""
        native = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.dtype or (torch.bfloat16 if native else None)


@dataclass
class _ShardEncoder:
    """
    An encoder, the dialogues of a shard that it embeds, and what brings its vectors into the space of the others'.
    """

    encoder: UtteranceEncoder
    processor: MisterEProcessor
    dialogues: np.ndarray
    alignment: Alignment | None = None

    def embed(
        self, data: datasets.Dataset, options: EmbeddingOptions, bar: progress.Bar | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """As [`embed_turns`], on this process's device; and how many turns were embedded."""
        utterances = Utterances(
            data,
            self.processor.modality,
            dialogues=self.dialogues,
            bad_audio=options.bad_audio,
            bad_video=options.bad_video,
            num_frames=self.processor.num_frames,
        )
        _move(self.encoder, PartialState().device)
        vectors, present = embed_turns(self.encoder, self.processor, utterances, options, bar)
        if self.alignment is not None:
            vectors[present] = self.alignment(vectors[present])
        return vectors, present, len(utterances)


def embed_corpus(
    corpus: str | Path | datasets.DatasetDict,
    encoders: Mapping[str, Encoder],
    folder: str | Path,
    shard_turns: int = 4096,
    fold_encoders: Mapping[str, Sequence[UtteranceEncoder]] | None = None,
    use_cpu: bool = False,
    **options: Any,
) -> Path:
    r"""
    Embed every turn of a corpus. Shards that are in the folder already are skipped; processes of one launch share the
    work.

    Args:
        corpus: as [`load_dialogues`] takes it.
        encoders: by modality, the encoder, on the CPU or on the device it is to run on, and its processor.
        folder: where the vectors are written; `read_corpus(folder)` reads them.
        shard_turns: approximate number of turns per shard.
        fold_encoders: by modality, for cross-fitting: an encoder for each fold of the split `train` that was trained
            without that fold ([`cross_fitting_folds`]). Training turns get the vectors of the encoder that did not see
            them, rotated into the space of `encoders`, which embed the other splits.
        use_cpu: run on the CPU even if a GPU is available.
        options: fields of [`EmbeddingOptions`].

    Raises:
        InputError: if an option is out of range, or the folder holds vectors of another corpus or other encoders, or
            is an input.
    """
    settings = EmbeddingOptions(**options)
    _check_sizes(shard_turns=shard_turns)
    check_output_folder(folder, [corpus if isinstance(corpus, str | Path) else None])
    corpus, folder, fold_encoders = load_dialogues(corpus), Path(folder), fold_encoders or {}
    if not encoders or set(encoders) - set(MODALITIES):
        raise InputError(f"encoders must name one or more of {', '.join(MODALITIES)}, got {list(encoders)}")
    if set(fold_encoders) - set(encoders):
        raise InputError(f"fold_encoders name {list(fold_encoders)}, but encoders only {list(encoders)}")
    state = processes(use_cpu)
    record = {
        "corpus": {split: corpus_fingerprint(data) for split, data in corpus.items()},
        "encoders": {modality: encoder.fingerprint() for modality, (encoder, _) in sorted(encoders.items())},
        "processor settings": {
            modality: processor.own_settings for modality, (_, processor) in sorted(encoders.items())
        },
        **settings.policies(encoders),
        "dtype": str(settings.dtype_on(state.device)),
        "shard_turns": shard_turns,
        "fold encoders": {
            modality: [encoder.fingerprint() for encoder in folds] for modality, folds in sorted(fold_encoders.items())
        },
    }
    with own_folder(folder):
        with state.main_process_first():
            claim(folder, record, state.is_main_process)
        _write_missing(corpus, encoders, fold_encoders, folder, shards_of(corpus, shard_turns), settings)
    return folder


def embed_turns(
    encoder: UtteranceEncoder,
    processor: MisterEProcessor,
    utterances: Utterances,
    options: EmbeddingOptions | None = None,
    bar: progress.Bar | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Vectors of a split's turns.

    Returns:
        embeddings (N, D) in float32, 0 where the turn lacks the modality, and presence (N,).
    """
    options = options or EmbeddingOptions()
    turns: Sequence[Any] = utterances.lengths.tolist()
    if processor.kind.unit == "token":
        turns = [utterances[item]["turn"] for item in range(len(utterances))]
    sizes = processor.sizes(turns)
    device = next(encoder.parameters()).device
    largest = _LARGEST_BATCH if device.type == "cpu" else _LARGEST_BATCH_OF_ACCELERATORS
    batches = list(packed_batches(sizes, options.budget(processor.kind.unit), largest))
    embeddings = torch.zeros(utterances.num_turns, encoder.config.embedding_dim)
    present = torch.zeros(utterances.num_turns, dtype=torch.bool)
    dtype = options.dtype_on(device)
    was_training = encoder.training
    encoder.eval()
    running: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the batch that the device may still be at

    def keep():
        for given, vectors in running:
            embeddings[given] = vectors.cpu()
            present[given] = True
        running.clear()

    with (
        torch.inference_mode(),
        few_threads(encoder, device, width_and_states(encoder.config)[0]),
        contextlib.closing(_prepared(utterances, batches, processor, options.num_workers)) as prepared,
    ):
        for indices, batch in prepared:
            if batch is not None:
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    vectors = encoder(**batch).embeddings.float()
                keep()  # the batch before this one, now that the device has more to do
                running.append((indices["given"], vectors))
            if bar is not None:
                bar.update(indices["count"])
        keep()
    encoder.train(was_training)
    return embeddings, present


def _prepared(
    utterances: Utterances, batches: list[list[int]], processor: MisterEProcessor, num_workers: int
) -> Generator[tuple[dict[str, Any], dict[str, torch.Tensor] | None], None, None]:
    """What [`_Preparation`] makes of each batch, ahead of the model."""
    prepare = _Preparation(processor)
    if not num_workers:
        yield from made_ahead(lambda batch: prepare([utterances[item] for item in batch]), batches)
        return
    found = torch.utils.data.DataLoader(
        _Batches(utterances, batches, prepare),
        batch_size=None,
        num_workers=num_workers,
        # Batches of pictures are large; two for each worker keep the model busy.
        prefetch_factor=2 if processor.kind.unit == "frame" else 4,
    )
    for batch in found:
        if isinstance(batch, InputError):
            raise batch
        yield batch


class _Batches(torch.utils.data.Dataset):
    """
    What workers make of each batch. An error that the user can correct is returned: torch would raise it with the
    traceback of the worker as its message.
    """

    def __init__(self, utterances: Utterances, batches: list[list[int]], prepare: "_Preparation"):
        self.utterances, self.batches, self.prepare = utterances, batches, prepare

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int):
        try:
            return self.prepare([self.utterances[item] for item in self.batches[number]])
        except InputError as error:
            return type(error)(str(error))  # without a cause, which another process may not be able to read


def _move(encoder: UtteranceEncoder, device: torch.device):
    encoder.to(device)  # type: ignore[arg-type]  # transformers wraps `to` in a function without its signature


def _check_sizes(**sizes: float):
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise InputError(f"{name} must be a positive number, got {size}")


class _Preparation:
    """Run by a worker: items -> their indices and the encoder's input, None if no item could be used."""

    def __init__(self, processor: MisterEProcessor):
        self.processor = processor

    def __call__(self, items: list[dict[str, Any]]):
        given = [item for item in items if item["turn"] is not None]
        batch = dict(self.processor([item["turn"] for item in given])) if given else None
        return {"given": torch.tensor([item["index"] for item in given], dtype=torch.long), "count": len(items)}, batch


def _write_missing(
    corpus: datasets.DatasetDict,
    encoders: Mapping[str, Encoder],
    fold_encoders: Mapping[str, Sequence[UtteranceEncoder]],
    folder: Path,
    shards: list[Shard],
    options: EmbeddingOptions,
):
    """Write the shards that are missing from the folder, as far as it is this process's turn."""
    state = PartialState()
    missing = [shard for shard in shards if not shard.is_whole(folder)]
    if len(missing) < len(shards):
        some = f"{len(shards) - len(missing)} of {len(shards)} shards " if missing else ""
        report(f"vectors: {some}embedded earlier ({folder})")
    waiting = missing[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # until all have listed the shards: one written now would shift the turns of the others
    alignments: dict[str, list[Alignment]] = {}
    if any(shard.split == "train" for shard in waiting):
        for modality in fold_encoders:
            report(f"vectors: aligning the cross-fitted encoders of {modality}")
        alignments = {
            modality: _alignments(corpus["train"], encoders[modality], folds, options)
            for modality, folds in fold_encoders.items()
        }
    total = sum(shard.num_turns for shard in waiting) * len(encoders)
    title = f"embedding {', '.join(encoders)}"
    unreadable = dict.fromkeys(encoders, 0)
    with progress.bar(title, total, "turns", shown=state.is_main_process and bool(waiting)) as bar:
        for shard in waiting:
            members = {}
            for modality, pair in encoders.items():
                members[modality] = [_ShardEncoder(*pair, np.ones(shard.end - shard.begin, dtype=bool))]
                if shard.split == "train" and modality in fold_encoders:
                    folds = fold_encoders[modality]
                    fold = cross_fitting_folds(len(corpus["train"]), len(folds))[shard.begin : shard.end]
                    members[modality] = [
                        _ShardEncoder(other, pair[1], fold == number, alignments[modality][number])
                        for number, other in enumerate(folds)
                    ]
            for modality, lost in _write_shard(shard, folder, shard.dialogues(corpus), members, options, bar).items():
                unreadable[modality] += lost
    state.wait_for_everyone()
    if missing:
        report(f"vectors: {sum(shard.num_turns for shard in missing):,} turns embedded")
    for modality in encoders:
        lost = sum(counts[modality] for counts in gather_object([unreadable]))
        if lost:
            report(
                f"vectors: {lost:,} turns have {MODALITIES[modality].noun} that cannot be read, and no vector of it"
            )


def _write_shard(
    shard: Shard,
    folder: Path,
    data: datasets.Dataset,
    members: Mapping[str, list[_ShardEncoder]],
    options: EmbeddingOptions,
    bar: progress.Bar,
) -> dict[str, int]:
    """Embed the turns of a shard and write its files; by modality, how many turns could not be read."""
    features, presence, unreadable = {}, {}, {}
    num_turns = int(turns_of_dialogues(data).sum())
    for modality, parts in members.items():
        features[modality] = whole = torch.zeros(num_turns, parts[0].encoder.config.embedding_dim)
        presence[modality] = there = torch.zeros(num_turns, dtype=torch.bool)
        embedded = 0
        for part in parts:
            vectors, present, count = part.embed(data, options, bar)
            if len(parts) > 1:
                _move(part.encoder, torch.device("cpu"))  # the device has room for one of them, but not for all
            whole[present] = vectors[present]
            there |= present
            embedded += count
        bar.update(num_turns - embedded)
        unreadable[modality] = embedded - int(there.sum())
    shard.write(folder, data, features, presence)
    return unreadable


def _alignments(
    data: datasets.Dataset, pair: Encoder, folds: Sequence[UtteranceEncoder], options: EmbeddingOptions
) -> list[Alignment]:
    """
    The rotation from the space of each fold's encoder into that of the encoder trained on all folds, computed from
    some dialogues that both were trained on.
    """
    encoder, processor = pair
    fold = cross_fitting_folds(len(data), len(folds))
    chosen = np.arange(len(data)) % max(1, round(int(turns_of_dialogues(data).sum()) / _ALIGNMENT_TURNS)) == 0
    target, _, _ = _ShardEncoder(encoder, processor, chosen).embed(data, options)
    found = []
    for number, other in enumerate(folds):
        vectors, present, _ = _ShardEncoder(other, processor, chosen & (fold != number)).embed(data, options)
        _move(other, torch.device("cpu"))
        found.append(align(vectors[present], target[present]))
    return found
