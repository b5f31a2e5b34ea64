"""Write the report of an ablation study: a self-contained HTML page, and the same as Markdown, JSON and CSV tables."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from ...base.errors import MissingLibraryError
from ...base.files import write_json
from ...base.whole_files import write_atomically
from ..study import Study
from ..study_reader import read_study
from .method import method, provenance
from .sections import Section, report_sections
from .table import Table

_LONGEST = 30  # rows of a table that is collapsed in the page, for it to be in Markdown
_TEMPLATE = Path(__file__).with_name("page.html.jinja")


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


def markdown_table(table: Table) -> str:
    """The cells of a table in Markdown, or why it has none."""
    if table.gap:
        return f"Not made: {table.gap}."
    return markdown_lines([list(table.columns), ["---"] * len(table.columns), *table.cells()])


def markdown_lines(lines: list[list[str]]) -> str:
    """A Markdown table of these cells, the second line being the rule below the header."""
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


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
            yield _rows_elsewhere(section, table) or markdown_table(table)
    yield "## How the scores were computed"
    yield from method(study)
    yield "\n".join(f"- {heading}: {text}" for heading, text in provenance(study).items())
    yield "## What is missing"
    gaps = [gap for section in sections for gap in section.gaps]
    yield "\n".join(f"- {line}" for line in [*gaps, *study.problems]) or "Nothing."


def _rows_elsewhere(section: Section, table: Table) -> str | None:
    """Where a table is that is too long to be read in Markdown; None if it is not."""
    if not table.long or len(table.records) <= _LONGEST:
        return None
    return f"Its {len(table.records):,} rows are in `tables/{section.stage}-{table.name}.csv` and in `report.html`."


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
