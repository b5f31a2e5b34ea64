import itertools
import logging
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from mister_e_hf import Iemocap
from mister_e_hf.corpora.counts import published
from mister_e_hf.corpora.schema import LABELS, SPLITS, dialogue_features
from support.corpus_contract import build_corpus, change_text, members, rows, warnings

RATE = 16_000
HUB_CONFIGS = Path(__file__).parents[2] / "hub_configs"
FACTS = published("iemocap")

# Turns by dialogue as (id, start, official label, transcript), in an order that is neither that of time nor of names.
# One
# utterance of the list that the community calls happy, ids with XX, and sentences with what else stands in
# transcripts.
TURNS = {
    "Ses01F_impro03": [
        ("M000", 7.5, "neu", "Yes: well. [LAUGHTER] No."),
        ("F000", 2.25, "exc", "Guess what."),
        ("F007", 12.0, "xxx", "I can not wait."),
        ("MXX0", 9.0, "hap", "Great."),
        ("F001", 10.5, "sur", "Oh."),
    ],
    "Ses02F_impro02": [
        ("FXX0", 100.0, "sad", "He is gone [GARBAGE]: all."),
        ("M000", 20.0, "fru", "Why?"),
        ("M001", 3.0, "ang", "Stop it!"),
        ("F000", 1.5, "dis", "Ugh."),
    ],
    "Ses03M_impro05b": [("F000", 1.0, "neu", "Hello."), ("M000", 2.0, "xxx", "Hi.")],
    "Ses04M_script01_1": [("M000", 1.0, "oth", "So."), ("F000", 2.0, "fea", "Help.")],
    "Ses05M_script01_1b": [("M000", 8.0, "hap", "At last."), ("F001", 4.0, "fru", "Not again.")],
}
SIX_WAY = {
    "Ses01F_impro03": {"F000": "excited", "M000": "neutral", "MXX0": "happy", "F007": "happy"},
    "Ses02F_impro02": {"M001": "angry", "M000": "frustrated", "FXX0": "sad"},
    "Ses03M_impro05b": {"F000": "neutral"},
    "Ses05M_script01_1b": {"F001": "frustrated", "M000": "happy"},
}
# Content of the hidden files that macOS leaves on foreign disks.
DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02\x00\x00\x00\x09\x00\x00\x00\x32\xff\xe9\x81"


def seconds(dialogue: str, turn: str) -> float:
    """A length of its own for each turn."""
    return 0.1 + 0.01 * len(dialogue) + 0.02 * [name for name, *_ in TURNS[dialogue]].index(turn)


def write_sound(path: Path, length: float, subtype: str = "PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, round(length * RATE))
    soundfile.write(path, samples, RATE, subtype=subtype)


def place(release: Path, dialogue: str, kind: str = "EmoEvaluation") -> Path:
    return release / f"Session{dialogue[4]}" / "dialog" / kind / f"{dialogue}.txt"


def sound(release: Path, dialogue: str, turn: str) -> Path:
    return release / f"Session{dialogue[4]}" / "sentences" / "wav" / dialogue / f"{dialogue}_{turn}.wav"


def write_dialogue(release: Path, dialogue: str, turns: list[tuple], encoding: str = "utf-8"):
    blocks = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
    for turn, start, code, _ in turns:
        blocks.append(
            f"[{start:.4f} - {start + 1.5:.4f}]\t{dialogue}_{turn}\t{code}\t[2.5000, 3.0000, 2.2500]\n"
            "C-E2:\tNeutral;\t()\nC-E4:\tOther;\t(ironic)\nC-F1:\tHappiness; Excited;\t()\n"
            "A-E3:\tval 3; act 2; dom  2;\t()\nA-F1:\tval 3; act 2; dom  1;\t()\n\n"
        )
    lines = [f"{dialogue}_{turn} [{start:08.4f}-{start + 1.5:08.4f}]: {text}\n" for turn, start, _, text in turns]
    for kind, content in (("EmoEvaluation", "".join(blocks)), ("transcriptions", "M: [LAUGHTER]\n".join(lines[::-1]))):
        path = place(release, dialogue, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding=encoding)


@pytest.fixture
def release(tmp_path) -> Path:
    """A tiny release with all other files of the real one."""
    folder = tmp_path / "corpora" / "IEMOCAP_full_release"
    for dialogue, turns in TURNS.items():
        write_dialogue(folder, dialogue, turns)
        for turn, *_ in turns:
            write_sound(sound(folder, dialogue, turn), seconds(dialogue, turn))
            hidden = sound(folder, dialogue, turn)
            hidden.with_name(f"._{hidden.name}").write_bytes(DOUBLE)
        for kind in ("EmoEvaluation", "transcriptions"):
            path = place(folder, dialogue, kind)
            path.with_name(f"._{path.name}").write_bytes(DOUBLE)
        for part, name in (("Attribute", "atr"), ("Categorical", "cat"), ("Self-evaluation", "F_cat")):
            path = place(folder, dialogue).parent / part / f"{dialogue}_e1_{name}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"[0.0000 - 1.0000]\t{dialogue}_F999\tang\t[1.0000, 1.0000, 1.0000]\n")
    return folder


def prepare(tmp_path: Path, release: Path, **settings) -> datasets.DatasetDict:
    return build_corpus(Iemocap, release, tmp_path / "cache", **settings)


def emotions(corpus: datasets.DatasetDict) -> dict[str, dict[str, str | None]]:
    """Emotion by dialogue and turn, in order."""
    return {
        dialogue: {turn["utterance_id"].removeprefix(f"{dialogue}_"): turn["emotion"] for turn in turns}
        for dialogue, turns in rows(corpus).items()
    }


# Reading


def test_every_field_of_every_turn(tmp_path, release, caplog):
    corpus = prepare(tmp_path, release)
    found, labels = rows(corpus), emotions(corpus)
    assert labels == SIX_WAY
    for dialogue, expected in SIX_WAY.items():
        assert list(labels[dialogue]) == list(expected)  # by time
        texts = {turn: text for turn, _, _, text in TURNS[dialogue]}
        for turn, row in zip(expected, found[dialogue], strict=True):
            assert row == {
                "utterance_id": f"{dialogue}_{turn}",
                "text": texts[turn],
                "audio": {"bytes": None, "path": str(sound(release, dialogue, turn))},
                "video": None,
                "start": None,
                "end": None,
                "duration": pytest.approx(seconds(dialogue, turn), abs=1 / RATE),
                "speaker": f"{dialogue[:5]}_{turn[0]}",
                "emotion": expected[turn],
                "sentiment": None,
                "valence": 2.5,
                "activation": 3.0,
                "dominance": 2.25,
            }
    assert not warnings(caplog)


@pytest.mark.parametrize("cell", ["", "[]", "[, , ]", "[nan, 3.0000, ]"])
def test_missing_dimensions_are_null_and_counted(tmp_path, release, caplog, cell):
    path = place(release, "Ses03M_impro05b")
    text = path.read_text()
    path.write_text(text.replace("[2.5000, 3.0000, 2.2500]", cell, 1))
    if cell == "[]":
        with pytest.raises(ValueError, match=r"Ses03M_impro05b.txt', line 3: expected .*\[valence, activation, domi"):
            prepare(tmp_path, release)
        return
    (turn,) = rows(prepare(tmp_path, release))["Ses03M_impro05b"]
    known = 3.0 if "3" in cell else None
    assert (turn["valence"], turn["activation"], turn["dominance"]) == (None, known, None)
    assert warnings(caplog) == ["IEMOCAP: 1 turns lack valence, activation or dominance; these are null"]


def test_features_and_description(tmp_path, release):
    corpus = prepare(tmp_path, release, config_name="4way")
    for data in corpus.values():
        assert data.features == dialogue_features(LABELS["iemocap-4way"], Iemocap.scores)
        assert data.info.config_name == "4way" and str(data.info.version) == "1.0.0"
        assert "redistribution" in data.info.license and data.info.homepage.startswith("https://sail.usc.edu")
    builder = Iemocap(release, cache_dir=str(tmp_path / "cache"))
    assert builder.config.name == "6way" and str(builder.info.version) == "1.0.0"
    assert builder.info.features == dialogue_features(LABELS["iemocap-6way"], Iemocap.scores)


@pytest.mark.parametrize("given", ["release", "its parent", "relative"])
def test_release_or_its_parent_folder_is_read(tmp_path, release, given, monkeypatch):
    monkeypatch.chdir(release.parent)
    folder = {"release": release, "its parent": release.parent, "relative": release.name}[given]
    found = rows(prepare(tmp_path, folder))
    assert found["Ses03M_impro05b"][0]["audio"]["path"] == str(sound(release, "Ses03M_impro05b", "F000"))


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"labels": "official"}, {"F007": None}),
        ({"config_name": "4way"}, {"F000": "happy"}),
        ({"config_name": "4way", "labels": "official"}, {"F000": "happy", "F007": None}),
    ],
)
def test_label_sets(tmp_path, release, settings, changes):
    four = settings.get("config_name") == "4way"
    expected = {
        dialogue: {
            turn: changes.get(turn, emotion) if dialogue.startswith("Ses01") else emotion
            for turn, emotion in turns.items()
            if not (four and emotion == "frustrated")
        }
        for dialogue, turns in SIX_WAY.items()
    }
    dropped = {
        dialogue: {turn: label for turn, label in turns.items() if label} for dialogue, turns in expected.items()
    }
    assert emotions(prepare(tmp_path, release, **settings)) == dropped
    context = emotions(prepare(tmp_path, release, other_labels="context", **settings))
    for dialogue, turns in TURNS.items():
        by_time = [turn for turn, *_ in sorted(turns, key=lambda turn: turn[1])]
        assert list(context[dialogue]) == by_time
        assert context[dialogue] == {turn: expected.get(dialogue, {}).get(turn) for turn in by_time}


def test_an_official_label_counts_before_the_list(tmp_path, release):
    path = place(release, "Ses01F_impro03")
    path.write_text(path.read_text().replace("_F007\txxx", "_F007\tsad"))
    assert emotions(prepare(tmp_path, release))["Ses01F_impro03"]["F007"] == "sad"


def test_left_out_utterances_are_logged(tmp_path, release, caplog):
    caplog.set_level(logging.INFO, logger="mister_e_hf")
    prepare(tmp_path, release)
    (told,) = [message for message in caplog.messages if "left out" in message]
    assert "5 utterances of other labels" in told
    assert sorted(told.partition("(")[2].rstrip(")").split(", ")) == ["1 dis", "1 fea", "1 oth", "1 sur", "1 xxx"]


@pytest.mark.parametrize(
    ("validation", "session", "train"),
    [
        ("session 1", {"Ses01F_impro03"}, {"Ses02F_impro02", "Ses03M_impro05b"}),
        ("conv-emotion", {"Ses02F_impro02"}, {"Ses01F_impro03", "Ses03M_impro05b"}),
    ],
)
def test_splits(tmp_path, release, validation, session, train):
    corpus = prepare(tmp_path, release, validation=validation)
    assert list(corpus) == list(SPLITS)
    assert members(corpus) == {"train": train, "validation": session, "test": {"Ses05M_script01_1b"}}


def test_duplicate_dialogue_raises(tmp_path, release):
    shutil.copy(place(release, "Ses01F_impro03"), place(release, "Ses05M_script01_1b").parent)
    with pytest.raises(ValueError, match="'Ses01F_impro03' appears twice: in validation and in validation"):
        prepare(tmp_path, release)


def test_duplicate_utterance_raises(tmp_path, release):
    path = place(release, "Ses01F_impro03")
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match="'Ses01F_impro03' has two turns .* 'Ses01F_impro03_F000'"):
        prepare(tmp_path, release)


def test_an_old_encoding_and_other_line_ends(tmp_path, release):
    turns = [("M000", 1.0, "neu", "Café – naïve…"), ("F000", 2.0, "sad", "Non.")]
    write_dialogue(release, "Ses03M_impro05b", turns, encoding="cp1252")
    path = place(release, "Ses05M_script01_1b")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = rows(prepare(tmp_path, release))
    assert [turn["text"] for turn in found["Ses03M_impro05b"]] == ["Café – naïve…", "Non."]
    assert [turn["emotion"] for turn in found["Ses05M_script01_1b"]] == ["frustrated", "happy"]


@pytest.mark.parametrize("name", sorted(path.stem for path in HUB_CONFIGS.glob("mister-e-*.yaml")))
def test_labels_are_those_of_the_recipes(name):
    corpus = {"iemocap6": "iemocap-6way", "iemocap4": "iemocap-4way", "mosi": "cmu_mosi"}
    recipe = yaml.safe_load((HUB_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    if "targets" in recipe["corpus"]:
        assert recipe["corpus"]["targets"] == ["sentiment"]
    else:
        short = name.split("-")[2]
        assert recipe["corpus"]["labels"] == LABELS[corpus.get(short, short)]


# The published counts


def official_labels(dialogue: str) -> list[tuple]:
    """As many turns of each kind as the release has, and two of other labels."""
    prefix = f"{dialogue}_"
    listed = [identity for identity in FACTS["happy_without_majority"] if identity.startswith(prefix)]
    four, six = FACTS["utterances_4way"][dialogue], FACTS["utterances_6way"][dialogue]
    codes = list(itertools.islice(itertools.cycle(["neu", "hap", "sad", "exc", "ang"]), four - len(listed)))
    codes += ["fru"] * (six - four) + ["xxx", "oth"]
    turns = [(f"{'FM'[number % 2]}{400 + number}", code) for number, code in enumerate(codes)]
    turns += [(identity.removeprefix(prefix), "xxx") for identity in listed]
    return [(turn, 3.0 * number, code, "Text.") for number, (turn, code) in enumerate(turns)]


@pytest.fixture(scope="module")
def full_release(tmp_path_factory) -> Path:
    """All dialogues, without audio."""
    folder = tmp_path_factory.mktemp("full")
    for dialogue in FACTS["utterances_6way"]:
        write_dialogue(folder, dialogue, official_labels(dialogue))
    return folder


COUNTS = {
    # Labelled utterances of train, validation and test.
    ("6way", "community", "session 1"): (4437, 1373, 1623),
    ("6way", "official", "session 1"): (4393, 1365, 1622),
    ("6way", "community", "conv-emotion"): (5163, 647, 1623),
    ("6way", "official", "conv-emotion"): (5112, 646, 1622),
    ("4way", "community", "session 1"): (3249, 1093, 1242),
    ("4way", "official", "session 1"): (3205, 1085, 1241),
    ("4way", "community", "conv-emotion"): (3867, 475, 1242),
    ("4way", "official", "conv-emotion"): (3816, 474, 1241),
}


def test_totals_are_those_of_papers():
    totals = {("6way", "community"): 7433, ("6way", "official"): 7380}
    totals |= {("4way", "community"): 5584, ("4way", "official"): 5531}
    for (config, labels, _), counts in COUNTS.items():
        assert sum(counts) == totals[config, labels]
    # Sessions 2 to 4 of the 5,531, as cross-validation over sessions has them.
    assert COUNTS["4way", "official", "session 1"][0] == 1023 + 1151 + 1031


def but_no_audio(caplog) -> list[str]:
    """Warnings but for those about the five sessions without audio, which must be among them."""
    told = [record.getMessage() for record in caplog.records if record.name.startswith("mister_e_hf")]
    silent = [message for message in told if "has no sentences/wav" in message]
    assert [Path(message.split("'")[1]).name for message in silent] == [f"Session{number}" for number in range(1, 6)]
    return [message for message in told if message not in silent]


@pytest.mark.parametrize(("config", "labels", "validation"), COUNTS)
def test_a_whole_release_gives_the_published_counts(tmp_path, full_release, caplog, config, labels, validation):
    caplog.set_level(logging.WARNING, logger="mister_e_hf")
    corpus = prepare(tmp_path, full_release, config_name=config, labels=labels, validation=validation)
    assert not but_no_audio(caplog)
    assert tuple(len(data) for data in corpus.values()) == (
        (92, 28, 31) if validation == "session 1" else (108, 12, 31)
    )
    found = {dialogue: len(turns) for dialogue, turns in emotions(corpus).items()}
    expected = Counter(FACTS[f"utterances_{config}"])
    if labels == "official":
        expected -= Counter(identity.rpartition("_")[0] for identity in FACTS["happy_without_majority"])
    assert found == dict(expected)
    assert (
        tuple(sum(found[name] for name in data["dialogue_id"]) for data in corpus.values())
        == (COUNTS[config, labels, validation])
    )


def test_turns_for_context_do_not_count(tmp_path, full_release, caplog):
    corpus = prepare(tmp_path, full_release, other_labels="context")
    assert not but_no_audio(caplog)
    labels = Counter(label for turns in emotions(corpus).values() for label in turns.values())
    assert labels.pop(None) == 2 * 151 and labels.total() == 7433


@pytest.fixture
def incomplete_release(tmp_path, full_release) -> Path:
    return shutil.copytree(full_release, tmp_path / "incomplete")


def test_a_missing_session_is_named(tmp_path, incomplete_release, caplog):
    shutil.rmtree(incomplete_release / "Session5")
    corpus = prepare(tmp_path, incomplete_release)
    assert list(corpus) == ["train", "validation"]
    (told,) = [message for message in caplog.messages if "published are" in message]
    assert told.startswith(
        "IEMOCAP test: 0 dialogues with 0 labelled utterances; published are 31 with 1,623. missing: Ses05F_impro01 ("
    )
    assert told.endswith("and 21 more") and "different" not in told
    assert not any("Session5" in message for message in caplog.messages)  # no extra warning about its audio


def test_missing_parts_of_sessions_are_reported(tmp_path, incomplete_release, caplog):
    place(incomplete_release, "Ses03F_impro04").unlink()
    place(incomplete_release, "Ses01M_impro02").rename(place(incomplete_release, "Ses01M_impro99"))
    evaluation = place(incomplete_release, "Ses02M_impro05")
    lines = evaluation.read_text().splitlines(keepends=True)
    lines.remove(next(line for line in lines if "\tneu\t" in line))
    evaluation.write_text("".join(lines))
    prepare(tmp_path, incomplete_release)
    counts = FACTS["utterances_6way"]
    train, validation = but_no_audio(caplog)[-2:]
    assert train == (
        f"IEMOCAP train: 91 dialogues with {4437 - counts['Ses03F_impro04'] - 1:,} labelled utterances; published are "
        f"92 with 4,437. missing: Ses03F_impro04 ({counts['Ses03F_impro04']} utterances). different: Ses02M_impro05 "
        f"({counts['Ses02M_impro05'] - 1} of {counts['Ses02M_impro05']})"
    )
    assert validation.endswith(
        f"missing: Ses01M_impro02 ({counts['Ses01M_impro02']} utterances). not published: Ses01M_impro99"
    )


# What is missing or broken


def test_turns_without_a_transcript_are_named(tmp_path, release, caplog):
    place(release, "Ses02F_impro02", "transcriptions").unlink()
    path = place(release, "Ses05M_script01_1b", "transcriptions")
    path.write_text(path.read_text().replace("Not again.", ""))
    found = rows(prepare(tmp_path, release))
    texts = {turn["utterance_id"]: turn["text"] for turns in found.values() for turn in turns}
    without = [f"Ses02F_impro02_{turn}" for turn in ("FXX0", "M000", "M001")] + ["Ses05M_script01_1b_F001"]
    assert {name for name, text in texts.items() if text is None} == set(without)
    assert warnings(caplog) == [f"IEMOCAP: 4 turns have no transcript: {', '.join(without)}"]


def test_corpus_without_audio_is_text_only(tmp_path, release, caplog):
    shutil.rmtree(release / "Session2" / "sentences")
    found = rows(prepare(tmp_path, release))
    for dialogue, turns in found.items():
        for turn in turns:
            assert (turn["audio"] is None) == (turn["duration"] is None) == (dialogue == "Ses02F_impro02")
            assert turn["text"]
    assert warnings(caplog) == [f"IEMOCAP: '{release / 'Session2'}' has no sentences/wav; its turns have no audio"]


def test_wrong_folder_raises_and_lists_its_content(tmp_path, release):
    for folder, message in {
        release / "Session2": r"Session2' is not an IEMOCAP_full_release.* It holds \['dialog', 'sentences'\]",
        place(release, "Ses01F_impro03"): r"Ses01F_impro03\.txt' is not an IEMOCAP_full_release.* It holds a file",
        tmp_path / "nowhere": "IEMOCAP: '.*nowhere' does not exist",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            prepare(tmp_path, folder)


@pytest.mark.parametrize("given", [(), (None,)])
def test_missing_folder_argument_says_where_to_get_the_corpus(given):
    with pytest.raises(FileNotFoundError, match=r"https://sail\.usc\.edu/iemocap/iemocap_release\.htm .* data_dir"):
        Iemocap(*given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": "session 2"}, "validation must be one of .*'conv-emotion'.*, got 'session 2'"),
        ({"labels": "offical"}, "labels must be one of .*'official'.*, got 'offical'"),
        ({"other_labels": "keep"}, "other_labels must be one of .*'context'.*, got 'keep'"),
        ({"split": "test"}, "Iemocap has no setting 'split'; it has .*'validation'"),
        ({"config_name": "5way"}, "'5way' not found.*6way"),
    ],
)
def test_wrong_settings(tmp_path, release, settings, message):
    for config in {settings.get("config_name"), "4way"}:
        with pytest.raises(ValueError, match=message):
            Iemocap(release, cache_dir=str(tmp_path / "cache"), **{"config_name": config, **settings})


def test_a_file_of_another_form_is_named(tmp_path, release):
    path = place(release, "Ses03M_impro05b")
    path.write_text(path.read_text().replace("\t", "    "))
    with pytest.raises(ValueError, match=r"Ses03M_impro05b\.txt', line 3: expected '"):
        prepare(tmp_path, release)


# The cache


def test_changed_label_of_the_same_size_and_time_is_read_again(tmp_path, release):
    prepare(tmp_path, release)
    change_text(place(release, "Ses03M_impro05b"), "\tneu\t", "\tsad\t")
    assert emotions(prepare(tmp_path, release))["Ses03M_impro05b"] == {"F000": "sad"}


def test_added_and_removed_files_are_seen(tmp_path, release):
    shutil.rmtree(release / "Session3" / "sentences")
    assert rows(prepare(tmp_path, release))["Ses03M_impro05b"][0]["audio"] is None
    write_sound(sound(release, "Ses03M_impro05b", "F000"), 0.5)
    assert rows(prepare(tmp_path, release))["Ses03M_impro05b"][0]["duration"] == 0.5
    place(release, "Ses03M_impro05b").unlink()
    assert "Ses03M_impro05b" not in rows(prepare(tmp_path, release))


# The real corpus


@pytest.mark.shared
def test_published_counts_are_those_of_the_real_corpus(shared_dir):
    counts, four_way, labels, validation = {}, {}, {}, []
    for split in SPLITS:
        path = shared_dir / "data" / "iemocap" / f"{split}.parquet"
        for row in pq.read_table(path, columns=["dialogue_id", "utterance_ids", "labels"]).to_pylist():
            name = row["dialogue_id"]
            assert all(identity.rpartition("_")[0] == name for identity in row["utterance_ids"])
            labels |= zip(row["utterance_ids"], row["labels"], strict=True)
            counts[name] = len(row["utterance_ids"])
            four_way[name] = sum(label != "frustrated" for label in row["labels"])
            validation += [name] * (split == "validation")
    assert FACTS["utterances_6way"] == counts
    assert FACTS["utterances_4way"] == four_way
    assert sorted(FACTS["validation_conv_emotion"]) == sorted(validation)
    assert {labels[identity] for identity in FACTS["happy_without_majority"]} == {"happy"}


@pytest.mark.shared
def test_the_listed_utterances_are_those_of_the_community(shared_dir):
    listed = (shared_dir / "data" / "iemocap_without_majority.txt").read_text().split()
    assert len(set(listed)) == 53 and sorted(FACTS["happy_without_majority"]) == sorted(listed)
