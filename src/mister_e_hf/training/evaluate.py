"""Score a checkpoint on a corpus: the one it was trained on, or any other."""

import contextlib
import dataclasses
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

from ..base import progress
from ..base.errors import InputError, reading, short
from ..base.modalities import MODALITIES
from ..base.yaml_files import read_yaml
from ..corpora.dialogues import load_dialogues
from ..encoders.embedding import embed_corpus
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..encoders.utterances import Utterances
from ..evaluation.answer_scores import answer_scores
from ..evaluation.predictions import labels_of, predict, probabilities, score
from ..hub.loading import find_file, read_json
from ..inference.generated_answers import check_writes_answers
from ..inference.stored_stages import has_encoder, load_encoder, load_model
from ..inference.transcript_notes import transcript_notes
from ..models.configuration_conversation import ConversationConfig
from ..models.modeling_conversation import ConversationPreTrainedModel
from ..vectors.dialogue_vectors import DialogueVectors
from ..vectors.score_columns import score_columns
from ..vectors.store import holds_vectors, read_corpus, read_tables
from .corpus_settings import CORPUS_FIELDS, CorpusSettings
from .dialogue_trainer import DialogueTrainer, DialogueTrainingArguments
from .recipe_fields import fits, type_name

logger = logging.getLogger(__name__)

_COLUMNS = ("label_column", "score_column")


def evaluate_checkpoint(
    model: str | Path,
    corpus: str | Path | None = None,
    split: str = "test",
    vectors: str | Path | None = None,
    batch_size: int | None = None,
    use_cpu: bool = False,
    revision: str | None = None,
    answers: bool = False,
) -> dict[str, Any]:
    r"""
    Score a checkpoint on one split of a corpus.

    Args:
        model: a checkpoint folder, or its id on the Hub.
        corpus: a corpus of vectors, or of dialogues, which the encoders of the checkpoint embed; by default the corpus
            it was trained on.
        split: the split to score.
        vectors: folder to keep the vectors of embedded dialogues in, those of all splits; by default they are not
            kept.
        batch_size: dialogues per batch; by default as in the evaluation of training.
        use_cpu: run on the CPU even if a GPU is available.
        revision: branch, tag or commit on the Hub.
        answers: also score the answers that a language model writes by itself.

    Returns:
        `scores` by head, as in `results.json`; `corpus`, what was scored; and `as_stored`, whether the scores equal
        those in `results.json` for the same split of the same data, None if it holds none. The rounding of sums
        depends on the number of threads, so calibration may differ by 1e-6. Of a model that writes prompts also
        `prompts`, what was left out of them; with `answers` also `answers`, from [`answer_scores`].

    Raises:
        FileNotFoundError: if the checkpoint or the corpus does not exist.
        InputError: if a file of the checkpoint is damaged (file and field are named), its scores are not finite, the
            corpus does not fit the model, or it holds audio and transcripts and the checkpoint has no encoders; or if
            answers are asked of a model that writes none.
    """
    hub = {} if revision is None else {"revision": revision}
    if Path(split).name != split or split in ("", ".", ".."):
        raise InputError(f"--split takes the name of a split, such as test; got '{split}'")
    loaded = cast(ConversationPreTrainedModel, load_model(model, **hub))
    config = loaded.config
    if answers:
        check_writes_answers(loaded)
    recipe, stored = _recipe(model, hub), _results(model, hub)
    settings = recipe["corpus"]
    source = corpus or settings.get("path")
    if source is None:
        raise InputError(f"'{model}' does not record its training corpus; pass --corpus")
    regression = config.task == "regression"
    fingerprint = stored["data_fingerprints"].get(split)
    with tempfile.TemporaryDirectory() as temporary:

        def read(folder: str | Path) -> DialogueVectors:
            targets = _target_columns(model, config, settings, folder) if regression else None
            picked = config.speech_columns
            columns = {} if regression else _label_columns(settings, folder, split, own=corpus is None)
            found = read_corpus(
                folder, config.label2id, splits=(split,), targets=targets, speech_columns=picked, **columns
            )
            return found[split]

        if corpus is None and not Path(source).expanduser().exists():
            source = _found_again(model, source, lambda folder: read(folder).fingerprint() == fingerprint) or source
        if corpus is None and not _may_exist(source):
            raise InputError(
                f"'{model}' was trained on '{source}', a path on the machine where it was trained, and there are no "
                "such vectors here; pass --corpus"
            )
        scored = str(source)
        if not holds_vectors(source):
            dialogues = load_dialogues(source)
            if split not in dialogues:
                raise InputError(f"'{source}' has no split '{split}'; it has {', '.join(dialogues)}")
            if vectors is None:  # vectors that are kept are those of all splits
                dialogues = datasets.DatasetDict({split: dialogues[split]})
            if regression:  # refuses other labels and targets before embedding
                _target_columns(model, config, settings, dialogues)
            else:
                Utterances(dialogues[split], "text", config.label2id)
            source = embed_corpus(dialogues, _encoders(model, config, hub), vectors or Path(temporary) / "vectors")
        data = read(source)
        data.check(config.read_widths)
        batch = batch_size or recipe["training"].get("per_device_eval_batch_size", 8)
        trainer = scoring_trainer(loaded, f"{temporary}/run", batch, use_cpu)
        for sentence in transcript_notes(config, {split: data.transcripts}, {split: data.num_turns}):
            logger.warning("%s", sentence)
        output, further = predict(trainer, data), {}
        if prompts := loaded.prompt_counts():
            further["prompts"] = prompts
        _refuse_not_finite(model, output, data)
        names = list(config.id2label.values())
        if not regression:
            output = probabilities(output, config.calibration_temperature)
        bins = settings.get("score_bins")
        scores = score(output, data, names, bins=bins)
        if answers:
            further["answers"] = answer_scores(labels_of(data), _answers(trainer, data, batch), names, bins)
        same = fingerprint == data.fingerprint()
    agrees = None
    if same and split in stored:
        # A model may declare more heads by now than the version that stored these scores.
        agrees = _agree({head: found for head, found in scores.items() if head in stored[split]}, stored[split])
        halves = {weight.dtype for weight in loaded.parameters()} & {torch.float16, torch.bfloat16}
        if not agrees and halves:
            logger.warning(
                "The model computes in %s, whose rounding depends on how much is read at once and on "
                "training.prefix_folder, so the scores may differ a little from those in results.json",
                str(halves.pop()).removeprefix("torch."),
            )
    return {"scores": scores, "corpus": scored, "as_stored": agrees, **further}


def _answers(trainer: DialogueTrainer, data: DialogueVectors, batch_size: int) -> list[list[int | float | None]]:
    """What the model writes about each turn (N), read as a label or as a score of each target (S)."""
    model: Any = trainer.own_model
    found = []
    with progress.bar("writing answers", len(data), "dialogues") as bar:
        for batch in DataLoader(data, batch_size=batch_size, collate_fn=trainer.data_collator):
            batch.pop("labels", None)
            for dialogue in model.generate_answers(**trainer._prepare_inputs(batch)):
                found += [[model.answers.parse(text) for text in texts] for texts in dialogue if texts]
                bar.update()
    return found


def _label_columns(settings: dict[str, Any], source: Any, split: str, own: bool) -> dict[str, str]:
    """The columns of labels and scores of the training corpus; of another corpus only those that it has."""
    stated = {name: settings[name] for name in _COLUMNS if settings.get(name)}
    if own or not stated:
        return stated
    there = {name for table, _ in read_tables(source, (split,)).values() for name in table.column_names}
    return {name: column for name, column in stated.items() if column in there}


def _target_columns(model: str | Path, config: ConversationConfig, settings: dict[str, Any], source: Any):
    """By target of the model, the column of a corpus: as in the training corpus, or of the target's own name."""
    stated, there = CorpusSettings(targets=settings.get("targets")).target_columns, score_columns(source)
    found: dict[str, str] = {}
    for name in config.label2id:
        column = next((column for column in (stated.get(name, name), name) if column in there), None)
        if column is None:
            raise InputError(
                f"'{model}' predicts '{name}', but the corpus has no column '{stated.get(name, name)}' with a number "
                f"per turn; its columns of numbers are {', '.join(there) or 'none'}. Rename one, or pass --corpus"
            )
        found[name] = column
    return found


def _found_again(model: str | Path, path: str | Path, same: Callable[[Path], bool]) -> Path | None:
    """Resolve the relative path of a corpus from the folders above the checkpoint; only the same data counts."""
    if Path(path).is_absolute() or not Path(model).is_dir():
        return None
    folder = Path(model).resolve()
    for place in (folder, *folder.parents):
        if (place / path).is_dir() and holds_vectors(place / path):
            with contextlib.suppress(FileNotFoundError, InputError):
                if same(place / path):
                    return place / path
    return None


def _may_exist(source: str | Path) -> bool:
    """Whether the source is a folder, or may be the id of a dataset on the Hub."""
    return Path(source).expanduser().is_dir() or bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)))


def _refuse_not_finite(model: str | Path, output: dict[str, np.ndarray], data: DialogueVectors):
    for name, values in output.items():
        wrong = ~np.isfinite(values).all(axis=1)
        if wrong.any():
            row = int(wrong.argmax())
            dialogue = data.dialogue_ids[int(np.searchsorted(data.offsets, row, side="right")) - 1]
            raise InputError(
                f"'{model}' gives NaN or infinity ({name}) for {int(wrong.sum())} of {len(wrong)} turns, the first of "
                f"them in dialogue '{dialogue}': its weights are broken, or the vectors are not of the kind that it "
                "was trained on"
            )


def _recipe(model: str | Path, hub: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections `corpus` and `training` of the recipe that a checkpoint stores, checked."""
    path = find_file(model, "training.yaml", hub)
    if path is None:
        return {"corpus": {}, "training": {}}
    with reading(path, "a recipe"):
        found = read_yaml(path) or {}
        if not isinstance(found, dict):
            raise InputError(f"expected sections with fields, got {short(repr(found), 80)}")
        recipe = {name: found.get(name) or {} for name in ("corpus", "training")}
        for name, section in recipe.items():
            if not isinstance(section, dict):
                raise InputError(f"section '{name}' must hold fields, got {short(repr(section), 80)}")
        known = {field.name for field in dataclasses.fields(CorpusSettings)}
        if unknown := sorted(map(str, set(recipe["corpus"]) - known)):
            raise InputError(f"section 'corpus' has the unknown field '{unknown[0]}'; expected {', '.join(known)}")
        for name in ("path", *_COLUMNS):
            if not isinstance(recipe["corpus"].get(name), str | None):
                raise InputError(f"corpus.{name} must be a text, got {short(repr(recipe['corpus'][name]), 80)}")
        for name in ("targets", "score_bins"):
            if not fits(recipe["corpus"].get(name), CORPUS_FIELDS[name]):
                given = short(repr(recipe["corpus"][name]), 80)
                raise InputError(f"corpus.{name} must be {type_name(CORPUS_FIELDS[name])}, got {given}")
        batch = recipe["training"].get("per_device_eval_batch_size", 8)
        if not isinstance(batch, int) or batch < 1:
            raise InputError(f"training.per_device_eval_batch_size must be at least 1, got {short(repr(batch), 80)}")
    return recipe


def _results(model: str | Path, hub: dict[str, Any]) -> dict[str, Any]:
    path = find_file(model, "results.json", hub)
    stored = {} if path is None else read_json(path)
    stored.setdefault("data_fingerprints", {})
    for name, value in stored.items():
        if name in ("data_fingerprints", "validation", "test") and not isinstance(value, dict):
            raise InputError(f"'{path}': {name} must be an object, got {short(repr(value), 80)}")
    return stored


def scoring_trainer(
    model: ConversationPreTrainedModel, output_dir: str | Path, batch_size: int = 8, use_cpu: bool = False
) -> DialogueTrainer:
    """A trainer for prediction alone, with `batch_size` dialogues per batch."""
    arguments = DialogueTrainingArguments(
        str(output_dir),
        per_device_eval_batch_size=batch_size,
        use_cpu=use_cpu,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        disable_tqdm=True,
    )
    return DialogueTrainer(model, arguments)


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_agree(one[name], other[name]) for name in one)
        )
    if one is None or other is None:  # F1 of a class without a turn
        return one is other
    try:
        return bool(np.allclose(one, other, rtol=0, atol=1e-6))
    except (TypeError, ValueError):  # text, or another number of classes
        return False


def _encoders(
    model: str | Path, config: ConversationConfig, hub: dict[str, Any]
) -> dict[str, tuple[UtteranceEncoder, MisterEProcessor]]:
    found = {
        modality: load_encoder(model, modality, width, **hub)
        for modality, width in config.widths.items()
        if has_encoder(model, modality, **hub)
    }
    if not found:
        folders = " or ".join(f"{MODALITIES[name].encoder}/" for name in config.widths)
        raise InputError(
            f"'{model}' holds no encoders ({folders}), so it scores corpora of vectors alone; this one holds audio, "
            "video or transcripts"
        )
    return found
