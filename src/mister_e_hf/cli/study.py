"""The commands `mister-e search`, `ablate` and `report`."""

import argparse
import logging

from ..base.chatter import hide_unnamed_bars
from ..base.progress import line
from .output import Failure, print_result


def add_study_commands(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser):
    """Add the commands that compare models and report on them."""
    study = argparse.ArgumentParser(add_help=False, parents=[shared])
    study.add_argument("recipe", help="recipe: a YAML file, or the name of a recipe of this package")
    study.add_argument("--out", required=True, help="folder of the study")
    study.add_argument(
        "--folds",
        type=int,
        default=4,
        help="number of folds of the development data (default: 4); 1: train on train and score validation",
    )
    study.add_argument("--jobs", type=int, default=1, help="number of runs at the same time (default: 1)")
    study.set_defaults(takes_fields=True)
    rest = "Any other --field VALUE overrides the recipe."
    search = commands.add_parser(
        "search",
        parents=[study],
        epilog=rest,
        help="random hyper-parameter search with the same budget for every model, on folds of the development data",
    )
    search.add_argument(
        "--trials",
        type=int,
        default=8,
        help="number of trials per model; the first one is the recipe's own (default: 8)",
    )
    search.add_argument("--systems", nargs="+", metavar="NAME", help="models to search (default: all)")
    search.set_defaults(run=_search)
    ablate = commands.add_parser(
        "ablate",
        parents=[study],
        epilog=rest,
        help="run an ablation study: variants of a recipe and baselines, on folds of the development data (resumes)",
    )
    ablate.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="random seeds (default: 0 1 2 3 4)"
    )
    ablate.add_argument("--variants", nargs="+", metavar="NAME", help="variants and baselines to run (default: all)")
    ablate.add_argument(
        "--final",
        action="store_true",
        help="freeze the recipes, with the date, and score the test split instead of the folds",
    )
    ablate.set_defaults(run=_ablate)
    report = commands.add_parser("report", parents=[shared], help="write tables and plots of ablation studies")
    report.add_argument(
        "studies", nargs="+", metavar="OUT", help="folders of studies; each report is written into its folder"
    )
    report.add_argument("--results", metavar="RESULTS.md", help="file to write the tables of all studies to")
    report.set_defaults(run=_report)


def _warn_of_own_training(recipe, words: list[str], chosen: list[str] | None, prefix: str):
    """Report options that the baselines of a study do not follow."""
    from ..training.recipe_baselines import compared_models, kept_values

    names = [each.name for each in compared_models(recipe)]
    for sentence in kept_values(recipe, words, [name for name in names if not chosen or prefix + name in chosen]):
        logging.getLogger(__name__).warning("%s", sentence)


def _search(arguments: argparse.Namespace):
    from ..studies.search import failed_trials, format_trials, search
    from ..training.recipe import Recipe

    hide_unnamed_bars()
    recipe = Recipe.load(arguments.recipe, arguments.overrides)
    _warn_of_own_training(recipe, arguments.overrides, arguments.systems, "")
    names = ("out", "trials", "systems", "folds", "jobs")
    scored = search(recipe, **{name: getattr(arguments, name) for name in names}, report=line)
    print_result(f"{format_trials(scored)}\nin {arguments.out}", trials=scored, folder=arguments.out)
    if failed := failed_trials(scored):
        raise Failure(f"{len(failed)} trials have failed runs; run the same command again to retry them")


def _ablate(arguments: argparse.Namespace):
    from ..studies.ablation import ablate
    from ..studies.study import BASELINE
    from ..training.recipe import Recipe

    hide_unnamed_bars()
    recipe = Recipe.load(arguments.recipe, arguments.overrides)
    _warn_of_own_training(recipe, arguments.overrides, arguments.variants, BASELINE)
    names = ("out", "seeds", "folds", "variants", "final", "jobs")
    failed = ablate(recipe, **{name: getattr(arguments, name) for name in names}, report=line)
    print_result(f"in {arguments.out}; next: mister-e report {arguments.out}", folder=arguments.out, failed=failed)
    if failed:
        raise Failure(f"{len(failed)} runs failed: {', '.join(failed)}; run the same command again to retry them")


def _report(arguments: argparse.Namespace):
    from ..base.files import check_output
    from ..studies.report.page import write_report
    from ..studies.report.results_page import write_results

    if arguments.results:
        check_output(arguments.results, arguments.studies)
    written = [str(write_report(folder)) for folder in arguments.studies]
    if arguments.results:
        written.append(str(write_results(arguments.studies, arguments.results)))
    print_result("\n".join(written), files=written)
