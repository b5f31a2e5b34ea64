import csv
import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from mister_e_hf import cli  # noqa: E402
from mister_e_hf.evaluation.metrics import emotion_scores, expected_calibration_error  # noqa: E402
from mister_e_hf.studies.report.figures import table_figures  # noqa: E402
from mister_e_hf.studies.report.method import method  # noqa: E402
from mister_e_hf.studies.report.page import write_report  # noqa: E402
from mister_e_hf.studies.report.results_page import main_table, main_table_in, write_results  # noqa: E402
from mister_e_hf.studies.report.score_tables import StageScores, ablation_table  # noqa: E402
from mister_e_hf.studies.report.sections import report_sections, stage_tables  # noqa: E402
from mister_e_hf.studies.study_reader import read_study  # noqa: E402
from support.small_study import CURVES, fail, remove, rewrite, write_study  # noqa: E402

TABLES = ["main", "ablations", "classes", "seeds", "confusion", "gate_by_emotion", "gate_by_right_expert"]
TABLES += ["calibration", "reliability", "removed_modalities", "robustness", "learning", "cost", "systems"]
PLOTS = {
    "confusion": 1,
    "gate_by_emotion": 1,
    "gate_by_right_expert": 1,
    "reliability": 1,
    "robustness": 5,
    "learning": 2,
}


class Page(HTMLParser):
    """Tags with their attributes, and the rows of each table by the anchor of its section."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.rows, self.sections, self._cell = [], {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "section":
            self.sections.append(dict(attributes)["id"])
        elif tag == "tr":
            self.rows.setdefault(self.sections[-1], []).append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag == "section":
            self.sections.pop()
        elif tag in ("td", "th"):
            self.rows[self.sections[-1]][-1].append(self._cell)
            self._cell = None


def markdown_rows(text: str) -> list[list[list[str]]]:
    """The tables of a page, row by row, headers first."""
    tables = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    return [
        [line.strip("| ").split(" | ") for number, line in enumerate(table.strip().splitlines()) if number != 1]
        for table in tables
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    out = write_study(tmp_path_factory.mktemp("report") / "study")
    assert write_report(out) == out / "report.html"
    return out


@pytest.fixture
def small(tmp_path) -> Path:
    """To be changed by the test."""
    return write_study(tmp_path / "study", seeds=2, dialogues=6, final=False)


@pytest.fixture(scope="module")
def page(out) -> Page:
    return Page((out / "report.html").read_text())


def test_every_section_has_its_plots(out, page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for anchor in [f"final-{name}" for name in TABLES] + [
        "development-main",
        "development-ablations",
        "method",
        "missing",
    ]:
        assert anchor in ids
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == sum(PLOTS.values())
    tables = {table.name: len(list(table_figures(table))) for table in report_sections(read_study(out))[0].tables}
    assert {name: count for name, count in tables.items() if count} == PLOTS
    assert "Nothing." in (out / "report.html").read_text()


def test_the_page_loads_nothing_from_the_network(out, page):
    text = (out / "report.html").read_text()
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\((?!#)|@import", text)
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    known = {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }  # names of namespaces, which are never loaded
    assert set(re.findall(r"https?://[^\"'\s<)]+", text)) <= known


def test_references_within_plots_are_defined(out, page):
    text, ids = (out / "report.html").read_text(), {attributes.get("id") for _, attributes in page.tags}
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    assert used and used <= ids


def test_the_page_is_accessible(page):
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in page.tags)
    count = {
        tag: sum(tag == other for other, _ in page.tags) for tag in ("table", "caption", "figure", "figcaption", "svg")
    }
    assert count["table"] == count["caption"] and count["figure"] == count["figcaption"] == count["svg"]
    assert all(attributes["aria-label"] for tag, attributes in page.tags if tag == "svg")
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert {attributes["scope"] for attributes in headers} == {"col", "row"}


def test_all_formats_have_the_same_numbers(out, page):
    stored = json.loads((out / "report.json").read_text())
    markdown = (out / "report.md").read_text()
    in_markdown = iter(markdown_rows(markdown))
    for section in report_sections(read_study(out)):
        assert list(stored["stages"][section.stage]) == [table.name for table in section.tables]
        for table in section.tables:
            expected = [list(table.columns), *table.cells()]
            assert page.rows[f"{section.stage}-{table.name}"] == expected
            if table.long and len(table.records) > 30:
                assert f"Its {len(table.records)} rows are in `tables/{section.stage}-{table.name}.csv`" in markdown
            else:
                assert next(in_markdown) == expected
            assert stored["stages"][section.stage][table.name]["records"] == table.records
            with (out / "tables" / f"{section.stage}-{table.name}.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            shown = [{name: "" if v is None else str(v) for name, v in record.items()} for record in table.records]
            assert rows == shown
    assert next(in_markdown, None) is None


def test_scores_equal_the_metrics(out):
    study = read_study(out)
    tables = {table.name: table for table in stage_tables(study, study.latest)}
    full, stage = study.latest.systems["full"], study.latest
    runs = [emotion_scores(stage.labels, values, study.measures.names) for values in full.probabilities]
    main = tables["main"].records[0]
    assert main["weighted_f1"] == pytest.approx(np.mean([run["weighted_f1"] for run in runs]))
    assert main["macro_f1_sd"] == pytest.approx(np.std([run["macro_f1"] for run in runs], ddof=1))
    assert main["weighted_f1_low"] < main["weighted_f1"] < main["weighted_f1_high"]
    assert tables["main"].cells()[0][1] == f"{100 * main['weighted_f1']:.2f} ± {100 * main['weighted_f1_sd']:.2f}"
    assert (main["turns"], main["dialogues"], main["seeds"]) == (54, 6, 3)
    happy = tables["classes"].records[0]["happy"]
    assert happy == pytest.approx(np.mean([run["f1_per_class"]["happy"] for run in runs]))
    counts = np.array([[row[name] for name in study.measures.names] for row in tables["confusion"].records])
    assert counts.sum() == 3 * 54
    shares = [sum(row[f"{name}_share"] for name in study.measures.names) for row in tables["confusion"].records]
    assert shares == pytest.approx(np.ones(6))
    scored = stage.labels >= 0
    errors = [expected_calibration_error(stage.labels[scored], values[scored]) for values in full.probabilities]
    assert tables["calibration"].records[1] == {
        "probabilities": "after temperature",
        "ece": pytest.approx(np.mean(errors)),
        "ece_sd": pytest.approx(np.std(errors, ddof=1)),
    }


def test_differences_have_the_signs_of_their_headers(out):
    study = read_study(out)
    main, ablations, *_ = stage_tables(study, study.latest)
    rows = {record["system"]: record for record in main.records}
    assert rows["baseline_logistic_regression"]["full_minus_system"] > 0 > rows["full"]["weighted_f1"] - 1
    assert rows["full"]["full_minus_system"] is None and rows["majority_vote"]["p"] is None
    assert rows["baseline_mult"]["p_holm"] >= rows["baseline_mult"]["p"]
    rows = {record["system"]: record for record in ablations.records}
    assert rows["speech_expert_only"]["system_minus_full"] < 0
    assert rows["speech_expert_only"]["verdict"] == "worse than full"


def test_a_system_equal_to_the_full_model_shows_no_difference(small):
    for seed in range(2):
        for fold in range(2):
            source, target = (
                small / "development" / name / f"seed-{seed}" / f"fold-{fold}"
                for name in ("full", "without_contrastive")
            )
            (target / "predictions.parquet").write_bytes((source / "predictions.parquet").read_bytes())
            results = json.loads((source / "results.json").read_text())
            results.pop("digests")  # as in a folder of an older version
            (target / "results.json").write_text(json.dumps(results))
    study = read_study(small)
    table = ablation_table(StageScores(study, study.latest, study.latest.labels))
    row = next(row for row in table.records if row["system"] == "without_contrastive")
    assert [row[f"system_minus_full{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert row["p"] == row["p_holm"] == 1 and row["verdict"] == "no difference shown"


def test_probabilities_before_the_temperature_are_recovered(out):
    """The generated logits were divided by 2; without that the probabilities are the same squared and normalised."""
    from mister_e_hf.studies.report.model_tables import _states

    full = read_study(out).latest.systems["full"]
    squared = full.probabilities.astype(np.float64) ** 2
    expected = squared / squared.sum(-1, keepdims=True)
    np.testing.assert_allclose(_states(full)["before temperature"], expected, rtol=1e-6)
    full.temperatures[0, 0] = np.nan
    assert list(_states(full)) == ["as predicted"]


def test_gate_weights_by_group(small):
    def set_weights(columns: dict) -> dict:
        """Weight on speech at happy turns, else on fusion; speech is right there alone, text never, fusion always."""
        happy = [label == "happy" for label in columns["label"]]
        weights = [[1.0, 0.0, 0.0] if yes else [0.0, 0.0, 1.0] for yes in happy]
        names = ["happy", "sad", "neutral", "angry", "excited", "frustrated"]
        index = [names.index(label) if label else 0 for label in columns["label"]]
        certain = np.eye(6)
        return columns | {
            "gate_weights": weights,
            "speech_probabilities": [certain[0].tolist()] * len(index),
            "text_probabilities": [certain[(i + 1) % 6].tolist() for i in index],
            "fusion_probabilities": [certain[i].tolist() for i in index],
        }

    for path in (small / "development/full").rglob("predictions.parquet"):
        rewrite(path, set_weights)
    study = read_study(small)
    tables = {table.name: table.records for table in stage_tables(study, study.latest)}
    weights = {row["group"]: [row["speech"], row["text"], row["fusion"]] for row in tables["gate_by_emotion"]}
    assert weights.pop("happy") == [1, 0, 0] and all(row == [0, 0, 1] for row in weights.values())
    happy = int((study.latest.labels == 0).sum())
    rows = {row["group"]: (row["turns"], row["speech"], row["fusion"]) for row in tables["gate_by_right_expert"]}
    assert rows == {"fusion": (54 - happy, 0, 1), "speech and fusion": (happy, 1, 0)}


def test_weights_of_experts_inside_the_model_and_of_modalities(small):
    def set_weights(columns: dict) -> dict:
        """All weight on the local expert and on speech at happy turns, else on the global one and on text."""
        happy = [label == "happy" for label in columns["label"]]
        kept = {name: values for name, values in columns.items() if "_" not in name or name.endswith("_id")}
        return kept | {
            "expert_weights": [{"local": float(yes), "global": 1.0 - yes} for yes in happy],
            "modality_weights": [{"speech": float(yes), "text": 1.0 - yes} for yes in happy],
        }

    for path in (small / "development/full").rglob("predictions.parquet"):
        rewrite(path, set_weights)
    study = read_study(small)
    tables = {table.name: table for table in stage_tables(study, study.latest)}
    names = ["gate_by_emotion", "gate_by_main_expert", "modality_gate_by_emotion", "modality_gate_by_main_modality"]
    assert [name for name in tables if "gate_by" in name] == names
    for name, first in (("gate_by_emotion", "local"), ("modality_gate_by_emotion", "speech")):
        assert {row["group"]: row[first] for row in tables[name].records if row[first]} == {"happy": 1}
    rows = {row["group"]: row["turns"] for row in tables["modality_gate_by_main_modality"].records}
    happy, scored = int((study.latest.labels == 0).sum()), int((study.latest.labels >= 0).sum())
    assert (rows["speech"], rows["text"]) == (happy, scored - happy)
    ((caption, _),) = table_figures(tables["modality_gate_by_emotion"])
    assert caption == "Modality weights by true emotion: mean weight of each modality."
    assert study.latest.systems["full"].head_noun == "head"


def test_curves_start_at_the_unchanged_input(out):
    study = read_study(out)
    tables = {table.name: table.records for table in stage_tables(study, study.latest)}
    rows = {(row["curve"], row["level"], row["system"]): row for row in tables["robustness"]}
    assert len(rows) == 2 * sum(len(levels) + 1 for levels in CURVES.values())
    for curve in CURVES:
        assert rows[curve, 0.0, "full"]["weighted_f1"] == pytest.approx(tables["main"][0]["weighted_f1"])
    assert {key[:2] for key, row in rows.items() if row["uncut"] is not None} == {
        ("start cut", v) for v in (0.25, 0.5, 0.75)
    }
    full, stage = study.latest.systems["full"], study.latest
    later = np.arange(60) % 10 >= 5
    expected = [
        emotion_scores(stage.labels[later], values[later], study.measures.names) for values in full.probabilities
    ]
    mean = np.mean([run["weighted_f1"] for run in expected])
    assert rows["start cut", 0.5, "full"]["uncut"] == pytest.approx(mean)


def test_learning_curves_are_means_and_ranges_over_the_runs(out):
    tables = {table.name: table for section in report_sections(read_study(out))[:1] for table in section.tables}
    first = tables["learning"].records[0]
    assert (first["epoch"], first["runs"]) == (1, 3)
    assert [first[f"loss{end}"] for end in ("", "_low", "_high")] == pytest.approx([4.1, 4.0, 4.2])
    cost = tables["cost"].records[0]
    assert (cost["runs"], cost["training_seconds"], cost["training_seconds_sd"]) == (3, 51, 1)
    assert tables["cost"].cells()[0][2:] == ["3,000,000", "8", "–", "51.0 ± 1.0", "700"]


def test_missing_runs_are_reported_and_keep_their_rows(small):
    fail(small / "development/without_contrastive/seed-1/fold-0", "ValueError: a < b & c")
    remove(small / "development/baseline_mult")
    for path in small.rglob("robustness.parquet"):
        path.unlink()
    write_report(small)
    text, markdown = (small / "report.html").read_text(), (small / "report.md").read_text()
    lines = [
        "development/without_contrastive/seed-1/fold-0: failed: ValueError: a < b & c",
        "development/baseline_mult: not run",
        "Development: Weighted F1 on damaged input: no finished seed of full or without_modality_dropout has a "
        "robustness.parquet",
    ]
    for line in lines:
        assert html.escape(line) in text and f"- {line}" in markdown
    assert "<b & c" not in text
    assert set(lines) <= set(json.loads((small / "report.json").read_text())["missing"])
    rows = Page(text).rows
    assert next(row for row in rows["development-main"] if row[0] == "MulT over turns")[-2] == "0 of 2"
    assert next(row for row in rows["development-ablations"] if row[0] == "without contrastive")[-1] == "1 of 2"
    assert "Test has not been scored." in text


def test_without_the_full_model_nothing_is_compared(small):
    remove(small / "development/full")
    write_report(small)
    stored = json.loads((small / "report.json").read_text())["stages"]["development"]
    assert {name for name, table in stored.items() if table["gap"]} == {
        "confusion",
        "gate_by_emotion",
        "gate_by_right_expert",
        "calibration",
        "reliability",
        "learning",
    }
    assert {row["verdict"] for row in stored["ablations"]["records"]} == {"nothing to compare with"}
    assert stored["main"]["records"][0]["weighted_f1"] is None
    assert (small / "tables/development-learning.csv").read_text() == "gap\nthe full model has no finished seed\n"


def test_one_seed_has_no_spread(tmp_path):
    out = write_study(tmp_path / "study", seeds=1, dialogues=4, final=False)
    write_report(out)
    assert "±" not in json.dumps(Page((out / "report.html").read_text()).rows["development-main"], ensure_ascii=False)


def test_missing_matplotlib_raises_with_the_command_that_installs_it(out, monkeypatch):
    monkeypatch.delitem(sys.modules, "mister_e_hf.studies.report.figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"A report needs matplotlib: pip install matplotlib"):
        write_report(out)


# Several studies


def test_results_of_several_studies(out, tmp_path):
    mosi = write_study(tmp_path / "mosi", corpus="CMU-MOSI", seeds=2, dialogues=6, final=False)
    remove(mosi / "development/baseline_mult")
    path = write_results([out, mosi], tmp_path / "RESULTS.md")
    text, studies = path.read_text(), [read_study(out), read_study(mosi)]
    assert main_table_in(text) == main_table(studies)
    tables = [rows[0] for rows in markdown_rows(text)]
    assert [header[0] for header in tables] == ["system"] * 4 + ["ablation", "split"] + ["ablation"] * 2
    assert tables[0] == ["system", "IEMOCAP", "CMU-MOSI, development", "CMU-MOSI, development without zeros"]
    detailed = [{row[0]: row[1] for row in rows} for rows in markdown_rows(text)]
    for column, table in enumerate(detailed[1:4], start=1):
        for row in markdown_rows(text)[0][1:]:
            assert row[column] == table.get(row[0], "–")
    assert "| authors split, described | " in text  # apart, in no other table
    assert text.count("authors split") == 1
    assert "CMU-MOSI, development without zeros" in text and "IEMOCAP, test (recipe `mister-e-iemocap-small`)" in text
    for expected in (
        "aa11",
        "f0f0f0",
        "abc123",
        "2026-08-01",
        "57 acoustic numbers",
        "University of Southern California",
        "CMU Multimodal SDK",
    ):
        assert expected in text
    assert "- development/baseline_mult: not run" in text
    with (out / "tables/final-main.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (
        f"| MiSTER-E, full | {100 * float(first['weighted_f1']):.2f} ± {100 * float(first['weighted_f1_sd']):.2f} |"
        in text
    )


def test_a_frozen_study_without_a_finished_run_on_test_is_described(out):
    for path in (out / "final").glob("*/seed-*/results.json"):
        path.unlink()
    text = " ".join(method(read_study(out)))
    assert "was frozen on 2026-08-01" in text and "no run on test is finished" in text
    assert "Test has not been scored" not in text
    (out / "frozen.yaml").unlink()
    assert "Test has not been scored" in " ".join(method(read_study(out)))


def test_the_main_table_is_found_in_a_page(out):
    block = main_table([read_study(out)])
    assert main_table_in(f"# A page\n\n{block}\n\n<!-- another -->\n") == block
    assert main_table_in("# A page without it") is None


def test_no_studies_raise(tmp_path):
    with pytest.raises(ValueError, match="No study was given"):
        write_results([], tmp_path / "RESULTS.md")


def test_the_report_command(out, tmp_path, capsys):
    assert cli.main(["report", str(out), "--results", str(tmp_path / "RESULTS.md")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "report.html"), str(tmp_path / "RESULTS.md")]
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "no study.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["study.yaml", "RESULTS.md", "final/full/seed-0/results.json"])
def test_results_do_not_overwrite_a_study(out, capsys, name):
    before = sorted(out.rglob("*")), (out / "study.yaml").read_bytes()
    assert cli.main(["report", str(out), "--results", str(out / name)]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert (sorted(out.rglob("*")), (out / "study.yaml").read_bytes()) == before
