import itertools
import json
import subprocess
import sys

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from mister_e_hf import cli  # noqa: E402
from mister_e_hf.timeline import plot_lines, timeline_figure  # noqa: E402

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
    assert [text.get_text() for text in gate.get_legend().get_texts()] == ["speech", "text", "fusion"]
    tops = [patch.get_y() + patch.get_height() for patch in gate.patches]
    assert max(tops) == pytest.approx(1.0)


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
    ("spoil", "message"), [({"gate": None}, "gate"), ({"scores": None, "label": None}, "label, scores")]
)
def test_what_is_no_answer_of_the_pipeline_is_named(spoil, message):
    turns = dialogue(2)
    for name in spoil:
        turns[1].pop(name)
    with pytest.raises(ValueError, match=f"Turn 1 lacks {message}"):
        timeline_figure(turns)
    with pytest.raises(ValueError, match="no turn to draw"):
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
        ("{}", "line 1 is no line of mister-e predict: Turn 0 lacks"),
        ("no json", "line 1 is no line"),
        ("", "is empty"),
        (None, "There are no lines at"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "call.jsonl").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plot_lines(tmp_path / "call.jsonl")


def test_without_matplotlib_it_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None\nfrom mister_e_hf.timeline import timeline_figure\ntimeline_figure([])"
    call = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'mister-e-hf[plot]'" in call.stderr
