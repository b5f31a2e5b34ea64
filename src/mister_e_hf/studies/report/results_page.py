"""Write RESULTS.md: the scores of several studies on one page, with the table that the README repeats."""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from ...base.errors import InputError
from ...base.files import check_output
from ...base.score_names import score_title
from ...base.whole_files import write_atomically
from ...corpora.licences import published_of_name
from ..study import Study
from ..study_reader import read_study
from .cells import NOTHING
from .method import method, provenance
from .page import markdown_lines, markdown_table
from .score_tables import StageScores, further_tables
from .score_tables import main_table as stage_main_table
from .sections import STAGE_TITLES

_START, _END = "<!-- main table -->", "<!-- end of the main table -->"


def write_results(outs: list[str | Path], path: str | Path) -> Path:
    r"""
    Write the main and ablation tables of several studies into one Markdown file, with the method and the provenance.

    Args:
        outs: folders of the studies, in the order of the page.
        path: the Markdown file.

    Returns:
        path of the file.

    Raises:
        InputError: if the file cannot be written or is in the folder of a study.
        FileNotFoundError, InputError: if a folder is not a study, or is damaged; see [`read_study`].
    """
    path = check_output(path, outs)
    studies = [read_study(out) for out in outs]
    if not studies:
        raise InputError("No study was given, so there are no results to write")
    text = "\n\n".join(_parts(studies)) + "\n"
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    return path


def main_table(studies: list[Study]) -> str:
    """
    Weighted F1 alone, or MAE of scores, a row per system and a column per corpus, between comments that
    [`main_table_in`] finds.
    """
    columns: list[str] = []
    rows: dict[str, dict[int, str]] = {}
    for study in studies:
        stage = "" if study.latest.name == "final" else f", {STAGE_TITLES[study.latest.name].lower()}"
        title = score_title(study.measures.main)
        unit = "" if study.measures.task == "classification" else f", {title}"
        for suffix, scores in _views(study):
            columns.append(f"{study.corpus}{stage}{suffix}{unit}")
            table = stage_main_table(scores, suffix)
            for record in table.records:
                shown = {name: show(record) for name, show in table.columns.items()}
                rows.setdefault(shown["system"], {})[len(columns)] = shown[title]
    cells = [[name, *(row.get(place + 1, NOTHING) for place in range(len(columns)))] for name, row in rows.items()]
    lines = [["system", *columns], ["---"] * (1 + len(columns)), *cells]
    return "\n\n".join([_START, markdown_lines(lines), _END])


def main_table_in(text: str) -> str | None:
    """The block that [`main_table`] writes, from the text of a page; None if it has none."""
    found = re.search(f"{re.escape(_START)}.*?{re.escape(_END)}", text, flags=re.DOTALL)
    return found and found.group()


def _views(study: Study) -> Iterator[tuple[str, StageScores]]:
    for suffix, labels in study.latest.views().items():
        yield suffix, StageScores(study, study.latest, labels)


def _parts(studies: list[Study]) -> Iterator[str]:
    yield "# Results"
    yield (
        f"Written on {date.today().isoformat()} with `mister-e report`, from the predictions of every run. F1 in per "
        "cent, mean ± sample standard deviation over seeds; N is the number of turns scored."
    )
    tasks = {study.measures.task for study in studies}
    or_error = "" if tasks == {"classification"} else ", or its mean absolute error (MAE) where scores are predicted"
    yield f"Weighted F1 of every system{or_error}:"
    yield main_table(studies)
    for study in studies:
        recipe, stage = study.settings.get("recipe_name") or "not named", STAGE_TITLES[study.latest.name].lower()
        for suffix, scores in _views(study):
            yield f"{study.corpus}, {stage}{suffix} (recipe `{recipe}`):"
            yield markdown_table(stage_main_table(scores, suffix))
    for study in studies:
        yield f"## {study.corpus}"
        for suffix, scores in _views(study):
            for table in further_tables(scores, suffix):
                yield f"### {table.title}"
                yield table.note
                yield markdown_table(table)
        yield f"### How the scores of {study.corpus} were computed"
        yield from method(study)
        yield "\n".join(f"- {heading}: {text}" for heading, text in provenance(study).items())
        yield "### Who can reproduce them"
        published = published_of_name(study.corpus)
        yield "Anyone who has the corpus." if published is None else published.remaking
        if study.problems:
            yield "### What is missing"
            yield "\n".join(f"- {problem}" for problem in study.problems)
