"""Encode the contents of turns with the encoders of a checkpoint, and transcribe audio with a recognition model.

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
from ..base.modalities import MODALITIES
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.packing import packed_batches
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..media.audio import SAMPLING_RATE, AudioError
from ..media.transcripts import transcript
from ..media.video import VideoError
from .raw_turns import Turn, read_vector
from .stored_stages import check_encoder, has_encoder, load_encoder
from .turn_contents import CONTENTS, TurnContent

logger = logging.get_logger(__name__)

_LARGEST_BATCH = 64  # turns
_BUDGETS = {"token": 8192, "second": 120.0, "frame": 128}  # of one batch of an encoder, padding included
_TRANSCRIBED_AT_ONCE = 30.0  # seconds; Whisper needs timestamps for longer audio
# One lock for all pipelines, so that they can be copied and pickled: each encoder is loaded once, and the transcriber
# is called from one thread at a time.
_LOADING = threading.RLock()
_NO_MEMORY = ("out of memory", "allocate memory", "alloc_cpu", "storage size calculation overflowed")


class TurnEncoders:
    r"""
    The encoders of a stage-2 model, loaded when they are first needed.

    Args:
        model ([`ConversationPreTrainedModel`]): its checkpoint holds the encoders, `speech_encoder/`,
            `text_encoder/` and `visual_encoder/`.
        encoders: by modality, an encoder and its processor to use instead.
        transcriber: name or pipeline of a speech recognition model for turns with audio and without text.

    Attributes:
        on_vectors: called with the number of new vectors.
        only_given: whether the vectors that turns have themselves are all: in a corpus of vectors, a turn without one
            lacks the modality, and its transcript is for a model that reads transcripts.

    Raises:
        InputError: if encoders do not belong to the model.
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
            raise InputError(f"encoders must be a choice of {', '.join(MODALITIES)}, got {sorted(map(str, unknown))}")
        if transcriber is not None and not isinstance(transcriber, str | os.PathLike) and not callable(transcriber):
            raise InputError(
                f"transcriber must be the name or pipeline of a recognition model, got {short(repr(transcriber))}"
            )
        self.model, self.transcriber, self.pairs = model, transcriber, dict(encoders)
        self.on_vectors: Callable[[int], Any] | None = None
        self.only_given = False
        self._reads_words_alone: bool | None = None  # unknown until a turn has text and no vector of it
        for modality, pair in self.pairs.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InputError(f"encoders['{modality}'] must be (encoder, processor), got {type(pair).__name__}")
            self._check(modality, *pair, f"encoders['{modality}']")

    def embed(
        self, turns: list[Turn], bad_audio: str = "error", bad_video: str = "error"
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Vectors (N, D) of each modality that the model reads, 0 where a turn lacks it, and presence (N,)."""
        vectors, present = self._given_vectors(turns)
        if self.only_given:
            return vectors, present
        for modality, content in CONTENTS.items():
            read = modality in vectors and not (modality == "text" and self._takes_words_alone(turns, present["text"]))
            transcribed = {n for n, turn in enumerate(turns) if modality == "speech" and self._lacks_transcript(turn)}
            waiting = [
                number
                for number, turn in enumerate(turns)
                if content.of(turn) is not None and (read and not present[modality][number] or number in transcribed)
            ]
            processor = self.encoder(modality)[1] if waiting and content.prepared else None

            def load(window: Sequence[int], content: TurnContent = content, processor=processor) -> list:
                return [self._load(content, turns[number], processor, bad_audio, bad_video) for number in window]

            for numbers, loaded in _ahead(load, waiting, content.window):
                found = [(number, each) for number, each in zip(numbers, loaded, strict=True) if each is not None]
                if transcribed:
                    self._transcribe([(turns[number], each) for number, each in found])
                if read:
                    found = [(number, each) for number, each in found if not present[modality][number]]
                    self._encode(modality, turns, found, vectors, present)
        return vectors, present

    def _takes_words_alone(self, turns: list[Turn], present: torch.Tensor) -> bool:
        """Whether text is for the model alone, which reads transcripts: nothing makes vectors of it. Said once."""
        if not self.model.config.reads_transcripts:
            return False
        if all(turn.text is None or there for turn, there in zip(turns, present.tolist(), strict=True)):
            return False
        if self._reads_words_alone is None:
            self._reads_words_alone, text = not self.has("text"), MODALITIES["text"]
            if self._reads_words_alone:
                logger.warning(
                    f"The checkpoint has no {text.encoder}/, so the model reads the words of turns with text and "
                    f"without {text.embedding} alone, as where that vector is missing"
                )
        return self._reads_words_alone

    def _given_vectors(self, turns: list[Turn]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The vectors that turns have themselves, of each modality that the model reads, as `embed` returns them."""
        config = self.model.config
        vectors, present = {}, {}
        for name, width in config.widths.items():
            field = MODALITIES[name].embedding
            # Configurations that come from the code of an older checkpoint do not have the field.
            columns = getattr(config, "speech_columns", None) if name == "speech" else None
            read = {
                number: read_vector(turn.vectors[name], width, f"{turn.name}: {field}", columns)
                for number, turn in enumerate(turns)
                if name in turn.vectors
            }
            if name in config.modalities:
                vectors[name] = torch.zeros(len(turns), width)
                present[name] = torch.zeros(len(turns), dtype=torch.bool)
                for number, vector in read.items():
                    vectors[name][number], present[name][number] = vector, True
        return vectors, present

    def check_read(self, turn: Turn):
        r"""
        Raises:
            InputError: if the turn has a video that the model does not read, unless it is a column of a corpus.
        """
        visual, config = MODALITIES["visual"], self.model.config
        has_vector = visual.name in turn.vectors
        if turn.of_corpus or visual.name in config.modalities or (turn.video is None and not has_vector):
            return
        contents = " and ".join(MODALITIES[name].noun for name in config.modalities)
        message = f"{turn.name} has {visual.embedding if has_vector else visual.content}, and {self.model.title} "
        message += f"('{config._name_or_path}') " if config._name_or_path else ""
        message += f"reads {contents} alone"
        try:
            from mister_e_hf.models.registry import models_taking
        except ImportError:  # only the code of a checkpoint is here
            pass
        else:
            message += f"; models that take {visual.noun}: {', '.join(models_taking(visual.name))}"
        if turn.video is not None:
            source = turn.video.get("path") if isinstance(turn.video, Mapping) else turn.video
            shown = repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else "..."
            message += f'. For the audio of the file alone, pass {{"audio": {short(shown, 80)}}}'
        raise InputError(message)

    def given(self, turn: Turn) -> set[str]:
        """The modalities that a turn has, text included if it will be transcribed."""
        found = {name for name, content in CONTENTS.items() if content.of(turn) is not None}
        return found | set(turn.vectors) | ({"text"} if self._lacks_transcript(turn) else set())

    def _lacks_transcript(self, turn: Turn) -> bool:
        """Whether the turn is to be transcribed."""
        return (
            self.transcriber is not None
            and turn.sound is not None
            and turn.text is None
            and "text" not in turn.vectors
        )

    def _load(
        self, content: TurnContent, turn: Turn, processor: MisterEProcessor | None, bad_audio: str, bad_video: str
    ) -> Any:
        try:
            return content.load(turn, processor)
        except (AudioError, VideoError) as error:
            noun, policy = ("audio", bad_audio) if isinstance(error, AudioError) else ("video", bad_video)
            if policy == "error":
                way_out = f"Repair it, or pass bad_{noun}='missing' to use such turns without {noun}."
                raise type(error)(f"{turn.name}: {str(error).removesuffix('.')}. {way_out}") from error
            logger.warning(f"{turn.name} is used without {noun}: {error}")
            return None
        except InputError as error:
            raise type(error)(f"{turn.name}: {error}") from error
        except OSError as error:
            raise OSError(f"{turn.name}: {error}") from error
        except Exception as error:  # from a library, MemoryError included
            raise InputError(
                f"{turn.name}: {content.noun} cannot be read: {type(error).__name__}: {short(error)}"
            ) from error

    def _encode(self, modality: str, turns: list[Turn], numbered: list[tuple[int, Any]], vectors: dict, present: dict):
        if not numbered:
            return
        (encoder, processor), content, noun = self.encoder(modality), CONTENTS[modality], MODALITIES[modality].content
        numbers, contents = zip(*numbered, strict=True)
        sizes = content.sizes(processor, contents)
        for batch in packed_batches(sizes, _BUDGETS[processor.kind.unit], _LARGEST_BATCH):
            rows = [numbers[place] for place in batch]
            largest = turns[numbers[max(batch, key=sizes.__getitem__)]].name
            with explain_out_of_memory(f"{largest}: the encoder of its {noun}", "split the turn into shorter ones"):
                inputs = content.inputs(processor, [contents[place] for place in batch])
                output = encoder(**{name: value.to(self.model.device) for name, value in inputs.items()})
                found = output.embeddings.float().cpu()
            for row, vector in zip(rows, found, strict=True):
                if not vector.isfinite().all():
                    raise InputError(
                        f"{turns[row].name}: the encoder computes NaN or infinity for its {noun}. If its content is "
                        "normal, the encoder's weights are damaged (mister-e doctor)"
                    )
            vectors[modality][rows] = found
            present[modality][rows] = True
            if self.on_vectors is not None:
                self.on_vectors(len(rows))

    def has(self, modality: str) -> bool:
        """Whether an encoder is loaded or stored in the checkpoint."""
        return modality in self.pairs or self._stored(modality)[2]

    def encoder(self, modality: str) -> tuple[UtteranceEncoder, MisterEProcessor]:
        r"""
        An encoder and its processor, on the model's device.

        Raises:
            InputError: if the checkpoint has none, or it does not belong to the model.
            OSError: naming its file that is damaged.
        """
        with _LOADING:
            if modality not in self.pairs:
                self.pairs[modality] = self._loaded(modality)
            encoder, processor = self.pairs[modality]
            encoder.to(device=self.model.device)  # type: ignore[call-arg]  # transformers' decorator hides self
            return encoder.eval(), processor

    def _loaded(self, modality: str) -> tuple[UtteranceEncoder, MisterEProcessor]:
        of, (name, hub, found) = MODALITIES[modality], self._stored(modality)
        width = self.model.config.widths[modality]
        if not found:
            raise InputError(
                f"The model '{name}' has no {of.encoder}/, so it takes vectors instead of {of.content}: pass each "
                "turn as "
                f'{{"{of.embedding}": vector of {width} numbers}}, or encoders={{"{modality}": (encoder, processor)}}'
            )
        return load_encoder(name, modality, width, **hub)

    def _stored(self, modality: str) -> tuple[str, dict[str, Any], bool]:
        """Checkpoint and Hub options of a stored encoder, and whether it exists."""
        name, hub = self.model.config._name_or_path, getattr(self.model, "hub_options", {})
        return name, hub, bool(name) and has_encoder(name, modality, **hub)

    def _check(self, modality: str, encoder: UtteranceEncoder, processor: MisterEProcessor, name: str):
        # By their attributes: their classes may come from the code of a checkpoint.
        if not hasattr(getattr(encoder, "config", None), "embedding_dim") or not hasattr(processor, "modality"):
            given = f"({type(encoder).__name__}, {type(processor).__name__})"
            raise InputError(f"{name} must be (UtteranceEncoder, MisterEProcessor), got {given}")
        widths = self.model.config.widths
        if modality not in widths:
            raise InputError(f"{name} is given, and the model takes vectors of {' and '.join(widths)} alone")
        check_encoder(encoder, processor, modality, widths[modality], name)

    def _transcribe(self, pairs: list[tuple[Turn, np.ndarray]]):
        pairs = [(turn, samples) for turn, samples in pairs if self._lacks_transcript(turn)]
        if not pairs:
            return
        with _LOADING:
            transcriber = self._loaded_transcriber()
            for long in (False, True):
                chosen = [(t, s) for t, s in pairs if (len(s) > _TRANSCRIBED_AT_ONCE * SAMPLING_RATE) == long]
                inputs = [{"raw": samples, "sampling_rate": SAMPLING_RATE} for _, samples in chosen]
                options = {"return_timestamps": True} if long and transcriber.type == "seq2seq_whisper" else {}
                for (turn, _), result in zip(chosen, transcriber(inputs, **options) if inputs else [], strict=True):
                    turn.text, turn.transcribed = transcript(result["text"].strip(), turn.name), True

    def _loaded_transcriber(self) -> Any:
        if isinstance(self.transcriber, str | os.PathLike):
            from transformers import pipeline

            task, name = "automatic-speech-recognition", str(self.transcriber)
            try:
                options: dict[str, Any] = {"device": self.model.device, "trust_remote_code": False}
                self.transcriber = pipeline(task, name, **options)  # type: ignore[call-overload]  # untyped options
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"The transcriber '{name}' could not be loaded: {short(error)}") from error
        return self.transcriber


@contextlib.contextmanager
def explain_out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn a failed allocation into an error that names `what` needs the memory and a `remedy`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error).lower()
        if isinstance(error, MemoryError) or any(words in message for words in _NO_MEMORY):
            raise InputError(f"{what} needs more memory than is available; {remedy} ({short(error, 120)})") from error
        raise


def _ahead(
    load: Callable[[Sequence[int]], list], numbers: list[int], window: int | None
) -> Iterator[tuple[Sequence[int], list]]:
    """Yield windows of the numbers with what they load; the next window is loaded while the current one is used."""
    step = window or max(1, len(numbers))
    windows = [numbers[start : start + step] for start in range(0, len(numbers), step)]
    if len(windows) < 2:
        yield from ((each, load(each)) for each in windows)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = thread.submit(load, windows[0])
        for each, following in itertools.zip_longest(windows, windows[1:]):
            loaded = waiting.result()
            if following is not None:
                waiting = thread.submit(load, following)
            yield each, loaded
