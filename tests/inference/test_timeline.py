import io
import itertools
import json

import pytest

from support.new_process import run_python  # noqa: E402

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from matplotlib.colors import to_hex  # noqa: E402

from mister_e_hf import cli  # noqa: E402
from mister_e_hf.inference.predicted_turns import read_predictions  # noqa: E402
from mister_e_hf.inference.timeline import plot_lines, timeline_figure  # noqa: E402

LABELS = ["neutral", "joy", "anger", "surprise", "fear", "sadness", "disgust", "excited", "frustrated", "calm"]


def dialogue(count: int, labels=LABELS, seconds: float | None = 2.0) -> list[dict]:
    turns = []
    for number in range(count):
        label = labels[number % len(labels)]
        scores = {name: 0.1 for name in labels} | {label: 0.3 + 0.6 * (number % 7) / 7}
        turn = {"label": label, "score": scores[label], "scores": scores, "experts": {}}
        turn |= {"gate": {"speech": 0.5, "text": 0.2, "fusion": 0.3}}
        turns.append(turn if seconds is None else turn | {"start": seconds * number, "end": seconds * (number + 0.9)})
    return turns


def bars(axes) -> list:
    return [patch for patch in axes.patches if patch.get_gid() == "turn"]


def test_every_turn_has_a_bar_a_colour_and_a_word():
    figure = timeline_figure(dialogue(6))
    emotions, gate = figure.axes
    assert [round(bar.get_height(), 6) for bar in bars(emotions)] == [round(turn["score"], 6) for turn in dialogue(6)]
    assert [(bar.get_x(), round(bar.get_width(), 6)) for bar in bars(emotions)] == [(2.0 * n, 1.8) for n in range(6)]
    assert [text.get_text() for text in emotions.texts] == LABELS[:6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == sorted(LABELS[:6])
    assert gate.get_xlabel() == "time, seconds" and emotions.get_ylabel() == "probability"
    assert [text.get_text() for text in gate.get_legend().get_texts()] == ["fusion", "text", "speech"]
    tops = [patch.get_y() + patch.get_height() for patch in gate.patches]
    assert max(tops) == pytest.approx(1.0)


def test_capsules_have_a_panel_below_whose_names_fit():
    seven = ["speech", "text", "visual", "speech+text", "speech+visual", "text+visual", "speech+text+visual"]
    turns = [turn | {"capsules": dict.fromkeys(seven, 1 / 7)} for turn in dialogue(6)]
    turns[2]["capsules"] = dict.fromkeys(seven, 0.0)  # a turn without any modality
    figure = timeline_figure(turns)
    figure.savefig(io.BytesIO())
    _, gate, capsules = figure.axes
    assert (gate.get_ylabel(), capsules.get_ylabel()) == ("gate\nweight", "capsule\nweight")
    assert [text.get_text() for text in capsules.get_legend().get_texts()] == seven[::-1]
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in capsules.patches}) == 7
    frame, page = capsules.get_legend().get_window_extent(), figure.bbox
    assert frame.y0 >= page.y0 and frame.x1 <= page.x1 and not frame.overlaps(gate.get_legend().get_window_extent())
    heights = [sum(patch.get_height() for patch in capsules.patches[turn::6]) for turn in range(6)]
    assert heights == pytest.approx([1, 1, 0, 1, 1, 1])


def test_titles_of_panels_do_not_overlap():
    turns = [turn | {"modality_gate": {"speech": 0.4, "text": 0.6}} for turn in dialogue(3)]
    figure = timeline_figure(turns)
    figure.savefig(io.BytesIO())
    titles = [axes.yaxis.label for axes in figure.axes]
    assert [title.get_text() for title in titles] == ["probability", "gate\nweight", "modality\nweight"]
    frames = [title.get_window_extent() for title in titles]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(frames, 2))


def test_without_times_the_axis_counts_turns():
    turns = dialogue(3)
    turns[1].pop("end")
    emotions, gate = timeline_figure(turns).axes
    assert gate.get_xlabel() == "turn"
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars(emotions)] == [0, 1, 2]


def test_many_classes_differ_in_colour_or_hatch():
    emotions, _ = timeline_figure(dialogue(10)).axes
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in bars(emotions)}
    assert len(looks) == 10
    assert len({bar.get_facecolor() for bar in bars(emotions)[:8]}) >= 6


@pytest.mark.parametrize("count", [1, 12, 40, 100, 1000])
def test_words_do_not_overlap_however_many_turns(count):
    figure = timeline_figure(dialogue(count))
    figure.canvas.draw()
    emotions, _ = figure.axes
    boxes = [text.get_window_extent() for text in emotions.texts]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    frame = emotions.get_window_extent()
    assert all(box.y1 <= frame.y1 and box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1 for box in boxes)
    assert len(bars(emotions)) == count and bool(boxes) == (count < 100)


@pytest.mark.parametrize(
    ("spoil", "message"), [({"label": None}, "label"), ({"scores": None, "label": None}, "label, scores")]
)
def test_turns_not_from_the_pipeline_raise(spoil, message):
    turns = dialogue(2)
    for name in spoil:
        turns[1].pop(name)
    with pytest.raises(ValueError, match=f"Turn 1 lacks {message}"):
        timeline_figure(turns)
    with pytest.raises(ValueError, match="No turns to plot"):
        timeline_figure([])


def test_the_command_draws_a_dialogue_of_the_lines(tmp_path, capsys):
    lines = [{"dialogue": name, "turn": n} | turn for name in ("a", "b") for n, turn in enumerate(dialogue(3))]
    (tmp_path / "call.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert cli.main(["plot", str(tmp_path / "call.jsonl")]) == 0
    assert capsys.readouterr().out == f"dialogue 'a', one of 2, in {tmp_path / 'call.png'}\n"
    assert (tmp_path / "call.png").read_bytes().startswith(b"\x89PNG")
    words = ["plot", str(tmp_path / "call.jsonl"), "--dialogue", "b", "--out", str(tmp_path / "b.svg")]
    assert cli.main(words) == 0 and b"<svg" in (tmp_path / "b.svg").read_bytes()
    for words, message in {
        ("--dialogue", "c"): "has no dialogue 'c'; it has a, b",
        ("--out", "call.jpeg"): "must end in .png, .svg or .pdf",
    }.items():
        assert cli.main(["plot", str(tmp_path / "call.jsonl"), *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "line 1 lacks dialogue, label, score, scores, turn"),
        ("no json", "line 1 is not valid JSON from column 1; expected the lines of mister-e predict"),
        ("[" * 50_000, "line 1 is nested too deeply"),
        ("[1]", "line 1 must be an object"),
        ('{"dialogue": "a", "dialogue": "b"}', "line 1: the field 'dialogue' appears twice"),
        ("", "is empty"),
        (None, "not found; write it with"),
    ],
)
def test_other_files_raise(tmp_path, content, message):
    if content is not None:
        (tmp_path / "call.jsonl").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plot_lines(tmp_path / "call.jsonl")


LINE = {"dialogue": "d", "turn": 0} | dialogue(1)[0]
WRONG = {
    "label null": ({"label": None}, "label must be the name of a class, got None"),
    "score of words": ({"score": "high"}, "score must be a number from 0 to 1, got 'high'"),
    "score NaN": ({"score": float("nan")}, "score must be a number from 0 to 1, got nan"),
    "score of 400 digits": ({"score": 10**400}, "score must be a number from 0 to 1"),
    "score below 0": ({"score": -5}, "score must be"),
    "score true": ({"score": True}, "score must be"),
    "scores a list": ({"scores": [0.5]}, "scores must hold numbers by name"),
    "scores null inside": ({"scores": {"joy": None}}, "scores of 'joy' must be a number"),
    "gate null": ({"gate": None}, "gate must hold numbers by name, got None"),
    "gate empty": ({"gate": {}}, "gate must hold numbers by name"),
    "gate of infinity": ({"gate": {"speech": float("inf")}}, "gate of 'speech' must be a number"),
    "gate of other experts": ({"gate": {"other": 1}}, "gate names other, but in the dialogue's first turn fusion, "),
    "capsules null": ({"capsules": None}, "capsules must hold numbers by name, got None"),
    "modalities in one turn": ({"modality_gate": {"text": 1}}, "modality_gate names text, but in the dialogue"),
    "capsules in one turn": ({"capsules": {"text": 1}}, "capsules names text, but in the dialogue's first"),
    "a thousand experts": ({"gate": {f"e{n}": 0 for n in range(1000)}}, "gate has 1000 weights"),
    "times of words": ({"start": "0", "end": "1"}, "start must be a number"),
    "no length": ({"start": 1.0, "end": 1.0}, "start 1 s must be before end 1 s"),
    "an end beyond time": ({"end": 1e308}, "end must be a number from 0 to 1e"),
    "turn of words": ({"turn": "1"}, "turn must be an integer"),
    "the same turn": ({"turn": 0}, "turn 0 of dialogue 'd' also appears in line 1"),
    "dialogue null": ({"dialogue": None}, "dialogue must be a name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_each_line_is_checked_by_field(tmp_path, capsys, case):
    change, message = WRONG[case]
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | {"turn": 1} | change) + "\n")
    assert cli.main(["plot", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"lines.jsonl', line 2: {message}" in error and len(error) < 500
    assert [entry.name for entry in tmp_path.iterdir()] == ["lines.jsonl"]


def test_labels_are_drawn_as_they_are_spelled_and_at_bounded_length():
    labels = ["$\\frac{$", "$x$", "_hidden", "x" * 100_000, "a\x1b[31mb", "\ud83d"]
    figure = timeline_figure(dialogue(6, labels) + dialogue(6, labels))
    figure.canvas.draw()
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == 6 and "_hidden" in shown and max(map(len, shown)) < 40
    assert {"\\$x\\$", "a\\u001b[31mb", "\\ud83d"} <= set(shown)
    many = [f"class {number}" for number in range(500)]
    figure = timeline_figure(dialogue(500, many))
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "and 460 more"


def test_emotions_have_the_colours_that_people_expect():
    for labels in (["angry", "neutral", "Joy", "puzzled"], ["愤怒", "中性", "高兴", "困惑"]):
        figure = timeline_figure(dialogue(4, labels))
        colours = [to_hex(bar.get_facecolor()).upper() for bar in bars(figure.axes[0])]
        assert colours[:3] == ["#D55E00", "#999999", "#F0E442"] and len(set(colours)) == 4


def test_lines_in_another_order_and_with_gaps_are_drawn_where_they_belong(tmp_path):
    texts = [LINE | {"turn": number, "text": "one\u2028line\u0085still"} for number in (5, 0, 2)]
    for line in texts:
        line.pop("start"), line.pop("end")
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in texts), encoding="utf-8-sig"
    )
    (turns,) = read_predictions(tmp_path / "lines.jsonl").values()
    emotions, _ = timeline_figure(turns).axes
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars(emotions)] == [0, 2, 5]


def test_a_plot_goes_where_it_can_and_over_no_input(tmp_path, capsys):
    path = tmp_path / "lines.svg"
    path.write_text(json.dumps(LINE))
    (tmp_path / "folder.png").mkdir()
    for out, message in {
        path: "is an input of this command",
        tmp_path / "nowhere" / "x.png": "does not exist; create it first",
        tmp_path / "folder.png": "is a folder",
    }.items():
        assert cli.main(["plot", str(path), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert path.read_text() == json.dumps(LINE)


def test_without_matplotlib_it_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from mister_e_hf.inference.timeline import timeline_figure\ntimeline_figure([])"
    )
    call = run_python("-c", code)
    assert "pip install matplotlib" in call.stderr


@pytest.mark.parametrize("values", [[0.4, 0.5, 0.45], [-2.0, -1.5, -1.9], [-1.0, 0.5, 2.0], [0.0, 0.0, 0.0]])
def test_scores_are_plotted_from_zero_over_whole_turns(values):
    turns = [{"label": "s", "score": value, "scores": {"s": value}, "task": "regression"} for value in values]
    (axes,) = timeline_figure(turns).axes
    low, high = axes.get_ylim()
    assert low <= min(0, *values) and high >= max(0, *values) and low < 0 < high
    assert [list(line.get_ydata()) for line in axes.lines if line.get_gid() != "scores"] == [[0, 0]]
    assert all(tick == round(tick) for tick in axes.get_xticks())
