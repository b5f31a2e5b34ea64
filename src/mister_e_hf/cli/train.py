"""The commands `mister-e init`, `train`, `train_encoder` and `embed`."""

import argparse

from ..base.chatter import hide_unnamed_bars
from ..base.modalities import MODALITIES
from .output import add_media_policies, print_result, print_result_once


def add_training_commands(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser):
    """Add the commands that train: a recipe, all stages, or one of them."""
    init = commands.add_parser("init", parents=[shared], help="write a recipe for your own corpus")
    init.add_argument(
        "corpus",
        help="corpus of dialogues (as `mister-e corpus` writes it) or of vectors: a folder, or its id on the Hub",
    )
    init.add_argument("--out", help="YAML file to write (default: the name of the folder with .yaml)")
    init.add_argument(
        "--targets", nargs="+", metavar="COLUMN", help="columns of scores to predict (default: the corpus's classes)"
    )
    init.add_argument(
        "--speech_columns",
        nargs="+",
        metavar="NAME",
        help="columns of the corpus's speech vectors to keep, by name (default: all)",
    )
    init.set_defaults(run=_init)
    common = argparse.ArgumentParser(add_help=False, parents=[shared])
    common.add_argument(
        "recipe",
        help="recipe: a YAML file with the sections model, corpus and training, and "
        f"{', '.join(each.encoder for each in MODALITIES.values())} for stage 1; or the name of a recipe of this "
        "package, such as own-small",
    )
    common.add_argument("--output_dir", help="folder of the run (default: runs/NAME-OF-THE-RECIPE)")
    common.set_defaults(takes_fields=True)
    rest = (
        "Any other --field VALUE overrides the recipe, e.g. --learning_rate 1e-4 --text_encoder.tuning full, or "
        "--corpus FOLDER, a corpus of dialogues or of vectors."
    )
    train = commands.add_parser(
        "train",
        parents=[common],
        epilog=f"{rest} --pretrained FOLDER begins from the weights of `mister-e pretrain`.",
        help="run all stages of a recipe: encoders, vectors, conversation model (resumes)",
    )
    train.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="random seeds; several are written to OUTPUT_DIR/seed-N/ (default: 0)",
    )
    train.add_argument(
        "--dry_run",
        action="store_true",
        help="check everything, run one step of each stage on this device, and print memory and time; write nothing",
    )
    train.add_argument(
        "--threads",
        type=int,
        help="number of CPU threads (default: OMP_NUM_THREADS, else one for a small model of stage 2)",
    )
    train.set_defaults(run=_train)
    pretrain = commands.add_parser(
        "pretrain",
        parents=[common],
        epilog="Any other --field VALUE overrides the section pretraining of the recipe, e.g. --mask_rate 0.3, or "
        "another section by its name, e.g. --model.hidden_size 128. Then: mister-e train RECIPE --pretrained FOLDER",
        help="pre-train the model of a recipe on dialogues whose labels are not read (resumes)",
    )
    pretrain.add_argument(
        "--corpus", nargs="+", metavar="CORPUS", help="corpora of vectors, one or several (default: the recipe's)"
    )
    pretrain.add_argument(
        "--splits",
        nargs="+",
        default=["train"],
        choices=["train", "validation", "test"],
        help="splits to train on (default: train; validation then chooses the epoch)",
    )
    pretrain.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    pretrain.add_argument(
        "--dry_run",
        action="store_true",
        help="check everything, run one step on this device, and print memory and time; write nothing",
    )
    pretrain.set_defaults(run=_pretrain)
    encoder = commands.add_parser("train_encoder", parents=[common], epilog=rest, help="train one encoder of stage 1")
    encoder.add_argument("--modality", choices=list(MODALITIES), required=True, help="modality of the encoder")
    encoder.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    encoder.set_defaults(run=_train_encoder)
    embed = commands.add_parser(
        "embed", parents=[common], epilog=rest, help="compute the vectors of a corpus with trained encoders"
    )
    embed.add_argument("--out", help="folder for the vectors (default: OUTPUT_DIR/vectors)")
    add_media_policies(embed)
    embed.add_argument(
        "--num_workers", type=int, default=0, help="number of processes that decode audio and video (default: 0)"
    )
    embed.add_argument(
        "--token_budget", type=int, default=8192, help="largest batch of transcripts, in tokens (default: 8192)"
    )
    embed.add_argument(
        "--second_budget", type=float, default=120.0, help="largest batch of audio, in seconds (default: 120)"
    )
    embed.add_argument("--frame_budget", type=int, default=64, help="largest batch of video, in frames (default: 64)")
    embed.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="computation dtype (default: bfloat16 on a GPU that supports it, else that of the encoder)",
    )
    embed.set_defaults(run=_embed)


def _init(arguments: argparse.Namespace):
    from ..training.recipe_init import described, init_recipe

    path, recipe = init_recipe(arguments.corpus, arguments.out, arguments.targets, arguments.speech_columns)
    found = described(recipe)
    lines = [f"{name:7} {', '.join(each) if isinstance(each, list) else each}" for name, each in found.items()]
    print_result("\n".join([*lines, f"in {path}; next: mister-e train {path}"]), **found, recipe=str(path))


def _recipe(arguments: argparse.Namespace):
    from pathlib import Path

    from ..training.recipe import Recipe

    hide_unnamed_bars()
    recipe = Recipe.load(arguments.recipe, arguments.overrides)
    return recipe, Path(arguments.output_dir or Path("runs") / Path(arguments.recipe).stem)


def _train(arguments: argparse.Namespace):
    from ..evaluation.predictions import format_results
    from ..training.stages import train

    recipe, folder = _recipe(arguments)
    if arguments.threads is not None:
        _use_threads(arguments.threads)
    if arguments.dry_run:
        from ..training.dry_run import dry_run

        return _print_costs(dry_run(recipe, folder, arguments.seeds))
    summary = train(recipe, folder, arguments.seeds)
    print_result_once(f"{format_results(summary)}\nin {folder}", **summary, folder=str(folder))


def _use_threads(count: int):
    from ..base.errors import InputError
    from ..base.threads import use_threads

    if not 1 <= count <= 1024:
        raise InputError(f"--threads must be a whole number from 1 to 1,024, got {count}")
    use_threads(count)


def _print_costs(costs: list[dict]):
    from ..training.dry_run import format_costs

    print_result_once(format_costs(costs), stages=costs, hours=sum(cost["hours"] for cost in costs))


_PRETRAINING_SCORES = {
    "reconstruction_loss": "squared error of hidden vectors; 1 if each is guessed as the mean",
    "contrastive_loss": "InfoNCE: finding a turn's other modality among the turns of a batch",
    "contrastive_chance": "InfoNCE of a model that finds nothing",
}


def _pretrain(arguments: argparse.Namespace):
    from ..training.pretraining import pretrain
    from ..training.recipe_sections import PRETRAINING

    def in_full(word: str) -> str:
        name = word.removeprefix("--").partition("=")[0]
        own = word.startswith("--") and name in PRETRAINING["pretraining"]
        return f"--pretraining.{word.removeprefix('--')}" if own else word

    arguments.overrides = list(map(in_full, arguments.overrides))
    recipe, folder = _recipe(arguments)
    run = recipe, folder, arguments.corpus, arguments.splits, arguments.seed
    if arguments.dry_run:
        from ..training.dry_run import dry_run_of_pretraining

        return _print_costs(dry_run_of_pretraining(*run))
    results = pretrain(*run)
    scores = results["validation"] or {"loss (training)": results["history"][-1]["loss"]}
    lines = [
        f"{name.replace('_', ' '):28} {value:.4f}  {_PRETRAINING_SCORES.get(name, '')}".rstrip()
        for name, value in scores.items()
    ]
    print_result_once("\n".join([*lines, f"in {folder}"]), **results, folder=str(folder))


def _train_encoder(arguments: argparse.Namespace):
    from ..training.encoder_experiment import train_encoder
    from ..training.run_folder import headline
    from ..training.stages import encoder_folder

    recipe, folder = _recipe(arguments)
    folder = encoder_folder(folder, arguments.modality)
    results = train_encoder(recipe, arguments.modality, folder, arguments.seed)
    scores = [f"{name} {headline(results[name])}" for name in ("validation", "test") if name in results]
    print_result_once(f"{', '.join(scores)}\nin {folder}", **results, folder=str(folder))


def _embed(arguments: argparse.Namespace):
    import torch

    from ..training.stages import embed

    recipe, folder = _recipe(arguments)
    names = ("bad_audio", "bad_video", "num_workers", "token_budget", "second_budget", "frame_budget")
    options = {name: getattr(arguments, name) for name in names}
    dtype = arguments.dtype and getattr(torch, arguments.dtype)
    vectors = embed(recipe, folder, arguments.out, dtype=dtype, **options)
    print_result_once(f"vectors in {vectors}", folder=str(vectors))
