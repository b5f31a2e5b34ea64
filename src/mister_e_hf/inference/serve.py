"""A page in the browser: turns in, their emotions out as a picture and a table. `mister-e serve` shows it on this machine alone."""

import base64
import html
import io
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import logging, pipeline

from ..base.errors import InputError, MissingLibraryError, short
from ..base.modalities import TASK
from ..media.subtitles import SUBTITLES, read_subtitles
from .page_guard import MAX_UPLOAD, PageGuard, quiet, sweep_regularly
from .stored_stages import load_model
from .timeline import timeline_figure

if TYPE_CHECKING:
    import gradio

logger = logging.get_logger(__name__)

COLUMNS = ("words", "start", "end", "recording")
_KEPT = 3600  # seconds that an uploaded recording is kept at most
_WAITING = 20  # presses of the button that wait their turn; others are asked to come back
_MOST_TURNS = 2000
_ABOUT = f"""# Emotions of a conversation

Write a row per turn, or choose a recording with its subtitles, and press **Name the emotions**. No speaker is asked for.

**What it must not be used for:** to judge people. What it says are guesses about how something was said, and often wrong. Do not decide by it about anyone's
work, schooling, credit, health, asylum or guilt. The EU AI Act forbids to infer people's emotions at work and in school, but for medical or safety
reasons. Tell those whom you record, and ask them.

Words and sound go to the machine that runs this page and nowhere else. Recordings are deleted there {_KEPT // 60} minutes after they came, and when the page ends.
"""
_HOW = """A turn needs words or sound. In the table, arrow keys move, and Enter begins and ends writing in a cell.

- One recording of all: choose it below, and give each turn its start and end in seconds, or choose subtitles, which fill the table.
- A recording per turn: choose them all below in the order of the turns; their names go to the column *recording*."""
_CSS = """
.mister-e-scroll { overflow-x: auto; max-width: 100%; }
.mister-e-scroll img { width: 100%; min-width: 640px; background: white; }
.mister-e-scroll table { border-collapse: collapse; }
.mister-e-scroll :is(th, td) { padding: 0.3em 0.7em; text-align: left; border-bottom: 1px solid #8888; }
.mister-e-scroll caption { text-align: left; font-weight: bold; padding: 0.5em 0; }
.mister-e-error { border: 2px solid #D55E00; border-radius: 4px; padding: 0.6em 0.8em; overflow-wrap: anywhere; }
:is(button, a, input, td, [tabindex]):focus-visible { outline: 3px solid #0072B2 !important; outline-offset: 1px; }
"""

# Gradio calls every upload button the same, which tells one who hears the page nothing.
_NAME_UPLOADS = """() => {
    const name = () => document.querySelectorAll("#recordings, #subtitles").forEach(box => {
        box.querySelector("button[aria-label^='Click']")?.setAttribute("aria-label", "Choose " + box.id);
    });
    name();
    new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}"""

# Gradio opens the field of a cell that is typed on, but gives it the keys one frame too late, so that the first letter is lost.
_FIRST_LETTER = """() => document.addEventListener("keydown", ({ target, key, ctrlKey, metaKey, altKey }) => {
    if (target.role !== "gridcell" || key.length !== 1 || key === " " || ctrlKey || metaKey || altKey) return;
    let arrived = false;
    target.addEventListener("input", () => { arrived = true; }, { once: true });
    target.addEventListener("focusin", () => setTimeout(() => {
        if (!arrived) document.execCommand("insertText", false, key);
    }), { once: true });
}, true)"""


def build_page(recogniser) -> "gradio.Blocks":
    r"""
    The page around a pipeline; `serve` shows it.

    Args:
        recogniser ([`ConversationEmotionPipeline`]): what names the emotions. With a transcriber it also fills in missing words.

    Raises:
        ImportError: without gradio, with what to install.
    """
    gr = _gradio()
    with gr.Blocks(title="Emotions of a conversation", analytics_enabled=False, delete_cache=(60, _KEPT)) as page:
        gr.Markdown(_ABOUT)
        gr.HTML(_model_line(recogniser))
        gr.Markdown(_HOW)
        with gr.Row():
            recordings = gr.File(
                label="Recordings (optional)", file_count="multiple", height=170, elem_id="recordings"
            )
            subtitles = gr.File(
                label="Subtitles, SRT or WebVTT (optional)",
                file_types=list(SUBTITLES),
                height=170,
                elem_id="subtitles",
            )
        table = gr.Dataframe(
            [[""] * len(COLUMNS)] * 3,
            headers=list(COLUMNS),
            type="array",
            label="Turns; start and end in seconds",
            interactive=True,
            wrap=True,
            column_widths=["40%", "16%", "16%", "22%"],
            show_row_numbers=True,
            elem_id="turns",
        )
        add = gr.Button("Add a turn", elem_id="add")
        press = gr.Button("Name the emotions", variant="primary", elem_id="press")
        trouble = gr.HTML(elem_id="trouble")
        result = gr.HTML(elem_id="result")

        def told(work):
            """Errors are shown on the page, never as a traceback."""

            def run(*given):
                try:
                    return *work(*given), ""
                except (InputError, OSError) as error:
                    return gr.skip(), "", _alert(short(error, 600))
                except Exception as error:
                    logger.error(f"The page failed: {type(error).__name__}: {short(error)}")
                    return gr.skip(), "", _alert(f"The program failed: {type(error).__name__}: {short(error)}")

            return run

        page.load(js=_NAME_UPLOADS)
        page.load(js=_FIRST_LETTER)
        both = [table, result, trouble]
        press.click(
            told(lambda rows, paths: emotions(recogniser, rows, paths or [])),
            [table, recordings],
            both,
            api_name="emotions",
        )
        add.click(told(lambda rows: ([*_rows(rows), [""] * len(COLUMNS)], "")), table, both, api_visibility="private")
        subtitles.upload(told(lambda path: (subtitle_rows(path), "")), subtitles, both, api_visibility="private")
        recordings.upload(
            told(lambda rows, paths: (name_recordings(rows, paths), "")),
            [table, recordings],
            both,
            api_visibility="private",
        )
    quiet(page, gr.Error)
    return page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)


def serve(model: str, host: str = "127.0.0.1", port: int = 7860, **options: Any):
    r"""
    Show the page until it is interrupted.

    Args:
        model: checkpoint folder, or its id on the Hub.
        host: address to listen at. `0.0.0.0` lets every machine in the network use the page, and nothing asks for a password.
        port: where to listen.
        options: of the pipeline, such as `transcriber`, `device` and `revision`; None is left out.

    Raises:
        ImportError: without gradio or matplotlib, with what to install.
        ValueError: for a port that is none.
        OSError: if the port is taken; if there is no such model.
    """
    if not 0 < port < 65536:
        raise InputError(f"port must be a number from 1 to 65535, got {port}")
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        # Uploads, and whatever else is written for a while: gone with the page. Some of gradio reads it when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        ended = sweep_regularly(folder, _KEPT, every=60)
        try:
            _run_page(model, host, port, folder, options)
        finally:
            ended.set()
            tempfile.tempdir = before


def _run_page(model: str, host: str, port: int, folder: str, options: dict[str, Any]):
    gr = _gradio()
    from starlette.middleware import Middleware

    options = {name: value for name, value in options.items() if value is not None}
    hub = {name: options.pop(name) for name in ("revision",) if name in options}
    page = build_page(pipeline(TASK, model=load_model(model, **hub), trust_remote_code=False, **options))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            theme=_theme(gr),
            css=_CSS,
            share=False,
            quiet=True,
            footer_links=[],
            run_history=False,  # which would keep in the browser what was given
            enable_monitoring=False,
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
            app_kwargs={"middleware": [Middleware(PageGuard, folder=folder, host=host)]},
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise OSError(
            f"Cannot listen at {host}, port {port}; if it is taken, choose another --port ({error})"
        ) from error
    print(f"The page is at {page.local_url} until it is interrupted", flush=True)
    page.block_thread()


def emotions(recogniser, rows: Sequence[Sequence[Any]], paths: Sequence[str]) -> tuple[list[list[str]], str]:
    r"""
    What the button does.

    Args:
        rows: the table, four cells a row as in `COLUMNS`; empty rows are no turns.
        paths: of the uploaded recordings.

    Returns:
        the table's turns, with the words that were transcribed; the answer as HTML.

    Raises:
        ValueError: naming the turn as the table counts them, from 1.
    """
    turns, rows = page_turns(rows, paths)
    times = [(turn.get("start"), turn.get("end")) for turn in turns]
    for turn in turns:
        if "audio" not in turn:  # then the times are the picture's alone
            turn.pop("start", None), turn.pop("end", None)
    whole = len(turns) == 1 and "audio" in turns[0] and times == [(None, None)]
    try:
        found = recogniser(turns)
    except (ValueError, OSError) as error:
        raise InputError(_for_readers(str(error), paths)) from error
    except (MemoryError, RuntimeError) as error:  # torch's, where memory runs out
        raise InputError(
            f"These {len(turns)} turns could not be processed, perhaps for want of memory: {type(error).__name__}: {short(error)}. Give "
            "fewer of them at once"
        ) from error
    rows = [[one.get("text") or row[0], *row[1:]] for one, row in zip(found, rows, strict=True)]
    note = "<p>The whole recording is one turn. Choose its subtitles, or give each turn a row, to split it.</p>"
    return rows, note * whole + _picture(found, times) + _table(found, rows)


def page_turns(rows: Sequence[Sequence[Any]], paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """
    The turns of the table as the pipeline takes them, and their rows; see [`emotions`].

    Raises:
        ValueError: naming the turn, as the table counts those that are not empty, from 1.
    """
    recordings = {Path(path).name: path for path in paths}
    if len(recordings) < len(paths):
        raise InputError("Two recordings have the same name; rename one and choose them again")
    if gone := [name for name, path in recordings.items() if not Path(path).is_file()]:
        raise InputError(f"The recording {gone[0]} was deleted after {_KEPT // 60} minutes; choose it again")
    rows = [row for row in _rows(rows) if any(row)] or ([[""] * len(COLUMNS)] if len(paths) == 1 else [])
    if len(rows) > _MOST_TURNS:
        raise InputError(f"The table has {len(rows)} turns; the page takes {_MOST_TURNS} at once")
    if not rows:
        raise InputError("There is no turn yet: write its words into the table, or choose a recording")
    named = {row[3] for row in rows}
    shared = next(iter(recordings)) if len(recordings) == 1 and not named & set(recordings) else None
    turns, used = [], set()
    for number, (words, start, end, name) in enumerate(rows, start=1):
        turn: dict[str, Any] = {"text": words or None}
        for field, given in {"start": start, "end": end}.items():
            if given:
                turn[field] = _seconds(given, f"Turn {number}: {field}")
        if len(turn) == 2:
            raise InputError(f"Turn {number} has a start or an end alone: give both, in seconds, or none")
        if len(turn) == 3 and turn["end"] <= turn["start"]:
            raise InputError(f"Turn {number} ends at {end} s, and starts at {start} s")
        if name and name not in recordings:
            have = ", ".join(recordings) or "none"
            raise InputError(f"Turn {number}: no recording is called {name!r}; chosen are: {have}")
        if not name and shared and (start or len(rows) == 1):
            name = shared
        if name:
            turn["audio"] = recordings[name]
            used.add(name)
        elif not words:
            raise InputError(f"Turn {number} has neither words nor a recording: give one, or empty the row")
        turns.append(turn)
    if unused := [name for name in recordings if name not in used]:
        raise InputError(
            f"The recording {unused[0]} belongs to no turn: give turns their start and end in it, write its name into the column 'recording', "
            "or remove it"
        )
    return turns, rows


def subtitle_rows(path: str) -> list[list[str]]:
    """
    The table's rows for an SRT or WebVTT file.

    Raises:
        ValueError: as of [`read_subtitles`].
    """
    try:
        cues = read_subtitles(path)
    except ValueError as error:
        raise InputError(_for_readers(str(error), [path])) from error
    return [[cue["text"] or "", f"{cue['start']:g}", f"{cue['end']:g}", ""] for cue in cues]


def name_recordings(rows: Sequence[Sequence[Any]], paths: Sequence[str]) -> list[list[str]]:
    """The table's rows with several recordings' names beside the turns in order, and rows of their own where there are more. One recording is that of all."""
    rows = _rows(rows)
    if len(paths) < 2:
        return rows
    named = {row[3] for row in rows}
    waiting = [name for name in (Path(path).name for path in paths) if name not in named]
    for row in rows:
        if waiting and not row[1] and not row[3]:
            row[3] = waiting.pop(0)
    return rows + [["", "", "", name] for name in waiting]


def _gradio():
    try:
        import gradio
        import matplotlib  # noqa: F401  (asked for here, not at the first press)
    except ImportError as error:
        raise MissingLibraryError("The page needs gradio and matplotlib: pip install gradio matplotlib") from error
    return gradio


def _model_line(recogniser) -> str:
    config = recogniser.model.config
    name = Path(config._name_or_path).name or "unnamed"
    labels = ", ".join(html.escape(str(label)) for label in config.id2label.values())
    return f"<p>Model: <b>{html.escape(name)}</b>. It names: {labels}.</p>"


def _theme(gr):
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none from the network
    dark = {"button_primary_background_fill": "#0B5CAD", "button_primary_background_fill_hover": "#08437E"}
    return theme.set(**dark, **{f"{name}_dark": colour for name, colour in dark.items()})  # white words stand out


def _rows(rows: Any) -> list[list[str]]:
    """The table as it came, each cell as text."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise InputError(f"The table must be a list of rows, got {type(rows).__name__}")
    found = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(COLUMNS):
            cells = f"{len(row)} cells" if isinstance(row, Sequence) and not isinstance(row, str) else short(row, 40)
            raise InputError(f"Row {number} has {cells}; expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
        found.append(["" if cell is None else str(cell).strip() for cell in row])
    return found


def _seconds(given: str, name: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d*)?|\.\d+", given):
        raise InputError(f"{name} must be seconds, such as 12.5, got {given!r:.80}")
    return float(given)


def _for_readers(message: str, paths: Sequence[str]) -> str:
    """The pipeline's message with names in place of the paths of uploads, and turns counted from 1."""
    for path in paths:
        message = message.replace(str(path), Path(path).name)
    return re.sub(r"dialogue 0, turn (\d+)", lambda found: f"Turn {int(found[1]) + 1}", message)


def _alert(message: str) -> str:
    return f'<p class="mister-e-error" role="alert"><strong>Not done.</strong> {html.escape(message)}</p>'


def _picture(found: Sequence[dict[str, Any]], times: Sequence[tuple[float | None, float | None]]) -> str:
    file = io.BytesIO()
    timed = [one | {"start": start, "end": end} for one, (start, end) in zip(found, times, strict=True)]
    figure = timeline_figure(timed, first=1)
    figure.savefig(file, format="png")
    picture = base64.b64encode(file.getvalue()).decode()
    gate = " and of the gate weights" if "gate" in found[0] else ""
    return (
        '<div class="mister-e-scroll" tabindex="0" role="region" aria-label="Picture of the emotions; the table below says the same">'
        f'<img alt="Bars of the turns\' emotions{gate}" src="data:image/png;base64,{picture}"></div>'
    )


def _table(found: Sequence[dict[str, Any]], rows: Sequence[Sequence[str]]) -> str:
    heads = list(found[0].get("gate", ()))
    head = "".join(
        f'<th scope="col">{html.escape(name)}</th>'
        for name in ("turn", "text", "emotion", "probability", *(f"gate weight of {head}" for head in heads))
    )
    body = ""
    for number, (one, row) in enumerate(zip(found, rows, strict=True), start=1):
        cells = (row[0], one["label"], f"{one['score']:.2f}", *(f"{one['gate'][head]:.2f}" for head in heads))
        body += (
            f'<tr><th scope="row">{number}</th>' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    return (
        '<div class="mister-e-scroll" tabindex="0" role="region" aria-label="Table of the emotions">'
        f"<table><caption>Emotions</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
