"""Audio and text of turns -> vectors, with the encoders beside a model; and text from audio, with a recognition model.

Letters: N turns, D embedding width.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, logging

from ..base.errors import InputError, short
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.packing import packed_batches
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..media.audio import SAMPLING_RATE, AudioError, load_audio
from ..media.transcripts import transcript
from .raw_turns import Turn, read_vector
from .stored_stages import check_encoder, has_encoder, load_encoder

logger = logging.get_logger(__name__)

MODALITIES = ("speech", "text")
FIELDS = {"speech": "audio", "text": "text"}

_WINDOW = 64  # turns whose audio is in memory at once
_TOKENS, _SECONDS = 8192, 120.0  # of one batch of an encoder, padding included
_RECOGNISED_AT_ONCE = 30.0  # seconds; what is longer, a recogniser of Whisper's kind takes with timestamps alone
# One for all, so that what holds it can be copied and pickled: what is loaded at the first use is loaded once, and a
# recogniser hears one thread at a time.
_LOADING = threading.RLock()
_NO_MEMORY = ("out of memory", "allocate memory", "alloc_cpu", "storage size calculation overflowed")


class TurnEncoders:
    r"""
    The encoders of a stage-2 model, loaded when they are needed.

    Args:
        model ([`MisterEModel`]): they lie beside it, in `speech_encoder/` and `text_encoder/`.
        encoders: by modality, another encoder and its processor.
        transcriber: a recognition model's name or pipeline; turns with audio and without text get their text from it.

    Raises:
        InputError: for encoders that do not belong to the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoders: Mapping[str, tuple[UtteranceEncoder, MisterEProcessor]] | None = None,
        transcriber: Any = None,
    ):
        encoders = {} if encoders is None else encoders
        if not isinstance(encoders, Mapping):
            raise InputError(f"encoders must be a dictionary by modality, got {type(encoders).__name__}")
        if unknown := set(encoders) - set(MODALITIES):
            raise InputError(f"encoders must name speech, text or both, got {sorted(map(str, unknown))}")
        if transcriber is not None and not isinstance(transcriber, str | os.PathLike) and not callable(transcriber):
            raise InputError(
                f"transcriber must be a recognition model's name or pipeline, got {short(repr(transcriber))}"
            )
        self.model, self.transcriber, self.pairs = model, transcriber, dict(encoders)
        self.on_vectors: Callable[[int], Any] | None = None  # called with how many were made, as they are
        for modality, pair in self.pairs.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InputError(f"encoders['{modality}'] must be (encoder, processor), got {type(pair).__name__}")
            self._check(modality, *pair, f"encoders['{modality}']")

    def embed(self, turns: list[Turn], bad_audio: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Vectors (N, D) of each modality, 0 where a turn lacks it, and presence (N,)."""
        config = self.model.config
        vectors, present = {}, {}
        for modality in MODALITIES:
            width = getattr(config, f"{modality}_embedding_dim")
            vectors[modality], present[modality] = torch.zeros(len(turns), width), torch.zeros(len(turns), dtype=bool)
            for number, turn in enumerate(turns):
                given = getattr(turn, f"{modality}_embedding")
                if given is not None:
                    vectors[modality][number] = read_vector(given, width, f"{turn.name}: {modality}_embedding")
                    present[modality][number] = True
        heard = self.hears("speech")
        waiting = [
            number
            for number, turn in enumerate(turns)
            if turn.audio is not None and (heard and not present["speech"][number] or self._lacks_words(turn))
        ]
        for numbers, sounds in _ahead(lambda some: [self._load(turns[n], bad_audio) for n in some], waiting):
            found = [(number, sound) for number, sound in zip(numbers, sounds, strict=True) if sound is not None]
            self._transcribe([(turns[number], sound) for number, sound in found])
            if heard:
                found = [(number, sound) for number, sound in found if not present["speech"][number]]
                self._encode("speech", turns, found, vectors, present)
        if self.hears("text"):
            words = [(number, turn.text) for number, turn in enumerate(turns) if turn.text is not None]
            self._encode("text", turns, [pair for pair in words if not present["text"][pair[0]]], vectors, present)
        return vectors, present

    def given(self, turn: Turn) -> set[str]:
        """The modalities that a turn has, its text once it is transcribed."""
        speech = turn.audio is not None or turn.speech_embedding is not None
        text = turn.text is not None or turn.text_embedding is not None or self._lacks_words(turn)
        return {name for name, given in (("speech", speech), ("text", text)) if given}

    def _lacks_words(self, turn: Turn) -> bool:
        """Whether the transcriber is to hear it."""
        return (
            self.transcriber is not None
            and turn.audio is not None
            and turn.text is None
            and turn.text_embedding is None
        )

    def hears(self, modality: str) -> bool:
        """Whether the model takes it."""
        return modality in self.model.config.experts or "fusion" in self.model.config.experts

    def _load(self, turn: Turn, bad_audio: str) -> np.ndarray | None:
        try:
            return load_audio(turn.audio, turn.sampling_rate, turn.start, turn.end)
        except AudioError as error:
            if bad_audio == "error":
                raise AudioError(f"{turn.name}: {error}") from error
            logger.warning(f"{turn.name} goes without audio: {error}")
            return None
        except InputError as error:
            raise type(error)(f"{turn.name}: {error}") from error
        except OSError as error:
            raise OSError(f"{turn.name}: {error}") from error
        except Exception as error:  # of a library, MemoryError included
            raise InputError(f"{turn.name}: audio cannot be read: {type(error).__name__}: {short(error)}") from error

    def _encode(self, modality: str, turns: list[Turn], numbered: list[tuple[int, Any]], vectors: dict, present: dict):
        if not numbered:
            return
        encoder, processor = self.encoder(modality)
        texts = modality == "text"
        numbers, contents = zip(*numbered, strict=True)
        sizes = processor.sizes(contents if texts else [len(sound) / SAMPLING_RATE for sound in contents])
        for batch in packed_batches(sizes, _TOKENS if texts else _SECONDS, _WINDOW):
            rows = [numbers[place] for place in batch]
            largest = turns[numbers[max(batch, key=sizes.__getitem__)]].name
            with enough_memory(f"{largest}: the encoder of its {FIELDS[modality]}", "cut the turn into shorter ones"):
                inputs = processor([contents[place] for place in batch])
                output = encoder(**{name: value.to(self.model.device) for name, value in inputs.items()})
                found = output.embeddings.float().cpu()
            for row, vector in zip(rows, found, strict=True):
                if not vector.isfinite().all():
                    raise InputError(
                        f"{turns[row].name}: the encoder makes NaN or infinity of its {FIELDS[modality]}. If that is as usual, the encoder's weights "
                        "are damaged (mister-e doctor)"
                    )
            vectors[modality][rows] = found
            present[modality][rows] = True
            if self.on_vectors is not None:
                self.on_vectors(len(rows))

    def has(self, modality: str) -> bool:
        """Whether there is an encoder, loaded or beside the model."""
        return modality in self.pairs or self._stored(modality)[2]

    def encoder(self, modality: str) -> tuple[UtteranceEncoder, MisterEProcessor]:
        r"""
        An encoder and its processor, on the model's device.

        Raises:
            InputError: if there is none, with what to give in its place; if it does not belong to the model.
            OSError: naming the file of it that is damaged.
        """
        with _LOADING:
            if modality not in self.pairs:
                self.pairs[modality] = self._loaded(modality)
            encoder, processor = self.pairs[modality]
            return encoder.to(self.model.device).eval(), processor

    def _loaded(self, modality: str) -> tuple[UtteranceEncoder, MisterEProcessor]:
        folder, width = f"{modality}_encoder", getattr(self.model.config, f"{modality}_embedding_dim")
        name, hub, found = self._stored(modality)
        if not found:
            raise InputError(
                f"The model '{name}' has no {folder}/, so it takes vectors in place of {FIELDS[modality]}: give each "
                f'turn as {{"{modality}_embedding": vector of {width} numbers}}, or encoders={{"{modality}": (encoder, processor)}}'
            )
        return load_encoder(name, modality, width, **hub)

    def _stored(self, modality: str) -> tuple[str, dict[str, Any], bool]:
        """Where the encoder beside the model lies, and whether there is one."""
        name, hub = self.model.config._name_or_path, getattr(self.model, "hub_options", {})
        return name, hub, bool(name) and has_encoder(name, modality, **hub)

    def _check(self, modality: str, encoder: UtteranceEncoder, processor: MisterEProcessor, name: str):
        # By what they have, for their classes are others where they come with the checkpoint's own code.
        if not hasattr(getattr(encoder, "config", None), "embedding_dim") or not hasattr(processor, "modality"):
            given = f"({type(encoder).__name__}, {type(processor).__name__})"
            raise InputError(f"{name} must be (UtteranceEncoder, MisterEProcessor), got {given}")
        check_encoder(encoder, processor, modality, getattr(self.model.config, f"{modality}_embedding_dim"), name)

    def _transcribe(self, pairs: list[tuple[Turn, np.ndarray]]):
        pairs = [(turn, sound) for turn, sound in pairs if self._lacks_words(turn)]
        if not pairs:
            return
        with _LOADING:
            recogniser = self._recogniser()
            for long in (False, True):
                some = [(t, s) for t, s in pairs if (len(s) > _RECOGNISED_AT_ONCE * SAMPLING_RATE) == long]
                sounds = [{"raw": sound, "sampling_rate": SAMPLING_RATE} for _, sound in some]
                options = {"return_timestamps": True} if long and recogniser.type == "seq2seq_whisper" else {}
                for (turn, _), result in zip(some, recogniser(sounds, **options) if sounds else [], strict=True):
                    turn.text, turn.transcribed = transcript(result["text"].strip(), turn.name), True

    def _recogniser(self) -> Any:
        if isinstance(self.transcriber, str | os.PathLike):
            from transformers import pipeline

            task, name = "automatic-speech-recognition", str(self.transcriber)
            try:
                self.transcriber = pipeline(task, name, device=self.model.device, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"The transcriber '{name}' could not be loaded: {short(error)}") from error
        return self.transcriber


@contextlib.contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """
    Around what needs memory by the size of the input: an allocator that fails names `what` needed it, and the
    `remedy`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error).lower()
        if isinstance(error, MemoryError) or any(words in told for words in _NO_MEMORY):
            raise InputError(f"{what} needs more memory than there is; {remedy} ({short(error, 120)})") from error
        raise


def _ahead(load: Callable[[Sequence[int]], list], numbers: list[int]) -> Iterator[tuple[Sequence[int], list]]:
    """Windows of the numbers with what they load, the next one loaded while the last one is worked on."""
    windows = [numbers[start : start + _WINDOW] for start in range(0, len(numbers), _WINDOW)]
    if len(windows) < 2:
        yield from ((window, load(window)) for window in windows)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = thread.submit(load, windows[0])
        for window, following in itertools.zip_longest(windows, windows[1:]):
            loaded = waiting.result()
            if following is not None:
                waiting = thread.submit(load, following)
            yield window, loaded
