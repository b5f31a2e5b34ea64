"""Other layouts of MELD folders, and archives with forbidden content."""

import io
import logging
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from mister_e_hf import Iemocap, Meld
from mister_e_hf.corpora.archives import DAMAGED, unpack
from support.small_corpora import write_iemocap, write_meld


def build(folder: Path, builder_class=Meld):
    builder = builder_class(folder, cache_dir=str(folder.parent / "cache"))
    builder.download_and_prepare()
    return builder.as_dataset()


def test_clips_beside_the_tables_are_reported(tmp_path, caplog):
    folder = write_meld(tmp_path / "MELD")
    for place in ("train_splits", "dev_splits_complete", "output_repeated_splits_test"):
        shutil.move(folder / place / "dia0_utt0.wav", folder / f"dia{len(place)}_utt0.wav")
        shutil.rmtree(folder / place)
    with caplog.at_level(logging.WARNING):
        build(folder)
    (astray,) = [message for message in caplog.messages if "are not read" in message]
    assert f"MELD: 3 clips are not read, such as '{folder / 'dia12_utt0.wav'}'" in astray
    assert all(f"'{folder / name}'" in astray for name in ("train", "dev", "test"))


def test_a_folder_with_links_to_itself_is_read(tmp_path):
    folder = write_meld(tmp_path / "MELD")
    for name in ("x", "y", "train_splits/z"):
        (folder / name).symlink_to(folder)
    corpus = build(folder)
    assert [turn["duration"] for turn in corpus["train"][0]["utterances"]] == [0.5, 0.5]


def test_header_and_delimiter_may_be_those_of_a_spreadsheet(tmp_path):
    folder = write_meld(tmp_path / "MELD")
    for path in folder.glob("*.csv"):
        text = path.read_text(encoding="utf-8").replace("Oh, no!", "Oh no!").replace('"', "")
        path.write_text(text.lower().replace(",", ";").replace("dialogue_id", "Dialogue ID"), encoding="utf-8")
    assert build(folder)["test"][0]["utterances"][0]["text"] == "oh no!"


@pytest.mark.parametrize("column", [-2, -1])
def test_negative_numbers_are_named(tmp_path, column):
    path = write_meld(tmp_path / "MELD") / "dev_sent_emo.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = lines[2].rsplit(",", 2)
    cells[column] = "-1"
    path.write_text("\n".join([*lines[:2], ",".join(cells)]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"dev_sent_emo\.csv', row 3: .* whole numbers from 0, got '(-1|0)' and '(-1|1)'"
    ):
        build(tmp_path / "MELD")


@pytest.mark.parametrize(
    "line",
    [
        "[1.0 - 2.0]\tSes_\tneu\t[1]",
        "[1.0 - 2.0]\tSes01_\tneu\t[1]",
        "[x - 2.0]\tSes01F_impro01_F000\tneu\t[1]",
        "[1.0",
    ],
)
def test_malformed_line_of_iemocap_raises(tmp_path, line):
    path = next(write_iemocap(tmp_path / "source").rglob("EmoEvaluation/*.txt"))
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"{path.name}', line \d+: expected '\[start - end\]"):
        build(tmp_path / "source", Iemocap)


# Archives


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for field, value in fields.items():
        setattr(found, field, value)
    return found


def test_an_archive_of_archives_is_unpacked_without_rights_of_its_own(tmp_path):
    inner = archive_of(tmp_path / "in.tar.gz", (member("clips/dia0_utt0.mp4", mode=0o6777), b"clip")).read_bytes()
    outer = archive_of(tmp_path / "out", (member("MELD", tarfile.DIRTYPE), b""), (member("MELD/train.tar.gz"), inner))
    unpack(outer, tmp_path / "made")
    files = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert files == [tmp_path / "made" / "MELD" / "train" / "clips" / "dia0_utt0.mp4"]
    assert not stat.S_IMODE(files[0].stat().st_mode) & 0o7111


@pytest.mark.parametrize(
    "bad",
    [
        member("dev", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("pipe", tarfile.FIFOTYPE),
        member("link", tarfile.SYMTYPE, linkname="/etc"),
        member("hard", tarfile.LNKTYPE, linkname="a"),
        member("../outside"),
        member("/tmp/absolute"),
    ],
    ids=lambda bad: bad.name,
)
@pytest.mark.parametrize("within", [False, True])
def test_special_files_in_an_archive_raise_and_leave_nothing(tmp_path, bad, within):
    archive = archive_of(tmp_path / "a.tar.gz", (member("a"), b"x"), (bad, b""))
    if within:
        archive = archive_of(tmp_path / "b.tar.gz", (member("train.tar.gz"), archive.read_bytes()))
    with pytest.raises(ValueError, match=f"it holds '{bad.name}', which"):
        unpack(archive, tmp_path / "made")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gz"] * (1 + within)


def test_garbage_and_archive_bombs_raise(tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "a.tar.gz", (member("train.tar.gz"), b"garbage"))
    with pytest.raises(DAMAGED):
        unpack(archive, tmp_path / "made")
    monkeypatch.setattr("mister_e_hf.corpora.archives._AT_LEAST", 1000)
    with pytest.raises(ValueError, match="far more than its size"):
        unpack(archive_of(tmp_path / "b.tar.gz", (member("zeros"), bytes(10**6))), tmp_path / "made")
    assert not (tmp_path / "made").exists()
