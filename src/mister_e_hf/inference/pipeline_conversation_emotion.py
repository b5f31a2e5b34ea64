"""Predict emotions or scores for raw dialogues: `pipeline("conversation-emotion-recognition", model=...)`.

Letters: B dialogues, T turns, N turns of all dialogues of a batch, D embedding width, C classes or targets, E heads
beside the main one.
"""

import itertools
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline

from ..base.errors import InputError
from ..base.modalities import MODALITIES
from ..base.part_weights import GATE, PART_WEIGHTS, WEIGHT_FIELDS
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..hub.pretrained import check_heads_are_trained
from ..models.turn_attention import LONG
from ..models.turns import DialogueCache
from .generated_answers import check_writes_answers, read_answer
from .raw_turns import Turn, check_dialogues, is_dialogue, read_dialogue, read_turn, split_slice
from .turn_vectors import TurnEncoders, explain_out_of_memory


class ConversationEmotionPipeline(Pipeline):
    r"""
    Emotions or scores of the turns of dialogues, from audio, text and video.

    A dialogue is a list of turns, `{"utterances": turns}` as a row of a corpus, or one recording, `{"audio": ...,
    "segments": ...}` or `{"video": ..., "segments": ...}`. Several dialogues are a list of them, a slice of a
    `datasets.Dataset` of such rows, or any iterable of them. A turn is a dictionary with

    - `audio`: a file's path or content, an array (S,) or (channels, S) with `sampling_rate`, or a dictionary as
      `datasets` returns it; of any format and rate.
    - `video`: a file's path or content, an open binary file, or a dictionary of path and bytes, for a model that reads
      video. Without `audio`, the turn's audio is the file's, if it has any.
    - `start` and `end`, in seconds: the part of the audio and video that is the turn.
    - `text`: the transcript.
    - `speech_embedding`, `text_embedding`, `visual_embedding`: vectors (D,) used instead, which need no encoder.

    A field that is left out or None is a missing modality. In a row of a corpus, columns that the model does not read
    are ignored, and a turn without `audio` has none. `segments` are the path of an SRT or WebVTT file, or a list
    of `(start, end)`, `(start, end, text)` or turns with `start` and `end`.

    Args:
        model ([`ConversationPreTrainedModel`]): stage 2, of any registered model. Its encoders are loaded from the
            same checkpoint, `speech_encoder/`, `text_encoder/` and `visual_encoder/`, when they are first needed.
        encoders (`dict`, *optional*): by modality, an encoder and its processor to use instead.
        transcriber (`str` or `Pipeline`, *optional*): a speech recognition model or pipeline, which transcribes turns
            with audio and without text.
        bad_audio (`str`, defaults to `"error"`): with `"missing"`, a turn whose audio cannot be read is kept without
            audio, with a warning.
        bad_video (`str`, defaults to `"error"`): the same for video.
        top_k (`int`, *optional*): number of classes to return in `scores`, of the model and of each of its heads.
        answers (`bool`, defaults to `False`): also have the language model of EGMF write its answer, word by word.

    Returns:
        for each dialogue a list with a dictionary per turn, in order: `label` and its probability `score`; `scores`,
        the probabilities of the classes, highest first; `experts`, the same from each further head of the model
        (MiSTER-E's experts, SDT's students), None where its modality is absent; `gate`, the weight of each, exactly 0
        there, or of each expert inside the model (EGMF); `modality_gate`, the weight of each modality (EGMF);
        `capsules`, the share of each capsule in the prediction (EMO-Caps); `text`, if it was transcribed. What a model
        does not have, such as further heads or a gate, is left out. A model that predicts scores (regression) gives
        the name of its first target as `label` and its value as `score`, all targets in their own units as `scores`
        and for each head as `experts`, and `"task": "regression"`; none of them is a probability.

    Raises:
        InputError: naming dialogue and turn: if the input is not a dialogue, audio or video cannot be read, the model
            does not read video or has no encoder for a field, the result is not finite, or a dialogue does not fit in
            memory.
    """

    model: Any  # of any registered class, possibly from the code of a checkpoint
    # transformers declares them as None
    _load_tokenizer = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_processor = False  # type: ignore[assignment]

    def __init__(
        self,
        model,
        *args,
        encoders: Mapping[str, tuple[UtteranceEncoder, MisterEProcessor]] | None = None,
        transcriber: "str | Pipeline | None" = None,
        **kwargs,
    ):
        if not hasattr(model, "view"):  # its class may come from the code of the checkpoint
            raise InputError(
                f"The pipeline takes a conversation model; a model of type '{model.config.model_type}' is not one"
            )
        check_heads_are_trained(model)
        super().__init__(model, *args, **kwargs)
        self._encoders = TurnEncoders(model, encoders, transcriber)
        self.model.eval()

    def _sanitize_parameters(
        self,
        bad_audio: str | None = None,
        top_k: int | None = None,
        bad_video: str | None = None,
        answers: bool | None = None,
        **unknown,
    ):
        if unknown:
            raise TypeError(
                f"unknown argument '{next(iter(unknown))}'; expected answers, bad_audio, bad_video, top_k or "
                "batch_size, or encoders or transcriber when the pipeline is created"
            )
        forward: dict[str, Any] = {}
        for name, policy in {"bad_audio": bad_audio, "bad_video": bad_video}.items():
            if policy not in (None, "error", "missing"):
                raise InputError(f"{name} must be 'error' or 'missing', got {policy!r}")
            forward |= {} if policy is None else {name: policy}
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise InputError(f"top_k must be a positive number, got {top_k!r}")
        if top_k is not None and self.model.config.task == "regression":
            targets = ", ".join(self.model.config.id2label.values())
            raise InputError(f"top_k is a number of classes; this model predicts scores: {targets}")
        if answers not in (None, False):
            if answers is not True:
                raise InputError(f"answers must be True or False, got {answers!r}")
            check_writes_answers(self.model)
        forward |= {} if answers is None else {"answers": answers}
        return {}, forward, {} if top_k is None else {"top_k": top_k}

    def __call__(self, inputs, **kwargs):  # type: ignore[override]  # takes dialogues alone
        """
        Return a list for one dialogue, a list of lists for a list of dialogues, and an iterator for a dataset or any
        other iterable of dialogues.
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
        """Predict one dialogue turn by turn, with a model that streams: see [`EmotionStream`]."""
        return EmotionStream(self, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save the model's checkpoint folder, with its encoders."""
        super().save_pretrained(save_directory, **kwargs)
        for modality in self.model.config.modalities:
            if self._encoders.has(modality):
                for part in self._encoders.encoder(modality):
                    part.save_pretrained(os.path.join(save_directory, MODALITIES[modality].encoder))

    def __repr__(self) -> str:
        config, takes = self.model.config, []
        for modality in (MODALITIES[name] for name in config.modalities):
            folder = os.path.join(config._name_or_path, modality.encoder)
            if (
                modality.name in self._encoders.pairs
                or os.path.isdir(folder)
                or not os.path.isdir(config._name_or_path or ".")
            ):
                takes.append(modality.content)
            takes.append(f"{modality.embedding} of {getattr(config, modality.width)} numbers")
        transcriber = self._encoders.transcriber
        lines = {
            "model": config._name_or_path or type(self.model).__name__,
            "takes": takes,
            "scores" if config.task == "regression" else "emotions": list(config.id2label.values()),
            "heads": list(config.heads),
            "transcriber": transcriber if isinstance(transcriber, str | None) else type(transcriber).__name__,
            "device": str(self.device),
        }
        return f"{type(self).__name__}(\n" + "".join(f"    {name}={value!r},\n" for name, value in lines.items()) + ")"

    # Methods that transformers' Pipeline calls

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size must be a positive number of dialogues, got {batch_size!r:.80}")
        numbered, batch_size = enumerate(inputs), min(batch_size, sys.maxsize)
        while batch := list(itertools.islice(numbered, batch_size)):
            dialogues = [self.preprocess(dialogue, number, **preprocess_params) for number, dialogue in batch]
            outputs: dict[int, dict[str, Any]] = {}
            for numbers in of_like_length([len(dialogue) for dialogue in dialogues]):
                found = self.forward([dialogues[number] for number in numbers], **forward_params)
                outputs |= zip(numbers, found, strict=True)
            for number in range(len(dialogues)):
                yield self.postprocess(outputs.pop(number), **postprocess_params)

    # A dialogue is a list of turns here; transformers' Pipeline declares dictionaries of tensors.
    def preprocess(self, inputs, number: int = 0) -> list[Turn]:  # type: ignore[override]
        return read_dialogue(inputs, f"dialogue {number}")

    def forward(self, model_inputs: list[list[Turn]], **forward_params) -> list[dict[str, Any]]:
        with self.device_placement(), torch.inference_mode():
            return self._forward(model_inputs, **forward_params)

    def _forward(  # type: ignore[override]
        self,
        dialogues: list[list[Turn]],
        bad_audio: str = "error",
        bad_video: str = "error",
        answers: bool = False,
        past: DialogueCache | None = None,
    ) -> list[dict[str, Any]]:
        turns = [turn for dialogue in dialogues for turn in dialogue]
        for turn in turns:
            self._encoders.check_read(turn)
        if past is None:  # in a stream, a later turn may have a modality that the model reads
            self._check_given(dialogues)
        vectors, present = self._encoders.embed(turns, bad_audio, bad_video)
        lengths = torch.tensor([len(dialogue) for dialogue in dialogues])
        real = torch.arange(int(lengths.max())) < lengths[:, None]

        def padded(rows: torch.Tensor) -> torch.Tensor:
            whole = rows.new_zeros(*real.shape, *rows.shape[1:])
            whole[real] = rows
            return whole.to(self.device)

        inputs: dict[str, Any] = {MODALITIES[name].embeddings: padded(rows) for name, rows in vectors.items()}
        inputs |= {MODALITIES[name].mask: padded(rows) for name, rows in present.items()}
        longest = max(dialogues, key=len)
        if self.model.config.reads_transcripts:
            inputs["transcripts"] = [
                [turn.text for turn in dialogue] + [None] * (len(longest) - len(dialogue)) for dialogue in dialogues
            ]
        if past is not None:
            inputs["past"] = past
        with explain_out_of_memory(
            f"{longest[0].dialogue} has {len(longest)} turns, which", "split it into shorter dialogues"
        ):
            inputs["attention_mask"] = real.to(self.device)
            output = self.model.view(self.model(**inputs))
            written = self.model.generate_answers(**inputs) if answers else None
            # the code of an older checkpoint lacks some of the fields
            scores = {name: getattr(output, name, None) for name in ("logits", *WEIGHT_FIELDS)}
            found = {name: values.double().cpu() for name, values in scores.items() if values is not None}
            heads = {name: values.double().cpu() for name, values in (output.head_logits or {}).items()}
        rows = torch.zeros(real.shape, dtype=torch.long)  # where each turn's vectors are
        rows[real] = torch.arange(len(turns))
        outputs = []
        for number, dialogue in enumerate(dialogues):
            one = {name: values[number, : len(dialogue)] for name, values in found.items()}
            by_head = {name: values[number, : len(dialogue)] for name, values in heads.items()}
            own = rows[number, : len(dialogue)]
            given = {name: values[own] for name, values in vectors.items()}
            self._check_finite(dialogue, one["logits"], [*one.values(), *by_head.values()], given)
            one |= {"turns": dialogue, "head_logits": by_head}
            one |= {} if written is None else {"written": written[number]}
            outputs.append(one | {"present": {name: values[own] for name, values in present.items()}})
        return outputs

    def _check_finite(
        self,
        dialogue: list[Turn],
        logits: torch.Tensor,
        found: list[torch.Tensor],
        vectors: dict[str, torch.Tensor],
    ):
        """Raise if a result is not finite, naming the turn with the largest input."""
        temperature = self.model.config.calibration_temperature  # 1 for scores
        if all(rows.isfinite().all() for rows in (*found, logits / temperature)):
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
        field = MODALITIES[largest].embedding
        if largest not in turn.vectors:
            field = f"the vector of its {MODALITIES[largest].content}"
        raise InputError(
            f"{turn.name}: {field} has numbers up to {peak:.3g}, for which the model '{name}' computes NaN or "
            "infinity. If that is the usual size, its weights are damaged (mister-e doctor)"
        )

    def _check_given(self, dialogues: list[list[Turn]]):
        read = self.model.config.modalities
        for dialogue in dialogues:
            if not any(self._encoders.given(turn).intersection(read) for turn in dialogue):
                contents = " or ".join(MODALITIES[name].content for name in read)
                raise InputError(f"{dialogue[0].dialogue}: no turn has {contents}, which this model reads")

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], top_k: int | None = None
    ) -> list[dict[str, Any]]:
        config = self.model.config
        is_regression = config.task == "regression"
        values, by_head = model_outputs["logits"], model_outputs["head_logits"]
        if not is_regression:
            values = (values / config.calibration_temperature).softmax(-1)
            by_head = {name: logits.softmax(-1) for name, logits in by_head.items()}

        def scores(row: torch.Tensor, count: int | None = None) -> dict[str, float]:
            """Targets in their order, or classes in that of their probabilities."""
            order = torch.arange(len(row)) if is_regression else row.argsort(descending=True, stable=True)
            return {config.id2label[int(index)]: float(row[index]) for index in order[:count]}

        found = []
        for number, turn in enumerate(model_outputs["turns"]):
            ranked = scores(values[number], top_k)
            label = next(iter(ranked))
            weights = {
                kind.answer: dict(
                    zip(getattr(config, kind.parts), model_outputs[kind.field][number].tolist(), strict=True)
                )
                for kind in PART_WEIGHTS
                if kind.field in model_outputs
            }
            gate = weights.get(GATE.answer, {})
            present = model_outputs["present"]
            absent = [name for name in present if not present[name][number] and gate.get(name) == 0]
            one: dict[str, Any] = {"label": label, "score": ranked[label], "scores": ranked}
            if by_head:
                one["experts"] = {
                    name: None if name in absent else scores(rows[number], top_k) for name, rows in by_head.items()
                }
            one |= weights
            if "written" in model_outputs:
                one |= read_answer(self.model, model_outputs["written"][number])
            if turn.transcribed:
                one["text"] = turn.text
            if is_regression:
                one["task"] = config.task
            found.append(one)
        return found


def of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """
    The numbers of dialogues that are computed together, since each is padded to the longest of them: all of up to
    `LONG` turns, and longer ones by each doubling.
    """
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault((max(length - 1, 0) // LONG).bit_length(), []).append(number)
    return list(groups.values())


class EmotionStream:
    r"""
    Predict one dialogue turn by turn: each call takes the next turn and returns what the pipeline would return for it
    in the whole dialogue. Past turns are not computed again: convolutions and recurrence cost the same at every turn,
    attention grows with the number of turns before.

    Args:
        pipeline: with a model that streams.
        bad_audio, bad_video, top_k: as in [`ConversationEmotionPipeline`], by default its values.

    Calls from several threads run one after another. A call that raises does not change the stream.

    Raises:
        InputError: if the model does not stream.
    """

    def __init__(self, pipeline: ConversationEmotionPipeline, **kwargs):
        config = pipeline.model.config
        if not config.streams:
            remedy = ", or train with --model.causal true" if hasattr(config, "causal") else ""
            raise InputError(
                f"A model of type '{config.model_type}' does not stream, because it reads later turns too: pass whole "
                f"dialogues{remedy}"
            )
        self._pipeline, self._past, self._one_at_a_time = pipeline, DialogueCache(), threading.Lock()
        _, forward, postprocess = pipeline._sanitize_parameters(**kwargs)
        self._forward = pipeline._forward_params | forward
        self._postprocess = pipeline._postprocess_params | postprocess

    @property
    def num_turns(self) -> int:
        """Number of turns so far."""
        return self._past.num_turns

    def __call__(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        with self._one_at_a_time:
            turns, past = [read_turn(turn, f"turn {self.num_turns}", "the stream")], self._past.copy()
            (output,) = self._pipeline.forward([turns], past=past, **self._forward)
            (found,) = self._pipeline.postprocess(output, **self._postprocess)
            self._past = past
            return found
