"""Runs that pre-train first, on their own training dialogues alone: `training.pretrained: self`.

So no run has seen the dialogues that it is scored on, on folds either, where a folder of `mister-e pretrain` may have
seen them without their labels.
"""

from pathlib import Path

from transformers import PreTrainedModel, set_seed

from ..base.errors import InputError
from ..vectors.dialogue_vectors import DialogueVectors
from ..vectors.pooled import check_unique_in_all, pool, read_pooled
from .dialogue_trainer import DialogueTrainingArguments
from .pretrained_start import OWN, new_model
from .pretraining import further_corpora, pretrain_on, pretraining_arguments
from .recipe import Recipe
from .recipe_widths import picked_columns

OWN_FOLDER = "pretraining"  # within the folder of the run


def pretraining_of_run(recipe: Recipe, output_dir: str | Path) -> str | None:
    """Where the pre-training model is that a run has begun from; None without one."""
    given = recipe.sections["training"].get("pretrained")
    return str(Path(output_dir) / OWN_FOLDER) if given == OWN else given


def model_of_run(recipe: Recipe, arguments: DialogueTrainingArguments, train: DialogueVectors) -> PreTrainedModel:
    r"""
    A new model for a run.

    Args:
        recipe: with `training.pretrained: self` its model is pre-trained, to the last epoch, on `train` and on train
            of `pretraining.corpora`. Of one modality alone it is pre-trained without the contrastive term.
        arguments: those of the run, whose folder gets a folder of the pre-training, which is not repeated when the run
            resumes.
        train: its training dialogues.
    """
    if recipe.sections["training"].get("pretrained") != OWN:
        return recipe.model()
    assert arguments.output_dir is not None
    folder = Path(arguments.output_dir) / OWN_FOLDER
    pretrain_on(
        recipe,
        folder,
        {"train": own_dialogues(recipe, train)},
        [recipe.corpus_path(), *further_corpora(recipe)],
        ("train",),
        arguments.seed,
        save_strategy="no",
        **own_changes(recipe),
        use_cpu=arguments.use_cpu,
        disable_tqdm=arguments.disable_tqdm,
    )
    set_seed(arguments.seed)  # the heads are the same whether or not the pre-training was finished before
    return new_model(recipe.model_config(), str(folder))


def check_own_pretraining(recipe: Recipe, output_dir: str | Path):
    r"""
    Check the section `pretraining` of a recipe whose runs pre-train first; nothing to check for others.

    Raises:
        FileNotFoundError: if one of its corpora, or the train split of one, is missing.
        InputError: naming the corpus, if one of them cannot be read, has vectors of another width than the model
            reads, or holds a dialogue of the recipe's corpus, of any split: a run could then see what scores it.
    """
    if recipe.sections["training"].get("pretrained") != OWN:
        return
    pretraining_arguments(recipe, output_dir, 0, **own_changes(recipe))
    if not (further := further_corpora(recipe)):
        return
    pooled = read_pooled(further, ("train",), picked_columns(recipe))
    for name, width in recipe.model_config().read_widths.items():
        if name in pooled.vectors and (found := pooled.vectors[name].width) != width:
            raise InputError(
                f"{recipe.source}: pretraining.corpora: the {name} vectors of {', '.join(further)} have width "
                f"{found}, those that the model reads {width}. Leave these corpora out"
                + (", or pick columns that all name with corpus.speech_columns" if name == "speech" else "")
            )
    check_unique_in_all([recipe.corpus_path(), *further])


def own_dialogues(recipe: Recipe, train: DialogueVectors) -> DialogueVectors:
    """What a run with these training dialogues pre-trains on."""
    further = further_corpora(recipe)
    return pool([train, *([read_pooled(further, ("train",), picked_columns(recipe))] if further else [])], "train")


def own_changes(recipe: Recipe) -> dict[str, float]:
    """What changes in the section `pretraining`: a model of one modality has no two to compare."""
    return {"contrastive_weight": 0.0} if len(recipe.model_config().modalities) < 2 else {}
