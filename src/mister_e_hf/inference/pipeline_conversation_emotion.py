"""A raw dialogue in, its emotions out: `pipeline("conversation-emotion-recognition", model=...)`.

Letters: B dialogues, T turns, N turns of all dialogues of a batch, D embedding width, C classes, E experts.
"""

import itertools
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline

from ..base.errors import InputError
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..models.turns import DialogueCache
from .raw_turns import Turn, check_dialogues, is_dialogue, split_slice
from .raw_turns import read_dialogue as _turns
from .raw_turns import read_turn as _turn
from .turn_vectors import FIELDS, MODALITIES, TurnEncoders, enough_memory


class ConversationEmotionPipeline(Pipeline):
    r"""
    Emotions of the turns of dialogues, from audio, text or both.

    A dialogue is a list of turns, `{"utterances": turns}` as a row of a corpus, or one recording, `{"audio": ...,
    "segments": ...}`. Many are a list of them, a slice of a `datasets.Dataset` of such rows, or anything that yields
    them. A turn is a dictionary with

    - `audio`: a file's path or content, an array (S,) or (channels, S) with `sampling_rate`, or a dictionary as
      `datasets` gives it; of any format and rate. `start` and `end`, in seconds, take a stretch of it.
    - `text`: the transcript.
    - `speech_embedding`, `text_embedding`: vectors (D,) in their place, which need no encoder.

    What a turn lacks, or is None, is a missing modality. `segments` are the path of an SRT or WebVTT file, or a list
    of `(start, end)`, `(start, end, text)` or turns with `start` and `end`.

    Args:
        model ([`MisterEModel`]): stage 2. The encoders lie beside it, in `speech_encoder/` and `text_encoder/`, and
            are loaded when they are needed.
        encoders (`dict`, *optional*): by modality, another encoder and its processor.
        transcriber (`str` or `Pipeline`, *optional*): a recognition model or pipeline; turns with audio and without
            text get their text from it.
        bad_audio (`str`, defaults to `"error"`): `"missing"` lets turns go without audio that cannot be used, with a
            warning.
        top_k (`int`, *optional*): how many of the `scores`, and of those of each expert, to give, highest first.

    Returns:
        per dialogue a list, with a dictionary per turn in the order given: `label` and its probability `score`;
        `scores`, the probabilities of the classes, highest first; `experts`, the same from each expert alone, None
        where its modality is absent; `gate`, the weight of each expert, exactly 0 there; `text`, where it was
        transcribed.

    Raises:
        InputError: a `ValueError` that names dialogue and turn, for what is not a dialogue, for audio that cannot be
            used, if the model has no encoder for what was given, where its numbers overflow, and where a dialogue
            needs more memory than there is.
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
        if not hasattr(model.config, "experts"):
            raise InputError(f"The pipeline runs MiSTER-E; this model is of type '{model.config.model_type}'")
        super().__init__(model, *args, **kwargs)
        self._encoders = TurnEncoders(model, encoders, transcriber)
        self.model.eval()

    def _sanitize_parameters(self, bad_audio: str | None = None, top_k: int | None = None, **unknown):
        if unknown:
            raise TypeError(
                f"unknown argument '{next(iter(unknown))}'; known are bad_audio, top_k and batch_size, and where the pipeline is made encoders and "
                "transcriber"
            )
        if bad_audio not in (None, "error", "missing"):
            raise InputError(f"bad_audio must be 'error' or 'missing', got {bad_audio!r}")
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise InputError(f"top_k must be a positive number, got {top_k!r}")
        forward = {} if bad_audio is None else {"bad_audio": bad_audio}
        return {}, forward, {} if top_k is None else {"top_k": top_k}

    def __call__(self, inputs, **kwargs):
        """
        One dialogue -> its list; a list of dialogues -> a list of lists; a dataset or any other iterable of dialogues
        -> an iterator.
        """
        inputs = split_slice(inputs)
        if is_dialogue(inputs):
            return super().__call__([inputs], **kwargs)[0]
        check_dialogues(inputs)
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
        for modality in filter(self._encoders.hears, MODALITIES):
            if self._encoders.has(modality):
                for part in self._encoders.encoder(modality):
                    part.save_pretrained(os.path.join(save_directory, f"{modality}_encoder"))

    def __repr__(self) -> str:
        config, takes = self.model.config, []
        for modality in filter(self._encoders.hears, MODALITIES):
            folder = os.path.join(config._name_or_path, f"{modality}_encoder")
            if (
                modality in self._encoders.pairs
                or os.path.isdir(folder)
                or not os.path.isdir(config._name_or_path or ".")
            ):
                takes.append(FIELDS[modality])
            takes.append(f"{modality}_embedding of {getattr(config, f'{modality}_embedding_dim')} numbers")
        transcriber = self._encoders.transcriber
        lines = {
            "model": config._name_or_path or type(self.model).__name__,
            "takes": takes,
            "emotions": list(config.id2label.values()),
            "experts": list(config.experts),
            "transcriber": transcriber if isinstance(transcriber, str | None) else type(transcriber).__name__,
            "device": str(self.device),
        }
        return f"{type(self).__name__}(\n" + "".join(f"    {name}={value!r},\n" for name, value in lines.items()) + ")"

    # What Pipeline asks for

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size must be a whole number of dialogues, at least 1, got {batch_size!r:.80}")
        numbered, batch_size = enumerate(inputs), min(batch_size, sys.maxsize)
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
        vectors, present = self._encoders.embed(turns, bad_audio)
        lengths = torch.tensor([len(dialogue) for dialogue in dialogues])
        real = torch.arange(int(lengths.max())) < lengths[:, None]

        def padded(rows: torch.Tensor) -> torch.Tensor:
            whole = rows.new_zeros(*real.shape, *rows.shape[1:])
            whole[real] = rows
            return whole.to(self.device)

        given = {f"{name}_embeddings": padded(rows) for name, rows in vectors.items()}
        masks = {f"{name}_mask": padded(rows) for name, rows in present.items()}
        longest = max(dialogues, key=len)
        with enough_memory(f"{longest[0].dialogue} has {len(longest)} turns, which", "cut it into shorter dialogues"):
            output = self.model(
                **given, **masks, attention_mask=real.to(self.device), **({"past": past} if past else {})
            )
            found = {name: output[name].double().cpu() for name in ("logits", "expert_logits", "gate_weights")}
        rows = torch.zeros(real.shape, dtype=torch.long)
        rows[real] = torch.arange(len(turns))
        outputs = []
        for number, dialogue in enumerate(dialogues):
            one = {name: values[number, : len(dialogue)] for name, values in found.items()}
            own = rows[number, : len(dialogue)]
            self._check_finite(dialogue, one, {name: values[own] for name, values in vectors.items()})
            outputs.append({"turns": dialogue} | one | {name: values[own] for name, values in present.items()})
        return outputs

    def _check_finite(self, dialogue: list[Turn], found: dict[str, torch.Tensor], vectors: dict[str, torch.Tensor]):
        """What overflows on the way has no answer: the error names the turn whose numbers are the largest."""
        temperature = self.model.config.calibration_temperature
        if all(rows.isfinite().all() for rows in (*found.values(), found["logits"] / temperature)):
            return
        name = self.model.config._name_or_path or type(self.model).__name__
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if not tensor.isfinite().all():
                raise InputError(
                    f"The model '{name}' has weights that are NaN or infinite; train or download it again"
                )
        peaks = {modality: rows.abs().amax(-1) for modality, rows in vectors.items()}
        largest = max(peaks, key=lambda modality: float(peaks[modality].max()))
        turn, peak = dialogue[int(peaks[largest].argmax())], float(peaks[largest].max())
        field = f"{largest}_embedding"
        if getattr(turn, field) is None:
            field = f"the vector of its {FIELDS[largest]}"
        raise InputError(
            f"{turn.name}: {field} has numbers up to {peak:.3g}, and from them the model '{name}' computes NaN or infinity. If they are of the usual "
            "size, its weights are damaged (mister-e doctor)"
        )

    def _check_given(self, dialogues: list[list[Turn]]):
        heard = {modality for modality in MODALITIES if self._encoders.hears(modality)}
        for dialogue in dialogues:
            if not any(heard & self._encoders.given(turn) for turn in dialogue):
                raise InputError(
                    f"{dialogue[0].dialogue}: no turn has {' or '.join(FIELDS[modality] for modality in sorted(heard))}, which this model takes"
                )

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
            weights = dict(zip(experts, model_outputs["gate_weights"][number].tolist(), strict=True))
            absent = [name for name in MODALITIES if not model_outputs[name][number] and weights.get(name) == 0]
            one = {"label": label, "score": ranked[label], "scores": ranked}
            one["experts"] = {
                name: None if name in absent else scores(by_expert[number, place], top_k)
                for place, name in enumerate(experts)
            }
            one["gate"] = weights
            if turn.transcribed:
                one["text"] = turn.text
            found.append(one)
        return found


class EmotionStream:
    r"""
    One dialogue, turn by turn: each call takes the next turn and gives what the whole dialogue would have given for
    it. Nothing past is computed again: convolutions and recurrence cost the same at every turn, attention grows with
    the number of turns before.

    Args:
        pipeline: with a causal model.
        bad_audio, top_k: as of the pipeline, by default as it has them.

    Calls from several threads are taken one after another, in the order in which they come. A call that raises leaves
    the stream as it was.

    Raises:
        InputError: if the model is not causal.
    """

    def __init__(self, pipeline: ConversationEmotionPipeline, **kwargs):
        if not pipeline.model.config.causal:
            raise InputError(
                "This model hears later turns too (config.causal is false), so a turn's emotion is known at the end of the dialogue "
                "alone: give it whole dialogues, or train with --model.causal true"
            )
        self._pipeline, self._past, self._one_at_a_time = pipeline, DialogueCache(), threading.Lock()
        _, forward, postprocess = pipeline._sanitize_parameters(**kwargs)
        self._forward = pipeline._forward_params | forward
        self._postprocess = pipeline._postprocess_params | postprocess

    @property
    def num_turns(self) -> int:
        """How many turns it has heard."""
        return self._past.num_turns

    def __call__(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        with self._one_at_a_time:
            turns, past = [_turn(turn, f"turn {self.num_turns}", "the stream")], self._past.copy()
            (output,) = self._pipeline.forward([turns], past=past, **self._forward)
            (found,) = self._pipeline.postprocess(output, **self._postprocess)
            self._past = past
            return found
