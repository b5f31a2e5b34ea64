"""All stages in turn: encoders, their vectors, the conversation model. Finished stages are skipped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from ..base.errors import InputError
from ..base.files import check_output_folder
from ..base.modalities import MODALITIES
from ..corpora.dialogues import load_dialogues
from ..encoders.embedding import RECORD, embed_corpus
from ..evaluation.predictions import summarize
from .encoder_experiment import check_same_corpus, fold_folders, load_encoder, train_encoder
from .experiment import run_experiment, run_seeds, say_shortcomings
from .preflight import check_run, encoder_folder, named_encoders, with_turns
from .recipe import Recipe
from .run_folder import read_results


def embed(
    recipe: Recipe,
    output_dir: str | Path,
    out: str | Path | None = None,
    corpus: datasets.DatasetDict | None = None,
    **options: Any,
) -> Path:
    r"""
    Embed the corpus of the recipe with the encoders in `output_dir`; writes to `out` (by default
    `output_dir/vectors`).

    Raises:
        FileNotFoundError: if an encoder that the recipe names is not trained yet.
        InputError: if vectors are to be cross-fitted on another corpus than the encoders were trained on.
    """
    check_output_folder(out or output_dir, [recipe.corpus_path() if corpus is None else None])
    if not named_encoders(recipe):
        raise InputError(f"{recipe.source}: no section of an encoder, so nothing makes vectors")
    source = load_dialogues(recipe.corpus_path() if corpus is None else corpus)
    modalities = with_turns(named_encoders(recipe), source)
    if not modalities:
        raise InputError(f"{recipe.source}: no turn of the corpus has {' or '.join(named_encoders(recipe))}")
    encoders, fold_encoders = {}, {}
    for modality in modalities:
        folder = encoder_folder(output_dir, modality)
        folds = recipe.sections[MODALITIES[modality].encoder].get("folds") or 0  # a trained encoder needs no backbone
        for each in (folder, *fold_folders(folder, folds)):
            if not (each / "results.json").is_file():
                raise FileNotFoundError(
                    f"No trained encoder of {modality} in '{each}'; train it first (mister-e train_encoder)"
                )
        encoders[modality] = load_encoder(folder)
        if folds:
            check_same_corpus(folder, source)
            fold_encoders[modality] = [load_encoder(each)[0] for each in fold_folders(folder, folds)]
    out = out or Path(output_dir) / "vectors"
    options.setdefault("use_cpu", bool(recipe.sections["training"].get("use_cpu")))
    return embed_corpus(source, encoders, out, fold_encoders=fold_encoders, **options)


def train(recipe: Recipe, output_dir: str | Path, seeds: Sequence[int] = (0,)) -> dict[str, Any]:
    r"""
    Train all stages on a corpus of dialogues, or stage 2 on a corpus of vectors. Everything is built and checked
    before the first step ([`~mister_e_hf.training.preflight.check_run`]).

    Returns:
        the summary of stage 2, as [`~mister_e_hf.training.experiment.run_seeds`] returns it.
    """
    output_dir, plan = Path(output_dir), check_run(recipe, output_dir, seeds)
    recipe, corpus, modalities = plan.recipe, plan.corpus, plan.modalities
    if plan.vectors is not None:
        say_shortcomings(recipe, plan.vectors)
        modalities = _own_vectors(recipe.corpus_path(), output_dir)
    else:
        assert corpus is not None
        for modality in modalities:
            train_encoder(recipe, modality, encoder_folder(output_dir, modality), corpus=corpus)
        recipe.set("corpus.path", str(embed(recipe, output_dir, corpus=corpus)))
    # What the recipe states about the origin of vectors does not hold for those that this run's encoders made.
    stated = recipe.sections["corpus"].pop("vectors", None) or {}
    if others := {name: text for name, text in stated.items() if name not in modalities}:
        recipe.sections["corpus"]["vectors"] = others
    encoders = {modality: encoder_folder(output_dir, modality) for modality in modalities}
    for modality, folder in encoders.items():
        results = read_results(folder)
        assert results is not None  # the encoder is trained
        recipe.set(f"model.{MODALITIES[modality].width}", results["embedding_dim"])
    if len(seeds) > 1:
        return run_seeds(recipe, output_dir, list(seeds), encoders, plan.vectors)
    return {"test": summarize([run_experiment(recipe, output_dir, seeds[0], plan.vectors, encoders)["test"]])}


def _own_vectors(vectors: str, output_dir: Path) -> list[str]:
    """The modalities whose vectors were made by the encoders in `output_dir`."""
    record = Path(vectors).expanduser() / RECORD
    if not record.is_file():
        return []
    made = json.loads(record.read_text(encoding="utf-8"))["encoders"]
    return [
        modality
        for modality, fingerprint in made.items()
        if (results := read_results(encoder_folder(output_dir, modality))) and results["fingerprint"] == fingerprint
    ]
