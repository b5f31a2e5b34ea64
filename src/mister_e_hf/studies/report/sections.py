"""The sections of a study's report, and the tables of each."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..measures import ScoreMeasures
from ..study import FULL, Stage, Study
from .model_tables import calibration_tables, confusion_table
from .regression_tables import (
    bins_table,
    coverage_table,
    error_table,
    predicted_table,
    target_table,
)
from .robustness_tables import robustness_tables
from .run_tables import cost_table, learning_table, systems_table
from .score_tables import StageScores, class_table, further_tables, main_table, seed_table
from .table import Table
from .weight_tables import weight_tables

STAGE_TITLES = {"final": "Test", "development": "Development"}


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
    if isinstance(measures, ScoreMeasures):
        yield predicted_table(measures, stage, full)
        yield error_table(measures, stage, full)
        yield from weight_tables(measures, stage, full)
        return
    yield confusion_table(study, stage, full)
    yield from weight_tables(measures, stage, full)
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
