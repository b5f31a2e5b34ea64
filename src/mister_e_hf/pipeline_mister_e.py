"""A raw dialogue in, its emotions out: `pipeline("conversation-emotion-recognition", model=...)`.

Letters: B dialogues, T turns, N turns of all dialogues of a batch, D embedding width, C classes, E experts.
"""

import difflib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, logging
from transformers.utils import cached_file

from .audio import SAMPLING_RATE, AudioError, load_audio
from .errors import InputError
from .modeling_utterance_encoder import UtteranceEncoder
from .processing_mister_e import MisterEProcessor, packed_batches
from .subtitles import read_subtitles
from .turns import DialogueCache

logger = logging.get_logger(__name__)

MODALITIES = ("speech", "text")
_CONTENTS = {"speech": "sound", "text": "words"}

_FIELDS = ("audio", "sampling_rate", "start", "end", "text", "speech_embedding", "text_embedding")
_OTHER_FIELDS = (
    "utterance_id",
    "speaker",
    "emotion",
    "sentiment",
    "duration",
)  # of a corpus's rows: read by nobody here
_WINDOW = 64  # turns whose sound is in memory at once
_TOKENS, _SECONDS = 8192, 120.0  # of one batch of an encoder, padding included
_RECOGNISED_AT_ONCE = 30.0  # seconds; what is longer, a recogniser of Whisper's kind takes with timestamps alone


@dataclass
class Turn:
    """One turn as it was given. `name` says where it stands, for messages."""

    name: str
    audio: Any = None
    sampling_rate: int | None = None
    start: float | None = None
    end: float | None = None
    text: str | None = None
    speech_embedding: Any = None
    text_embedding: Any = None
    transcribed: bool = False


class ConversationEmotionPipeline(Pipeline):
    r"""
    Emotions of the turns of dialogues, from sound, words or both.

    A dialogue is a list of turns, `{"utterances": turns}` as a row of a corpus, or one recording, `{"audio": ..., "segments": ...}`. A turn is a
    dictionary with

    - `audio`: a file's path or content, an array (S,) or (channels, S) with `sampling_rate`, or a dictionary as `datasets` gives it; of any format
      and rate. `start` and `end`, in seconds, take a stretch of it.
    - `text`: the words.
    - `speech_embedding`, `text_embedding`: vectors (D,) in their place, which need no encoder.

    What a turn lacks, or is None, is a missing modality. `segments` are the path of an SRT or WebVTT file, or a list of `(start, end)`,
    `(start, end, text)` or turns with `start` and `end`.

    Args:
        model ([`MisterEModel`]): stage 2. The encoders lie beside it, in `speech_encoder/` and `text_encoder/`, and are loaded when they are needed.
        encoders (`dict`, *optional*): by modality, another encoder and its processor.
        transcriber (`str` or `Pipeline`, *optional*): a recognition model or pipeline; turns with sound and without text get their words from it.
        bad_audio (`str`, defaults to `"error"`): `"missing"` lets turns go without sound that cannot be used, with a warning.
        top_k (`int`, *optional*): how many of `scores` to give, highest first.

    Returns:
        per dialogue a list, with a dictionary per turn in the order given: `label` and its probability `score`; `scores`, the probabilities of the classes, highest
        first; `experts`, the same by each expert alone; `gate`, the weight of each expert, exactly 0 where its modality is absent; `text`, where it
        was transcribed.

    Raises:
        ValueError: naming dialogue and turn, for what is no dialogue, for sound that cannot be used, and if the model has no encoder for what was given.
    """

    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_processor = False

    def __init__(
        self,
        model,
        *args,
        encoders: Mapping[str, tuple[UtteranceEncoder, MisterEProcessor]] | None = None,
        transcriber: "str | Pipeline | None" = None,
        **kwargs,
    ):
        if unknown := set(encoders or {}) - set(MODALITIES):
            raise InputError(f"encoders must name speech, text or both, got {sorted(unknown)}")
        if not hasattr(model.config, "experts"):
            raise InputError(f"The pipeline runs MiSTER-E; this model is of type '{model.config.model_type}'")
        super().__init__(model, *args, **kwargs)
        self._encoders = dict(encoders or {})
        for modality, pair in self._encoders.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InputError(f"encoders['{modality}'] must be (encoder, processor), got {type(pair).__name__}")
            self._check_encoder(modality, *pair, f"encoders['{modality}']")
        self._transcriber = transcriber
        self.model.eval()

    def _sanitize_parameters(self, bad_audio: str | None = None, top_k: int | None = None, **unknown):
        if unknown:
            raise TypeError(
                f"unknown argument '{next(iter(unknown))}'; known are bad_audio, top_k and batch_size, and where the pipeline is made encoders and "
                "transcriber"
            )
        if bad_audio not in (None, "error", "missing"):
            raise InputError(f"bad_audio must be 'error' or 'missing', got {bad_audio!r}")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k must be a positive number, got {top_k!r}")
        forward = {} if bad_audio is None else {"bad_audio": bad_audio}
        return {}, forward, {} if top_k is None else {"top_k": top_k}

    def __call__(self, inputs, **kwargs):
        """One dialogue -> its list; a list of dialogues -> a list of lists; a dataset or any other iterable of dialogues -> an iterator."""
        if _is_dialogue(inputs):
            return super().__call__([inputs], **kwargs)[0]
        if isinstance(inputs, str | bytes | np.ndarray | torch.Tensor) or not _is_iterable(inputs):
            raise InputError(
                f"Expected a dialogue (a list of turns, each a dictionary) or many, got {type(inputs).__name__}. One "
                'recording: {"audio": path, "segments": [(start, end), ...]}'
            )
        if isinstance(inputs, tuple | list):
            if not inputs:
                raise InputError("No dialogues given, or one without turns")
            return super().__call__(list(inputs), **kwargs)
        return super().__call__((dialogue for dialogue in inputs), **kwargs)

    def stream(self, **kwargs) -> "EmotionStream":
        """One dialogue turn by turn, with a causal model: see [`EmotionStream`]."""
        return EmotionStream(self, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """The model's folder, with the encoders that it has."""
        super().save_pretrained(save_directory, **kwargs)
        for modality in filter(self._hears, MODALITIES):
            if modality in self._encoders or self._stored_encoder(modality)[2]:
                for part in self._encoder(modality):
                    part.save_pretrained(os.path.join(save_directory, f"{modality}_encoder"))

    # What Pipeline asks for

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1 dialogue, got {batch_size}")
        numbered = enumerate(inputs)
        while batch := list(itertools.islice(numbered, batch_size)):
            dialogues = [self.preprocess(dialogue, number, **preprocess_params) for number, dialogue in batch]
            for output in self.forward(dialogues, **forward_params):
                yield self.postprocess(output, **postprocess_params)

    def preprocess(self, inputs, number: int = 0) -> list[Turn]:
        return _turns(inputs, f"dialogue {number}")

    def forward(self, model_inputs: list[list[Turn]], **forward_params) -> list[dict[str, Any]]:
        with self.device_placement(), torch.inference_mode():
            return self._forward(model_inputs, **forward_params)

    def _forward(
        self, dialogues: list[list[Turn]], bad_audio: str = "error", past: DialogueCache | None = None
    ) -> list[dict[str, Any]]:
        if past is None:  # of a stream, a later turn may bring what the model takes
            self._check_given(dialogues)
        turns = [turn for dialogue in dialogues for turn in dialogue]
        vectors, present = self._embed(turns, bad_audio)
        lengths = torch.tensor([len(dialogue) for dialogue in dialogues])
        real = torch.arange(int(lengths.max())) < lengths[:, None]

        def padded(rows: torch.Tensor) -> torch.Tensor:
            whole = rows.new_zeros(*real.shape, *rows.shape[1:])
            whole[real] = rows
            return whole.to(self.device)

        given = {f"{name}_embeddings": padded(rows) for name, rows in vectors.items()}
        masks = {f"{name}_mask": padded(rows) for name, rows in present.items()}
        output = self.model(**given, **masks, attention_mask=real.to(self.device), **({"past": past} if past else {}))
        found = {name: output[name].double().cpu() for name in ("logits", "expert_logits", "gate_weights")}
        return [
            {"turns": dialogue} | {name: rows[number, : len(dialogue)] for name, rows in found.items()}
            for number, dialogue in enumerate(dialogues)
        ]

    def postprocess(self, model_outputs: dict[str, Any], top_k: int | None = None) -> list[dict[str, Any]]:
        labels, experts = self.model.config.id2label, self.model.config.experts
        probabilities = (model_outputs["logits"] / self.model.config.calibration_temperature).softmax(-1)
        by_expert = model_outputs["expert_logits"].softmax(-1)

        def scores(row: torch.Tensor, most: int | None = None) -> dict[str, float]:
            order = row.argsort(descending=True, stable=True)[:most]
            return {labels[int(index)]: float(row[index]) for index in order}

        found = []
        for number, turn in enumerate(model_outputs["turns"]):
            ranked = scores(probabilities[number], top_k)
            label = next(iter(ranked))
            one = {"label": label, "score": ranked[label], "scores": ranked}
            one["experts"] = {name: scores(by_expert[number, place]) for place, name in enumerate(experts)}
            weights = model_outputs["gate_weights"][number].tolist()
            one["gate"] = dict(zip(experts, weights, strict=True))
            if turn.transcribed:
                one["text"] = turn.text
            found.append(one)
        return found

    # Vectors

    def _embed(self, turns: list[Turn], bad_audio: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Vectors (N, D) of each modality, 0 where a turn lacks it, and presence (N,)."""
        config = self.model.config
        vectors, present = {}, {}
        for modality in MODALITIES:
            width = getattr(config, f"{modality}_embedding_dim")
            vectors[modality], present[modality] = torch.zeros(len(turns), width), torch.zeros(len(turns), dtype=bool)
            for number, turn in enumerate(turns):
                given = getattr(turn, f"{modality}_embedding")
                if given is not None:
                    vectors[modality][number] = _vector(given, width, f"{turn.name}: {modality}_embedding")
                    present[modality][number] = True
        heard = self._hears("speech")
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
                self._encode("speech", found, vectors, present)
        if self._hears("text"):
            words = [(number, turn.text) for number, turn in enumerate(turns) if turn.text is not None]
            self._encode("text", [pair for pair in words if not present["text"][pair[0]]], vectors, present)
        return vectors, present

    def _check_given(self, dialogues: list[list[Turn]]):
        heard = {modality for modality in MODALITIES if self._hears(modality)}
        for dialogue in dialogues:
            if not any(heard & self._given(turn) for turn in dialogue):
                name = dialogue[0].name.partition(",")[0]
                raise InputError(
                    f"{name}: no turn has {' or '.join(_CONTENTS[modality] for modality in sorted(heard))}, which this model takes"
                )

    def _given(self, turn: Turn) -> set[str]:
        speech = turn.audio is not None or turn.speech_embedding is not None
        text = turn.text is not None or turn.text_embedding is not None or self._lacks_words(turn)
        return {name for name, given in (("speech", speech), ("text", text)) if given}

    def _lacks_words(self, turn: Turn) -> bool:
        """Whether the transcriber is to hear it."""
        return (
            self._transcriber is not None
            and turn.audio is not None
            and turn.text is None
            and turn.text_embedding is None
        )

    def _hears(self, modality: str) -> bool:
        return modality in self.model.config.experts or "fusion" in self.model.config.experts

    def _load(self, turn: Turn, bad_audio: str) -> np.ndarray | None:
        try:
            return load_audio(turn.audio, turn.sampling_rate, turn.start, turn.end)
        except ValueError as error:
            if bad_audio == "missing" and isinstance(error, AudioError):
                logger.warning(f"{turn.name} goes without sound: {error}")
                return None
            raise type(error)(f"{turn.name}: {error}") from error

    def _encode(self, modality: str, numbered: list[tuple[int, Any]], vectors: dict, present: dict):
        if not numbered:
            return
        encoder, processor = self._encoder(modality)
        texts = modality == "text"
        numbers, contents = zip(*numbered, strict=True)
        sizes = processor.sizes(contents if texts else [len(sound) / SAMPLING_RATE for sound in contents])
        for batch in packed_batches(sizes, _TOKENS if texts else _SECONDS, _WINDOW):
            inputs = processor([contents[place] for place in batch])
            output = encoder(**{name: value.to(self.device) for name, value in inputs.items()})
            rows = [numbers[place] for place in batch]
            vectors[modality][rows] = output.embeddings.float().cpu()
            present[modality][rows] = True

    def _encoder(self, modality: str) -> tuple[UtteranceEncoder, MisterEProcessor]:
        if modality not in self._encoders:
            folder, width = f"{modality}_encoder", getattr(self.model.config, f"{modality}_embedding_dim")
            name, hub, found = self._stored_encoder(modality)
            if not found:
                raise InputError(
                    f"The model '{name}' has no {folder}/, so it takes vectors in place of {_CONTENTS[modality]}: give each "
                    f'turn as {{"{modality}_embedding": vector of {width} numbers}}, or encoders={{"{modality}": (encoder, processor)}}'
                )
            pair = UtteranceEncoder.from_pretrained(name, **hub), MisterEProcessor.from_pretrained(name, **hub)
            self._check_encoder(modality, *pair, f"'{name}/{folder}'")
            self._encoders[modality] = pair
        encoder, processor = self._encoders[modality]
        return encoder.to(self.device).eval(), processor

    def _stored_encoder(self, modality: str) -> tuple[str, dict[str, Any], bool]:
        """Where the encoder beside the model lies, and whether there is one."""
        name = self.model.config._name_or_path
        hub = {"subfolder": f"{modality}_encoder", **getattr(self.model, "hub_options", {})}
        found = name and cached_file(name, "config.json", **hub, _raise_exceptions_for_missing_entries=False)
        return name, hub, bool(found)

    def _check_encoder(self, modality: str, encoder: UtteranceEncoder, processor: MisterEProcessor, name: str):
        made, width = encoder.config, getattr(self.model.config, f"{modality}_embedding_dim")
        if (made.modality, processor.modality, made.embedding_dim) != (modality, modality, width):
            raise InputError(
                f"{name} prepares {_CONTENTS[processor.modality]} and makes vectors of {made.modality} of {made.embedding_dim} numbers; the model takes "
                f"vectors of {modality} of {width}: they do not belong together"
            )

    def _transcribe(self, pairs: list[tuple[Turn, np.ndarray]]):
        pairs = [(turn, sound) for turn, sound in pairs if self._lacks_words(turn)]
        if not pairs:
            return
        if isinstance(self._transcriber, str | os.PathLike):
            from transformers import pipeline

            self._transcriber = pipeline("automatic-speech-recognition", str(self._transcriber), device=self.device)
        for long in (False, True):
            some = [(t, s) for t, s in pairs if (len(s) > _RECOGNISED_AT_ONCE * SAMPLING_RATE) == long]
            sounds = [{"raw": sound, "sampling_rate": SAMPLING_RATE} for _, sound in some]
            options = {"return_timestamps": True} if long and self._transcriber.type == "seq2seq_whisper" else {}
            for (turn, _), result in zip(some, self._transcriber(sounds, **options) if sounds else [], strict=True):
                turn.text, turn.transcribed = result["text"].strip() or None, True


class EmotionStream:
    r"""
    One dialogue, turn by turn: each call takes the next turn and gives what the whole dialogue would have given for it. Nothing past is computed
    again: convolutions and recurrence cost the same at every turn, attention grows with the number of turns before.

    Args:
        pipeline: with a causal model.
        bad_audio, top_k: as of the pipeline, by default as it has them.

    Raises:
        ValueError: if the model is not causal.
    """

    def __init__(self, pipeline: ConversationEmotionPipeline, **kwargs):
        if not pipeline.model.config.causal:
            raise InputError(
                "This model hears later turns too (config.causal is false), so a turn's emotion is known at the end of the dialogue "
                "alone: give it whole dialogues, or train with --model.causal true"
            )
        self._pipeline, self._past = pipeline, DialogueCache()
        _, forward, postprocess = pipeline._sanitize_parameters(**kwargs)
        self._forward = pipeline._forward_params | forward
        self._postprocess = pipeline._postprocess_params | postprocess

    @property
    def num_turns(self) -> int:
        """How many turns it has heard."""
        return self._past.num_turns

    def __call__(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        turns = [_turn(turn, f"turn {self.num_turns}")]
        (output,) = self._pipeline.forward([turns], past=self._past, **self._forward)
        return self._pipeline.postprocess(output, **self._postprocess)[0]


def _is_dialogue(inputs: Any) -> bool:
    if isinstance(inputs, Mapping):
        return True
    if isinstance(inputs, list | tuple) and inputs and isinstance(inputs[0], Mapping):
        return not {"segments", "utterances"} & set(inputs[0])
    return False


def _is_iterable(inputs: Any) -> bool:
    try:
        iter(inputs)  # also what is indexed from 0 on, as transformers' own data sets are
    except TypeError:
        return False
    return True


def _turns(inputs: Any, name: str) -> list[Turn]:
    if isinstance(inputs, Mapping) and "utterances" in inputs:
        inputs = inputs["utterances"]
    if isinstance(inputs, Mapping):
        inputs = _stretches(inputs, name)
    if not isinstance(inputs, list | tuple) or not all(isinstance(turn, Mapping) for turn in inputs):
        raise InputError(
            f"{name} must be a list of turns, each a dictionary with audio, text or both; got {inputs!r:.80}"
        )
    if not inputs:
        raise InputError(f"{name} has no turns")
    return [_turn(turn, f"{name}, turn {number}") for number, turn in enumerate(inputs)]


def _stretches(recording: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    if set(recording) - {"audio", "sampling_rate", "segments"} or not {"audio", "segments"} <= set(recording):
        raise InputError(
            f"{name}: a recording is a dictionary with audio, segments and, for an array, sampling_rate; got {sorted(recording)}. One "
            "turn alone is a list of one turn"
        )
    segments = recording["segments"]
    if isinstance(segments, str | os.PathLike):
        try:
            segments = read_subtitles(segments)
        except (OSError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    if not isinstance(segments, Iterable):
        raise InputError(
            f"{name}: segments must be the path of an SRT or WebVTT file, or a list; got {segments!r:.80}"
        )
    # Once for all turns, not once for each.
    whole = {"audio": _sound(recording["audio"], name), "sampling_rate": recording.get("sampling_rate")}
    turns = []
    for number, segment in enumerate(segments):
        if isinstance(segment, list | tuple) and len(segment) in (2, 3):
            segment = dict(zip(("start", "end", "text"), segment, strict=False))
        if not isinstance(segment, Mapping) or not {"start", "end"} <= set(segment):
            raise InputError(
                f"{name}, segment {number} must be (start, end), (start, end, text) or a dictionary of them; got {segment!r}"
            )
        turns.append(whole | dict(segment))
    return turns


def _turn(given: Mapping[str, Any], name: str) -> Turn:
    for field in given:
        if field not in _FIELDS and field not in _OTHER_FIELDS:
            nearest = difflib.get_close_matches(str(field), _FIELDS, n=1)
            raise InputError(
                f"{name} has the unknown field '{field}'"
                + (f"; did you mean '{nearest[0]}'?" if nearest else f"; known are {', '.join(_FIELDS)}")
            )
    turn = Turn(name, **{field: given[field] for field in _FIELDS if field in given})
    if turn.text is not None and not isinstance(turn.text, str):
        raise InputError(f"{name}: text must be a string or None, got {turn.text!r:.80}")
    turn.text = turn.text if turn.text and turn.text.strip() else None
    turn.audio = _sound(turn.audio, name)
    for field in ("sampling_rate", "start", "end"):
        value = getattr(turn, field)
        if value is not None and not isinstance(value, Real):
            raise InputError(f"{name}: {field} must be a number or None, got {value!r:.80}")
    if turn.audio is None and (turn.start is not None or turn.end is not None) and "utterance_id" not in given:
        raise InputError(f"{name} has start or end, but no audio")
    if isinstance(turn.audio, np.ndarray) and turn.sampling_rate is None:
        raise InputError(f"{name}: audio is an array, so it needs sampling_rate, in Hz")
    return turn


def _sound(audio: Any, name: str) -> Any:
    """Lists and tensors as arrays; None where a dictionary of `datasets` is empty."""
    if isinstance(audio, Mapping) and all(audio.get(part) is None for part in ("path", "bytes", "array")):
        return None
    return _array(audio, f"{name}: audio") if isinstance(audio, list | torch.Tensor) else audio


def _array(given: Any, name: str) -> np.ndarray:
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() else given
    try:
        return np.asarray(given)
    except ValueError as error:
        raise InputError(f"{name} is no array: {error}") from error


def _vector(given: Any, width: int, name: str) -> torch.Tensor:
    array = _array(given, name)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} must be a vector of {width} numbers, got {given!r:.80}")
    vector = torch.from_numpy(array.astype(np.float32))
    if vector.shape != (width,):
        raise InputError(f"{name} must have shape ({width},), got {tuple(vector.shape)}")
    if not vector.isfinite().all():
        raise InputError(f"{name} holds NaN or infinity")
    return vector


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
