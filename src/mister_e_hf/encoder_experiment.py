"""One recipe, one modality and one seed -> an encoder's folder and its results."""

import json
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import set_seed

from .metrics import bootstrap_intervals, emotion_scores
from .modeling_utterance_encoder import UtteranceEncoder
from .processing_mister_e import MisterEProcessor
from .recipe import Recipe
from .run_folder import best_epoch, claim_run, provenance, write_json
from .training import finished_checkpoints, softmax
from .utterance_trainer import UtteranceTrainer, logits_of
from .utterances import Utterances, corpus_fingerprint, load_dialogues


def train_encoder(
    recipe: Recipe, modality: str, output_dir: str | Path, seed: int = 0, corpus: datasets.DatasetDict | None = None
) -> dict[str, Any]:
    r"""
    Train the recipe's encoder of one modality, choosing the epoch on validation; test is scored once.

    Writes to `output_dir` the encoder, its processor and `results.json`. A finished run is not run again; one that was killed goes on.

    Args:
        recipe: with a section `speech_encoder` or `text_encoder`.
        modality: `"speech"` or `"text"`.
        output_dir: of this encoder alone.
        seed: of the new weights, dropout and the order of utterances.
        corpus: the recipe's corpus, where it was read already.

    Returns:
        what `results.json` holds.

    Raises:
        ValueError: if the recipe has no such section, `output_dir` holds another run, or the corpus does not fit.
    """
    output_dir = Path(output_dir)
    settings = recipe.encoder(modality)
    arguments = settings.training_arguments(output_dir, seed)
    corpus = load_dialogues(recipe.corpus_path()) if corpus is None else load_dialogues(corpus)
    label2id = {name: index for index, name in enumerate(recipe.corpus.labels)}
    splits = {
        split: Utterances(corpus[split], modality, label2id, labelled_only=True)
        for split in ("train", "validation", "test")
        if split in corpus
    }
    for split in ("train", "validation"):
        if not len(splits.get(split, ())):
            raise ValueError(f"{split}: no labelled turn has {modality}; its encoder cannot be trained")
    record = {
        "encoder": settings.to_dict(),
        "labels": recipe.corpus.labels,
        "seed": seed,
        "corpus": {split: corpus_fingerprint(corpus[split]) for split in splits},
    }
    if not (output_dir / "results.json").is_file():
        # Before the folder is claimed, which a recipe that has to be mended could not take back.
        set_seed(seed)
        model, processor = settings.model(label2id), settings.processor()
    if claim_run(output_dir, record):
        return json.loads((output_dir / "results.json").read_text())

    trainer = UtteranceTrainer(
        model, arguments, processor, train_dataset=splits["train"], eval_dataset=splits["validation"]
    )
    checkpoints = finished_checkpoints(output_dir)
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    results: dict[str, Any] = {
        "seed": seed,
        "modality": modality,
        "best_epoch": best_epoch(trainer),
        "parameters": model.num_parameters(),
        "trained_parameters": model.num_parameters(only_trainable=True),
        **provenance(arguments.device),
    }
    for split in ("validation", "test"):
        if len(splits.get(split, ())):
            results[split] = _score(trainer, splits[split])
    if trainer.is_world_process_zero():
        model.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
        write_json(output_dir / "results.json", results)
    trainer.accelerator.wait_for_everyone()
    return results


def _score(trainer: UtteranceTrainer, data: Utterances) -> dict[str, Any]:
    prediction = trainer.predict(data)
    probabilities = softmax(logits_of(prediction.predictions))
    scores = emotion_scores(prediction.label_ids, probabilities, trainer.label_names_in_order)
    dialogues = data.dialogues()
    scores["intervals"] = bootstrap_intervals(prediction.label_ids, probabilities, dialogues)
    return scores


def load_encoder(folder: str | Path, device: str | torch.device = "cpu") -> tuple[UtteranceEncoder, MisterEProcessor]:
    """An encoder and its processor from a folder that `train_encoder` wrote."""
    return UtteranceEncoder.from_pretrained(folder).to(device), MisterEProcessor.from_pretrained(folder)
