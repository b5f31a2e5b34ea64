"""Write the report of an ablation study: a self-contained HTML page, and the same as Markdown, JSON and CSV tables."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from ...base.errors import MissingLibraryError
from ...base.files import write_atomically, write_json
from ...base.modalities import MODALITIES
from ...evaluation.significance import DRAWS
from ..measures import TITLES, ScoreMeasures
from ..study import FULL, LABEL_LEAKAGE, Stage, Study
from ..study_reader import read_study
from .model_tables import calibration_tables, confusion_table, gate_by_emotion_table, gate_by_right_expert_table
from .regression_tables import (
    bins_table,
    coverage_table,
    error_table,
    gate_by_closest_expert_table,
    gate_by_true_score_table,
    predicted_table,
    target_table,
)
from .robustness_tables import robustness_tables
from .run_tables import cost_table, learning_table, systems_table
from .score_tables import StageScores, class_table, further_tables, main_table, seed_table
from .table import Table

STAGE_TITLES = {"final": "Test", "development": "Development"}
_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass
class Section:
    """The part of the report that is about one stage."""

    stage: str
    tables: list[Table]

    @property
    def title(self) -> str:
        return STAGE_TITLES[self.stage]

    @property
    def gaps(self) -> list[str]:
        return [f"{self.title}: {table.title}: {table.gap}" for table in self.tables if table.gap]


def write_report(out: str | Path) -> Path:
    r"""
    Write `report.html`, `report.md`, `report.json` and `tables/STAGE-TABLE.csv` into a study's folder.

    All tables are of the final stage if test was scored, else of development, whose scores are reported in any case.

    Returns:
        the path of `report.html`.

    Raises:
        MissingLibraryError: if matplotlib is not installed.
        FileNotFoundError, InputError: if the folder is not a study, or is damaged; see [`read_study`].
    """
    try:
        from .figures import table_figures, to_svg
    except ImportError:
        raise MissingLibraryError("A report needs matplotlib: pip install matplotlib") from None
    out = Path(out)
    study = read_study(out)
    sections = report_sections(study)
    plots = {}
    for section in sections:
        for table in section.tables:
            anchor = f"{section.stage}-{table.name}"
            plots[anchor] = [
                (caption, to_svg(figure, f"{anchor}-{number}", caption))
                for number, (caption, figure) in enumerate(table_figures(table))
            ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        study=study, sections=sections, plots=plots, method=method(study), provenance=provenance(study)
    )
    (out / "tables").mkdir(exist_ok=True)
    for section in sections:
        for table in section.tables:
            write_atomically(out / "tables" / f"{section.stage}-{table.name}.csv", partial(_write_csv, table))
    write_json(out / "report.json", _as_json(study, sections))
    for name, text in {"report.md": _markdown(study, sections), "report.html": page}.items():
        write_atomically(out / name, partial(_write_text, text))
    return out / "report.html"


def report_sections(study: Study) -> list[Section]:
    """The latest stage with all tables; then development with its scores, if that is another stage."""
    stages = [study.latest] + [stage for stage in study.stages.values() if stage is not study.latest]
    return [Section(stage.name, list(stage_tables(study, stage, stage is study.latest))) for stage in stages]


def stage_tables(study: Study, stage: Stage, everything: bool = True) -> Iterator[Table]:
    """Yield the tables of scores of a stage; with `everything` also those of the full model and its runs."""
    measures = study.measures
    for suffix, labels in stage.views().items():
        scores = StageScores(study, stage, labels)
        if scores.names("full") or scores.names("baseline"):
            yield main_table(scores, suffix)
        yield from further_tables(scores, suffix)
        if everything and not suffix:
            yield from _tables_of_all_systems(scores)
    if everything:
        if isinstance(measures, ScoreMeasures):
            yield coverage_table(measures, stage)
        if FULL in stage.asked:
            yield from _tables_of_full(study, stage)
        yield from robustness_tables(study, stage)
        if FULL in stage.asked:
            yield learning_table(stage.systems.get(FULL), measures)
        yield cost_table(study, stage)
    yield systems_table(study, stage)


def _tables_of_full(study: Study, stage: Stage) -> Iterator[Table]:
    """Yield the tables of the full model's predictions."""
    measures, full = study.measures, stage.systems.get(FULL)
    has_gate = full is None or full.gate_weights is not None
    if isinstance(measures, ScoreMeasures):
        yield predicted_table(measures, stage, full)
        yield error_table(measures, stage, full)
        if has_gate:
            yield gate_by_true_score_table(measures, stage, full)
            yield gate_by_closest_expert_table(measures, stage, full)
        return
    yield confusion_table(study, stage, full)
    if has_gate:
        yield gate_by_emotion_table(study, stage, full)
        yield gate_by_right_expert_table(stage, full)
    yield from calibration_tables(stage, full)


def _tables_of_all_systems(scores: StageScores) -> Iterator[Table]:
    if isinstance(scores.measures, ScoreMeasures):
        if len(scores.measures.names) > 1:
            yield target_table(scores)
        if scores.measures.binned:
            yield bins_table(scores)
    else:
        yield class_table(scores)
    yield seed_table(scores)


def method(study: Study) -> list[str]:
    """How the scores were computed, one string per paragraph."""
    settings, paragraphs = study.settings, []
    seeds = ", ".join(map(str, settings["seeds"]))
    if "development" in study.stages:
        chosen = _any_result(study, "development", "best_epoch")
        paragraphs.append(
            f"Development: train and validation together are split into {settings['folds']} folds by "
            f"{settings.get('fold_by', 'dialogue')}. Each seed ({seeds}) is trained once per fold without it and then "
            "predicts it, so that every turn is predicted once by a model that was not trained on its dialogue; a "
            "seed's score is that of all these predictions together. Settings were chosen on these folds, so the "
            "scores are slightly optimistic, and p-values on them are descriptive only. "
            + (f"{LABEL_LEAKAGE} " if settings.get("vectors_knew_labels") else "")
            + (
                "The epoch is chosen within each run."
                if chosen
                else "The last epoch is used: none is chosen on the turns that are scored."
            )
        )
    if "final" in study.stages:
        chosen = _any_result(study, "final", "best_epoch")
        best = f"The epoch with the best {TITLES[study.measures.main]} on validation is used. "
        epoch = best if chosen else "The last epoch is used. "
        frozen = (
            f"Every variant was frozen on {study.frozen['date']}, before a run of the study scored test."
            if study.frozen
            else ""
        )
        paragraphs.append(f"Test: each seed ({seeds}) is trained on train and predicts test once. {epoch}{frozen}")
    elif study.frozen:
        paragraphs.append(f"Every variant was frozen on {study.frozen['date']}; no run on test is finished.")
    else:
        paragraphs.append("Test has not been scored.")
    paragraphs += [
        "Each system's score is the mean over its seeds, ± the sample standard deviation. Intervals are 95 % "
        f"percentile intervals of the bootstrap ({DRAWS:,} draws): a draw takes dialogues with replacement and, "
        "independently, seeds with replacement, the same ones for every system, so that differences are paired (Efron "
        "and Tibshirani 1993). With few seeds their spread is underestimated, so intervals over them are rather too "
        "narrow.",
        "With k the smaller of the numbers of draws with a difference ≤ 0 and ≥ 0 out of R, p = min(1, 2 (1 + k) / "
        "(1 + R)), two-sided. Holm's correction (1979) is over the ablations and over the baselines separately. The "
        f"tests are of {TITLES[study.measures.main]}. Two systems are compared over the seeds that both have.",
    ]
    if isinstance(study.measures, ScoreMeasures):
        paragraphs.append(
            "MAE is the mean absolute error in the unit of the target, of which less is better; Corr is Pearson's "
            "correlation; CCC is the concordance correlation of Lin (1989), which also falls with a wrong mean or "
            "spread. A turn without a score of a target is left out of that target. With several targets a score is "
            "the mean of theirs."
        )
    return paragraphs


def provenance(study: Study) -> dict[str, str]:
    """Recipe, commits, versions and data from which the scores were computed, by heading."""
    settings, frozen = study.settings, study.frozen or {}
    found = {"recipe": settings.get("recipe_name") or "not named"}
    if frozen:
        found["frozen"] = f"{frozen.get('date', 'on an unknown day')}, commit {frozen.get('git_commit') or 'unknown'}"
    for stage in study.stages.values():
        runs = [run for system in stage.systems.values() for runs in system.results for run in runs]
        for heading, values in {
            "commit": {run.get("git_commit") or "unknown" for run in runs},
            "versions": {
                ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()) for run in runs
            },
        }.items():
            found[f"{heading} of {STAGE_TITLES[stage.name].lower()} runs"] = (
                "; ".join(sorted(filter(None, values))) or "unknown"
            )
    for split, fingerprint in settings.get("data_fingerprints", {}).items():
        found[f"fingerprint of {split}"] = fingerprint
    described = settings.get("vectors") or {}
    there = settings.get("modalities") or ("speech", "text")  # studies of older versions had these two
    for modality in MODALITIES:
        if modality in there or modality in described:
            found[f"{modality} vectors"] = described.get(modality) or "source not recorded"
    return found


def markdown_table(table: Table) -> str:
    """The cells of a table in Markdown, or why it has none."""
    if table.gap:
        return f"Not made: {table.gap}."
    return markdown_lines([list(table.columns), ["---"] * len(table.columns), *table.cells()])


def markdown_lines(lines: list[list[str]]) -> str:
    """A Markdown table of these cells, the second line being the rule below the header."""
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _any_result(study: Study, stage: str, field: str) -> bool:
    systems = study.stages[stage].systems.values()
    return any(run.get(field) is not None for system in systems for runs in system.results for run in runs)


def _markdown(study: Study, sections: list[Section]) -> str:
    return "\n\n".join(_markdown_parts(study, sections)) + "\n"


def _markdown_parts(study: Study, sections: list[Section]) -> Iterator[str]:
    yield f"# Ablation study, {study.corpus}"
    yield "The plots are in `report.html`, the numbers of every table in `report.json` and `tables/`."
    for section in sections:
        yield f"## {section.title}"
        for table in section.tables:
            yield f"### {table.title}"
            yield table.note
            yield markdown_table(table)
    yield "## How the scores were computed"
    yield from method(study)
    yield "\n".join(f"- {heading}: {text}" for heading, text in provenance(study).items())
    yield "## What is missing"
    gaps = [gap for section in sections for gap in section.gaps]
    yield "\n".join(f"- {line}" for line in [*gaps, *study.problems]) or "Nothing."


def _as_json(study: Study, sections: list[Section]) -> dict[str, Any]:
    return {
        "corpus": study.corpus,
        "provenance": provenance(study),
        "method": method(study),
        "stages": {
            section.stage: {
                table.name: {"title": table.title, "note": table.note, "gap": table.gap, "records": table.records}
                for table in section.tables
            }
            for section in sections
        },
        "missing": [gap for section in sections for gap in section.gaps] + study.problems,
    }


def _write_text(text: str, path: Path):
    path.write_text(text, encoding="utf-8")


def _write_csv(table: Table, path: Path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, fieldnames=list(table.records[0]) if table.records else ["gap"], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(table.records or [{"gap": table.gap}])
