"""Predict emotions or scores for recordings, transcripts and tables of turns: `mister-e predict`."""

import logging
import re
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

from ..base import progress
from ..base.errors import InputError, short
from ..base.modalities import MODALITIES, TASK
from ..base.plain_text import some_of
from ..base.prompt_counts import prompt_sentence
from ..base.score_names import capitalized
from ..media.subtitles import SUBTITLES, read_subtitles
from ..media.text_files import read_text, split_lines, text_of_name
from .dialogue_turns import DialogueTurns
from .transcript_notes import TranscriptNotes

logger = logging.getLogger(__name__)

_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)  # of a model on the Hub
_SPEAKER = re.compile(r"([^:]{1,40}):\s+(\S.*)")


def predict_dialogues(
    source: str | Path,
    model: str,
    segments: str | Path | None = None,
    columns: dict[str, str] | None = None,
    revision: str | None = None,
    device: str | None = None,
    **options: Any,
) -> tuple[list[str], Generator[dict[str, Any], None, None]]:
    r"""
    Predict the emotions or scores of the turns of one recording, of a transcript with a turn in each line, of every
    dialogue of a folder or table that [`DialogueFolder`] reads, or of a finished corpus of vectors or of dialogues. A
    table without `dialogue_id` is one dialogue, and one without `order` is in the order of its rows.

    Args:
        source: an audio or video file with its turns in `segments` or in a subtitle file of the same name; a `.txt`
            file; a folder, table or subtitle file; or a corpus folder, or one of its Parquet tables.
        model: checkpoint folder or id on the Hub.
        segments: SRT or WebVTT file with the turns of the recording.
        columns: names of the table's columns, by field.
        revision: branch, tag or commit of the model.
        device: to run on; by default the first accelerator.
        options: of [`ConversationEmotionPipeline`].

    Returns:
        the classes or targets of the model, and an iterator over the turns in order: dictionaries with `dialogue`,
        `split` if the source has several, `turn`, `start`, `end` and `text` if known, and the pipeline's result.
        Closing it removes its temporary files.

    Raises:
        FileNotFoundError: if the source does not exist.
        InputError: for a source, model or device that cannot be used, before anything is loaded; later naming dialogue
            and turn.
    """
    source = Path(source)
    segments = check_source(source, segments, columns)
    check_model(model, revision)
    # before anything heavy is imported
    from transformers import pipeline

    from ..models.modeling_conversation import ConversationPreTrainedModel
    from .stored_stages import has_encoder, load_model

    if device is not None:
        check_device(device)
    options = {name: value for name, value in options.items() if value is not None}
    hub = {} if revision is None else {"revision": revision}
    loaded = cast(ConversationPreTrainedModel, load_model(str(model), **hub))
    corpus = None
    if segments is None and not _is_transcript(source):
        from .corpus_turns import finished_corpus  # needs datasets, which takes a second; a recording does not

        corpus = finished_corpus(source)
    of_vectors = corpus is not None and corpus.of_vectors
    if of_vectors and (options.get("transcriber") or columns):
        given = "--columns" if columns else "--transcriber"
        raise InputError(f"{given} is for turns with audio or text, and '{source}' holds vectors")
    takes_contents = loaded.config.reads_transcripts or any(
        has_encoder(str(model), name, **hub) for name in loaded.config.modalities
    )
    if not of_vectors and not takes_contents:
        raise InputError(
            f"'{model}' has no encoders, so it takes vectors: a corpus folder or Parquet table with the columns "
            f"{' and '.join(MODALITIES[name].features for name in loaded.config.modalities)}. '{source}' has none"
        )
    options |= {"device": device, "trust_remote_code": False}
    erc = pipeline(TASK, model=loaded, **options)  # type: ignore[call-overload]  # tasks of transformers alone
    erc._encoders.only_given = of_vectors
    reads_video = "visual" in loaded.config.modalities
    if segments is not None:
        dialogues = _recording(source, segments, reads_video)
    elif corpus is not None:
        from .corpus_turns import turns_of_dialogues, turns_of_vectors

        dialogues = turns_of_vectors(corpus, loaded.config) if of_vectors else turns_of_dialogues(corpus)
    else:
        dialogues = _transcript(source) if _is_transcript(source) else _tables(source, columns, reads_video)
    labels = loaded.config.id2label
    assert labels is not None  # a conversation model has classes
    return [str(label) for label in labels.values()], _predicted(erc, dialogues)


def check_source(
    source: str | Path, segments: str | Path | None = None, columns: dict[str, str] | None = None
) -> Path | None:
    r"""
    The subtitle file with the turns of a recording: `segments`, or the one of the same name beside it; None for a
    folder or table.

    Raises:
        FileNotFoundError: if the source or the subtitle file does not exist.
        InputError: if a recording has no subtitle file, or several; for subtitles or columns with a source that does
            not use them.
    """
    from ..corpora.recordings import MEDIA, files_in, recording_of

    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"'{source}' not found; expected a recording, folder or table")
    if columns and _is_transcript(source):
        raise InputError(f"--columns are of a table, and '{source}' is a transcript")
    if segments is None and not (source.is_file() and source.suffix.lower() in MEDIA):
        return None
    if not source.is_file() or source.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet", ".txt", *SUBTITLES):
        raise InputError(f"--segments are the turns of a recording, and '{source}' is not one")
    if columns:
        raise InputError(f"--columns are of a table, and '{source}' is a recording")
    if segments is not None:
        if not Path(segments).is_file():
            raise FileNotFoundError(f"No subtitles at '{segments}'")
        return Path(segments)
    subtitles = [path for path in files_in(source.parent) if path.suffix.lower() in SUBTITLES]
    found = [path for path in subtitles if recording_of(path, [source])]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"'{source}' has several subtitle files beside it ({names}); choose one with --segments")
    if not found:
        raise InputError(
            f"'{source}' is a recording, which needs its turns: pass --segments {source.stem}.srt, or put a subtitle "
            "file of that name beside it"
        )
    return found[0]


def check_model(model: str | Path, revision: str | None = None):
    r"""
    Raises:
        InputError: if it is neither a checkpoint folder nor a valid id on the Hub, or a folder with a revision.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"--revision is of a model on the Hub, and '{model}' is a folder")
        if not (path / "config.json").is_file():
            if seeds := sorted(each.parent.name for each in path.glob("seed-*/config.json")):
                raise InputError(
                    f"'{model}' holds the runs of several seeds, {some_of(seeds)}; pass one of them, such as "
                    f"'{path / seeds[0]}'. Their mean and standard deviation are in its summary.json"
                )
            raise InputError(f"'{model}' is not a checkpoint: it has no config.json")
        return
    if path.exists():
        raise InputError(f"'{model}' is a file; expected a checkpoint folder, or an id on the Hub")
    if not _ID.fullmatch(str(model)) or Path(str(model).partition("/")[0]).is_dir():
        raise InputError(f"Checkpoint folder '{model}' not found")


def check_transcriber(transcriber: str | None):
    r"""
    Raises:
        InputError: if it is neither a folder nor a valid id on the Hub.
    """
    if transcriber is None or Path(transcriber).is_dir():
        return
    if Path(transcriber).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", transcriber, re.ASCII):
        raise InputError(f"--transcriber: unknown model '{transcriber}'; expected a folder, or an id on the Hub")


def check_device(device: str):
    r"""
    Raises:
        InputError: if this machine does not have the device, with those that it has.
    """
    import torch

    known = ["cpu"]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        kind, count = accelerator.type, torch.accelerator.device_count()
        known += [kind, *(f"{kind}:{number}" for number in range(count))]
    if str(device) not in known:
        raise InputError(f"--device '{device}': this machine has {', '.join(known)}")


def _predicted(erc, dialogues: Iterator[DialogueTurns]) -> Generator[dict[str, Any], None, None]:
    to_warn = "visual" not in erc.model.config.modalities
    answered = unparsed = 0
    notes = TranscriptNotes(erc.model.config)
    with progress.bar("predicting", None, "vectors") as bar:
        erc._encoders.on_vectors = bar.update
        for name, turns, texts, split in dialogues:
            if to_warn and any(turn.get("video") is not None for turn in turns):
                logger.warning(
                    "The model does not read video: the pictures of the column `video` are not used, only its audio "
                    "where a turn has no other"
                )
                to_warn = False
            found = erc({"dialogue_id": name, "utterances": turns})
            place = {"dialogue": name} if split is None else {"dialogue": name, "split": split}
            for number, (turn, answer) in enumerate(zip(turns, found, strict=True)):
                known = {field: turn.get(field) for field in ("start", "end", "text")}
                known |= {} if texts is None else {"text": texts[number]}
                notes.add([answer.get("text", known["text"])])
                known = {field: value for field, value in known.items() if value is not None}
                answered += "answer" in answer
                unparsed += "unparsed" in answer
                yield {**place, "turn": number, **known, **answer}
    for sentence in (*notes.sentences(), prompt_sentence(erc.model.prompt_counts())):
        if sentence is not None:
            logger.warning("%s", capitalized(sentence))
    if unparsed:
        logger.warning(
            "%d of %d answers are neither a label nor a score of the model: `answer` is empty, and `unparsed` is the "
            "text",
            unparsed,
            answered,
        )


def _recording(source: Path, segments: Path, reads_video: bool) -> Iterator[DialogueTurns]:
    content = content_of(source, reads_video)
    turns = [{content: str(source)} | cue for cue in read_subtitles(segments)]
    yield DialogueTurns(text_of_name(source.name), turns)


def content_of(recording: str | Path, reads_video: bool) -> str:
    """The field of a turn that a recording belongs in: `"video"` if it has a picture that the model reads."""
    from ..media.video import VideoError, has_picture

    try:
        return "video" if reads_video and has_picture(recording) else "audio"
    except VideoError:  # PyAV cannot read it, soundfile may
        return "audio"


def _is_transcript(source: Path) -> bool:
    return source.is_file() and source.suffix.lower() == ".txt"


def _transcript(source: Path) -> Iterator[DialogueTurns]:
    lines = [line.strip() for line in split_lines(read_text(source)) if line.strip()]
    if not lines:
        raise InputError(f"'{source}' has no turns; expected one in each line")
    spoken = [_SPEAKER.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(spoken):
        names = sorted({found[1] for found in spoken if found})
        logger.warning(
            "'%s': the text before the first colon of each line is taken for the speaker: %s",
            source,
            short(", ".join(names), 100),
        )
        lines = [found[2] for found in spoken if found]
    yield DialogueTurns(text_of_name(source.stem), [{"text": line} for line in lines])


def _tables(source: Path, columns: dict[str, str] | None, reads_video: bool) -> Iterator[DialogueTurns]:
    from ..corpora.dialogue_folder import DialogueFolder  # needs datasets; a recording does not

    with tempfile.TemporaryDirectory() as cache:
        builder = DialogueFolder(
            source,
            columns={**columns} if columns else None,
            split_shares=(1, 0, 0),
            in_row_order=True,
            cache_dir=cache,
        )
        read = {split: found for split, found in builder.read(Path(builder.config.data_dir)).items() if found}
        for split, found in read.items():
            for dialogue in found:
                turns = [turn | _media(turn, reads_video) for turn in dialogue["utterances"]]
                yield DialogueTurns(dialogue["dialogue_id"], turns, split=split if len(read) > 1 else None)


def _media(turn: dict[str, Any], reads_video: bool) -> dict[str, Any]:
    """The audio and video of a table's turn as a corpus stores them; without audio, it is that of the video."""
    from ..corpora.sources import stored_audio
    from ..media.video import VideoError, has_sound

    found = {name: stored_audio(turn[name]) for name in ("audio", "video") if turn.get(name) is not None}
    if "video" in found and "audio" not in found:
        try:
            sounds = has_sound(found["video"])
        except VideoError:  # an error of the video, or of the audio if that is all that the model reads
            sounds = not reads_video
        found |= {"audio": found["video"]} if sounds else {}
    return found
