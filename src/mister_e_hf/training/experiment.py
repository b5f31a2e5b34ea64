"""
Train stage 2 of a recipe: one seed gives a checkpoint folder with predictions and results, several their mean and
spread.
"""

import importlib.util
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from transformers import set_seed

from ..base.errors import InputError
from ..base.files import check_output_folder, file_digest, sync_folder, write_json, write_table
from ..base.processes import report
from ..base.prompt_counts import counted_since
from ..base.whole_files import write_atomically, writing
from ..evaluation.calibration import fit_temperature
from ..evaluation.confusion_figure import confusion_figure
from ..evaluation.predictions import (
    calibration,
    labels_of,
    mean_weights,
    predict,
    prediction_table,
    probabilities,
    score,
    summarize,
)
from ..hub.checkpoint import save_checkpoint
from ..models.configuration_conversation import ConversationConfig
from ..vectors.corpus_facts import corpus_facts
from ..vectors.dialogue_vectors import DialogueVectors
from .dialogue_trainer import DialogueTrainer, DialogueTrainingArguments
from .own_pretraining import model_of_run, pretraining_of_run
from .pretrained_start import check_other_folder, pretraining_facts, weights_of
from .recipe import Recipe
from .recipe_widths import take_widths
from .run_folder import best_epoch, check_seeds, check_unchanged, learning_history, peak_memory, provenance, run_once

logger = logging.getLogger(__name__)


def run_experiment(
    recipe: Recipe,
    output_dir: str | Path,
    seed: int,
    corpus: dict[str, DialogueVectors] | None = None,
    encoders: Mapping[str, Path] | None = None,
) -> dict:
    r"""
    Train one seed of a recipe. The epoch is chosen on validation, and test is scored once.

    Writes the checkpoint folder, `predictions.parquet` and `results.json` to `output_dir`. A finished run is skipped;
    an interrupted one resumes from its last complete checkpoint.

    Args:
        recipe: model, corpus and training.
        output_dir: folder of this run alone.
        seed: seed of the initial weights, dropout and the order of dialogues.
        corpus: the corpus of the recipe, if it was read already.
        encoders: by modality, folders of the encoders that made the vectors; they become part of the checkpoint
            folder.

    Returns:
        the content of `results.json`.

    Raises:
        InputError: if `output_dir` holds a run of another recipe, or the corpus does not fit.
    """
    output_dir = Path(output_dir)
    check_output_folder(output_dir, [recipe.corpus_path()])
    check_other_folder(output_dir, recipe.sections["training"].get("pretrained"))
    arguments = recipe.training_arguments(output_dir, seed)  # starts the process group, if there is one
    corpus = _read_corpus(recipe) if corpus is None else corpus
    fingerprints = {name: data.fingerprint() for name, data in corpus.items()}
    record = {"recipe": recipe.to_dict(), "seed": seed, "data_fingerprints": fingerprints}
    record |= weights_of(recipe.sections["training"].get("pretrained"))
    return run_once(
        f"{recipe.title()}, seed {seed}",
        output_dir,
        record,
        lambda: _run(recipe, arguments, corpus, fingerprints, encoders),
        lambda results: results["validation"]["mixture"],
    )


def _run(
    recipe: Recipe,
    arguments: DialogueTrainingArguments,
    corpus: dict[str, DialogueVectors],
    fingerprints: dict[str, str],
    encoders: Mapping[str, Path] | None,
) -> dict[str, Any]:
    trainer, facts = train_model(recipe, arguments, corpus["train"], corpus["validation"])
    check_unchanged(corpus, fingerprints)
    results: dict[str, Any] = {"seed": arguments.seed, **facts, "data_fingerprints": fingerprints}
    chooses = arguments.load_best_model_at_end
    results |= pretraining_facts(pretraining_of_run(recipe, trainer.output_dir))
    results["corpus"] = corpus_facts(recipe.corpus.path, corpus, recipe.corpus.names, chooses)
    output_dir, model = trainer.output_dir, trainer.own_model
    config, names = model.config, list(model.config.id2label.values())
    outputs, prompts = {}, {}
    for split in ("validation", "test"):
        before = model.prompt_counts()
        outputs[split] = predict(trainer, corpus[split])
        prompts[split] = trainer.over_processes(counted_since(before, model.prompt_counts())) if before else {}
    if any(prompts.values()):
        results["prompts"] = prompts
    if recipe.regression:
        results |= {"task": config.task, "targets": recipe.corpus.target_columns}
        report(f"{recipe.title()}: no temperature is fitted, since scores are not probabilities")
    else:
        outputs, results["calibration"] = _calibrate(config, outputs, corpus)
    results |= mean_weights(outputs["test"], config)
    tables = []
    for split, output in outputs.items():
        results[split] = score(output, corpus[split], names, bins=recipe.corpus.score_bins)
        tables.append(prediction_table(output, corpus[split], config))
    if trainer.is_world_process_zero():
        write_table(output_dir / "predictions.parquet", pa.concat_tables(tables))
        results["digests"] = digests(output_dir)
        if not recipe.regression:
            _plot_confusion(results["test"]["mixture"]["confusion"], names, output_dir / "confusion.png")
        with writing(output_dir):
            save_checkpoint(output_dir, model, recipe.to_dict(), results, encoders)
            sync_folder(output_dir)
        write_json(output_dir / "results.json", results)
        if arguments.push_to_hub:
            trainer.push_folder()  # the card is made from these results
    trainer.accelerator.wait_for_everyone()
    return results


def _calibrate(
    config: ConversationConfig, outputs: dict[str, dict[str, np.ndarray]], corpus: dict[str, DialogueVectors]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """
    Fit the temperature of the configuration on validation; returns probabilities in place of the logits of each split,
    and what the results say of the calibration.
    """
    temperature = fit_temperature(outputs["validation"]["mixture"], labels_of(corpus["validation"]))
    config.calibration_temperature = temperature
    facts: dict[str, Any] = {"temperature": temperature}
    for split, logits in outputs.items():
        facts[f"{split} without it"] = calibration(probabilities(logits)["mixture"], corpus[split])
    return {split: probabilities(logits, temperature) for split, logits in outputs.items()}, facts


def _read_corpus(recipe: Recipe) -> dict[str, DialogueVectors]:
    """The corpus of the recipe, with a warning for each of its shortcomings."""
    for sentence in take_widths(recipe):
        report(sentence)
    corpus = recipe.read_corpus()
    say_shortcomings(recipe, corpus)
    return corpus


def say_shortcomings(recipe: Recipe, corpus: Mapping[str, DialogueVectors]):
    """Warn of what a corpus lacks for training and scoring."""
    if PartialState().is_main_process:
        chooses = bool(recipe.value("training.load_best_model_at_end"))
        for sentence in corpus_facts(recipe.corpus.path, corpus, recipe.corpus.names, chooses)["shortcomings"]:
            logger.warning("%s", sentence)


def train_model(
    recipe: Recipe, arguments: DialogueTrainingArguments, train: DialogueVectors, validation: DialogueVectors
) -> tuple[DialogueTrainer, dict[str, Any]]:
    """Train a model, resuming from the last complete checkpoint; returns its trainer and facts about the training."""
    set_seed(arguments.seed)
    trainer = recipe.trainer_class(
        model=model_of_run(recipe, arguments, train), args=arguments, train_dataset=train, eval_dataset=validation
    )
    start = time.perf_counter()
    resumed = trainer.resume()
    seconds = time.perf_counter() - start
    return trainer, {
        "best_epoch": best_epoch(trainer),
        "epochs": trainer.state.epoch,
        "training_seconds": None if resumed else round(seconds, 1),
        "peak_memory_bytes": peak_memory(),
        "threads": trainer.threads,
        "parameters": trainer.own_model.num_parameters(),
        "history": learning_history(trainer),
        **provenance(arguments.device),
    }


def run_seeds(
    recipe: Recipe,
    output_dir: str | Path,
    seeds: list[int],
    encoders: Mapping[str, Path] | None = None,
    corpus: dict[str, DialogueVectors] | None = None,
) -> dict:
    """
    Run each seed into `output_dir/seed-N/` and write their mean and standard deviation to `output_dir/summary.json`.
    Arguments as in [`run_experiment`].
    """
    if recipe.sections["training"].get("push_to_hub"):
        raise InputError("--push_to_hub with several seeds would push one over the other: push the folder of one seed")
    check_seeds(seeds)
    recipe.training_arguments(Path(output_dir) / f"seed-{seeds[0]}", seeds[0])
    corpus = _read_corpus(recipe) if corpus is None else corpus
    runs = [run_experiment(recipe, Path(output_dir) / f"seed-{seed}", seed, corpus, encoders) for seed in seeds]
    summary = {"seeds": seeds, "test": summarize([run["test"] for run in runs])}
    summary["validation"] = summarize([run["validation"] for run in runs])
    if PartialState().is_main_process:
        write_json(Path(output_dir) / "summary.json", summary)
    return summary


def digests(output_dir: Path) -> dict[str, str]:
    """Hashes of files of a finished run, so that a report notices if one is changed later."""
    return {name: file_digest(output_dir / name) for name in ("run.yaml", "predictions.parquet")}


def _plot_confusion(confusion: list[list[int]], label_names: list[str], path: Path):
    """Plot the confusion matrix for the card, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib"):
        write_atomically(path, lambda partial: confusion_figure(confusion, label_names).savefig(partial, format="png"))
