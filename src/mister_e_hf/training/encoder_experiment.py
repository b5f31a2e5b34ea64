"""Train the encoder of one modality of a recipe with one seed: its folder and its results."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import set_seed

from ..base.errors import InputError
from ..base.files import check_output_folder, sync_folder, write_json
from ..base.whole_files import writing
from ..base.yaml_files import read_yaml
from ..corpora.dialogues import corpus_fingerprint, cross_fitting_folds, load_dialogues
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..encoders.utterances import Utterances
from ..evaluation.metrics import bootstrap_intervals, emotion_scores, softmax
from ..evaluation.regression import regression_intervals, regression_scores
from .recipe import EncoderSettings, Recipe
from .run_folder import best_epoch, provenance, read_results, run_once
from .utterance_trainer import UtteranceTrainer, UtteranceTrainingArguments, logits_of


def train_encoder(
    recipe: Recipe, modality: str, output_dir: str | Path, seed: int = 0, corpus: datasets.DatasetDict | None = None
) -> dict[str, Any]:
    r"""
    Train the encoder of one modality of a recipe. The epoch is chosen on validation, and test is scored once.

    Writes the encoder, its processor and `results.json` to `output_dir`. A finished run is skipped, an interrupted one
    resumes. With `folds` in the recipe's section, an encoder per fold of the training dialogues is trained first,
    without that fold.

    Args:
        recipe: a recipe with a section of this encoder, such as `text_encoder`.
        modality: one of [`~mister_e_hf.base.modalities.MODALITIES`].
        output_dir: folder of this encoder alone.
        seed: seed of the new weights, dropout and the order of utterances.
        corpus: the corpus of the recipe, if it was read already.

    Returns:
        the content of `results.json`.

    Raises:
        InputError: if the recipe has no such section, `output_dir` holds another run, or the corpus does not fit.
    """
    output_dir = Path(output_dir)
    check_output_folder(output_dir, [recipe.corpus_path() if corpus is None else None])
    settings = recipe.encoder(modality)
    arguments = settings.training_arguments(output_dir, seed)
    corpus = load_dialogues(recipe.corpus_path()) if corpus is None else load_dialogues(corpus)
    options, label2id = recipe.corpus.turn_labels() | settings.reading, recipe.label2id

    def turns(split: str, dialogues: np.ndarray | None = None) -> Utterances:
        return Utterances(corpus[split], modality, labelled_only=True, dialogues=dialogues, **options)

    splits = {split: turns(split) for split in ("train", "validation", "test") if split in corpus}
    for split in ("train", "validation"):
        if not len(splits.get(split, ())):
            raise InputError(f"{split}: no labelled turn has {modality}; its encoder cannot be trained")
    described = settings.to_dict()
    described.pop("folds", None)  # folds add encoders but do not change this one
    record = {
        "encoder": described,
        **({"targets": recipe.corpus.target_columns} if recipe.regression else {"labels": recipe.corpus.labels}),
        "seed": seed,
        "corpus": {split: corpus_fingerprint(corpus[split]) for split in splits},
    }
    if settings.folds:
        folds = cross_fitting_folds(len(corpus["train"]), settings.folds)
        for fold, folder in enumerate(fold_folders(output_dir, settings.folds)):
            parts = {"train": turns("train", folds != fold), "validation": splits["validation"]}
            parts["held_out"] = turns("train", folds == fold)
            title = f"{modality} encoder, fold {fold + 1} of {settings.folds}"
            fold_arguments = settings.training_arguments(folder, seed)
            _train(title, folder, settings, fold_arguments, parts, label2id, record | {"fold": fold})
    return _train(f"{modality} encoder", output_dir, settings, arguments, splits, label2id, record)


def fold_folders(output_dir: str | Path, folds: int) -> list[Path]:
    """Folders of the encoders that were each trained without one fold of the training dialogues."""
    return [Path(output_dir) / "folds" / f"{fold}-of-{folds}" for fold in range(folds)]


def check_same_corpus(folder: Path, corpus: datasets.DatasetDict):
    """
    Check that an encoder in the folder was trained on these training dialogues, so that their folds are the same.

    Raises:
        InputError: if it was trained on others.
    """
    trained_on = read_yaml(folder / "run.yaml")["corpus"]["train"]
    if "train" not in corpus or corpus_fingerprint(corpus["train"]) != trained_on:
        raise InputError(
            f"Cross-fitted vectors exist only for the dialogues that the encoders in '{folder}' were trained on, and "
            "this corpus has others; set folds to 0 to embed it with the encoder of all of them"
        )


def _train(
    title: str,
    output_dir: Path,
    settings: EncoderSettings,
    arguments: UtteranceTrainingArguments,
    splits: dict[str, Utterances],
    label2id: dict[str, int],
    record: dict[str, Any],
) -> dict[str, Any]:
    """
    Train on `train`, choose the epoch on `validation`, score all splits but `train`, and write the folder of the run.
    """
    encoder: tuple[UtteranceEncoder, MisterEProcessor] | None = None
    if read_results(output_dir) is None:
        # Before the folder is claimed, so that a mistake in the recipe does not leave a claimed folder behind.
        set_seed(arguments.seed)
        encoder = settings.model(label2id), settings.processor()

    def run() -> dict[str, Any]:
        assert encoder is not None  # the run is not finished
        return _run(title, settings, arguments, splits, *encoder)

    return run_once(title, output_dir, record, run, lambda results: results["validation"])


def _run(
    title: str,
    settings: EncoderSettings,
    arguments: UtteranceTrainingArguments,
    splits: dict[str, Utterances],
    model: UtteranceEncoder,
    processor: MisterEProcessor,
) -> dict[str, Any]:
    trainer = UtteranceTrainer(
        model, arguments, processor, title, train_dataset=splits["train"], eval_dataset=splits["validation"]
    )
    trainer.resume()
    output_dir = trainer.output_dir
    results: dict[str, Any] = {
        "seed": arguments.seed,
        "modality": settings.modality,
        "best_epoch": best_epoch(trainer),
        "parameters": model.num_parameters(),
        "trained_parameters": model.num_parameters(only_trainable=True),
        "embedding_dim": model.config.embedding_dim,
        **provenance(arguments.device),
    }
    for split, data in splits.items():
        if split != "train" and len(data):
            results[split] = _score(trainer, data, settings.regression)
    if trainer.is_world_process_zero():
        with writing(output_dir):
            model.save_pretrained(output_dir)
            processor.save_pretrained(output_dir)
            sync_folder(output_dir)
        results["fingerprint"] = model.fingerprint()
        write_json(output_dir / "results.json", results)
    trainer.accelerator.wait_for_everyone()
    return results


def _score(trainer: UtteranceTrainer, data: Utterances, regression: bool) -> dict[str, Any]:
    prediction = trainer.predict(data)
    logits, labels = logits_of(prediction.predictions), prediction.label_ids
    assert isinstance(labels, np.ndarray)  # the only labels are those of the emotions, or the targets
    names, dialogues = trainer.label_names_in_order, data.dialogues()
    if regression:
        scores = regression_scores(labels, logits, names)
        return scores | {"intervals": regression_intervals(labels, logits, dialogues, names)}
    probabilities = softmax(logits)
    scores = emotion_scores(labels, probabilities, names)
    return scores | {"intervals": bootstrap_intervals(labels, probabilities, dialogues)}


def load_encoder(folder: str | Path, device: str | torch.device = "cpu") -> tuple[UtteranceEncoder, MisterEProcessor]:
    """Load an encoder and its processor from a folder that [`train_encoder`] wrote."""
    return UtteranceEncoder.from_pretrained(folder).to(device), MisterEProcessor.from_pretrained(folder)
