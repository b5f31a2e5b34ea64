"""
Local web app that predicts the emotions or scores of turns and shows them as a plot and a table: `mister-e serve`.
"""

import base64
import html
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import logging, pipeline

from ..base.errors import InputError, MissingLibraryError, short
from ..base.modalities import TASK
from ..base.part_weights import ANSWERED_WEIGHTS
from ..media.subtitles import SUBTITLES
from .page_guard import MAX_UPLOAD, PageGuard, quiet, sweep_regularly
from .page_turns import COLUMNS, KEPT, for_page, name_recordings, page_turns, subtitle_rows, table_rows
from .predict import content_of
from .prediction_output import weight_columns
from .stored_stages import load_model
from .timeline import timeline_figure

if TYPE_CHECKING:
    import gradio

logger = logging.get_logger(__name__)

_WAITING = 20  # requests that are queued; more are rejected
_ABOUT = f"""# Emotions of a conversation

Write a row per turn, or choose a recording with its subtitles, and press the button below the table. The speaker is
not used.

**Do not use it to judge people.** Its answers are guesses about how something was said, and often wrong. Do not base
decisions about anyone's work, schooling, credit, health, asylum or guilt on them. The EU AI Act forbids inferring
people's emotions at work and in school, except for medical or safety reasons. Ask the speakers for their consent.

What you write or choose is sent only to the machine that runs this page. Recordings are deleted there
{KEPT // 60} minutes after the upload, and when the page ends.
"""
_HOW = """A turn needs text or a recording. In the table, arrow keys move, and Enter begins and ends writing in a cell.

- One recording of all turns: choose it below and enter the start and end of each turn in seconds, or choose subtitles,
  which fill the table.
- A recording per turn: choose them all below in the order of the turns; their names go to the column *recording*.
"""
_VIDEO = """
The model also looks at the picture of a recording that has one, such as an MP4 file."""
_AUDIO_ALONE = """
Of a video the model uses the audio alone."""
_CSS = """
.mister-e-scroll { overflow-x: auto; max-width: 100%; }
.mister-e-scroll img { width: 100%; min-width: 640px; background: white; }
.mister-e-scroll table { border-collapse: collapse; }
.mister-e-scroll :is(th, td) { padding: 0.3em 0.7em; text-align: left; border-bottom: 1px solid #8888; }
.mister-e-scroll caption { text-align: left; font-weight: bold; padding: 0.5em 0; }
.mister-e-error { border: 2px solid #D55E00; border-radius: 4px; padding: 0.6em 0.8em; overflow-wrap: anywhere; }
:is(button, a, input, td, [tabindex]):focus-visible { outline: 3px solid #0072B2 !important; outline-offset: 1px; }
"""

# Gradio gives every upload button the same label, which is useless in a screen reader.
_NAME_UPLOADS = """() => {
    const name = () => document.querySelectorAll("#recordings, #subtitles").forEach(box => {
        box.querySelector("button[aria-label^='Click']")?.setAttribute("aria-label", "Choose " + box.id);
    });
    name();
    new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}"""

# Gradio opens the field of a cell on a key press, but forwards keys one frame too late, so the first letter is lost.
_FIRST_LETTER = """() => document.addEventListener("keydown", ({ target, key, ctrlKey, metaKey, altKey }) => {
    if (target.role !== "gridcell" || key.length !== 1 || key === " " || ctrlKey || metaKey || altKey) return;
    let arrived = false;
    target.addEventListener("input", () => { arrived = true; }, { once: true });
    target.addEventListener("focusin", () => setTimeout(() => {
        if (!arrived) document.execCommand("insertText", false, key);
    }), { once: true });
}, true)"""


def build_page(erc) -> "gradio.Blocks":
    r"""
    Build the web app around a pipeline; [`serve`] runs it.

    Args:
        erc ([`ConversationEmotionPipeline`]): with a transcriber, it also fills in missing text.

    Raises:
        ImportError: if gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="Emotions of a conversation", analytics_enabled=False, delete_cache=(60, KEPT)) as page:
        gr.Markdown(_ABOUT)
        gr.HTML(_model_line(erc))
        reads_video = "visual" in erc.model.config.modalities
        gr.Markdown(_HOW + (_VIDEO if reads_video else _AUDIO_ALONE))
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
        asked = "Predict the scores" if erc.model.config.task == "regression" else "Name the emotions"
        press = gr.Button(asked, variant="primary", elem_id="press")
        trouble = gr.HTML(elem_id="trouble")
        result = gr.HTML(elem_id="result")

        def shows_errors(work):
            """Show errors on the page, never as a traceback."""

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
            shows_errors(lambda rows, paths: emotions(erc, rows, paths or [], reads_video)),
            [table, recordings],
            both,
            api_name="emotions",
        )
        add.click(
            shows_errors(lambda rows: ([*table_rows(rows), [""] * len(COLUMNS)], "")),
            table,
            both,
            api_visibility="private",
        )
        subtitles.upload(
            shows_errors(lambda path: (subtitle_rows(path), "")), subtitles, both, api_visibility="private"
        )
        recordings.upload(
            shows_errors(lambda rows, paths: (name_recordings(rows, paths), "")),
            [table, recordings],
            both,
            api_visibility="private",
        )
    quiet(page, gr.Error)
    return page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)


def serve(model: str, host: str = "127.0.0.1", port: int = 7860, **options: Any):
    r"""
    Run the web app until it is interrupted.

    Args:
        model: checkpoint folder, or its id on the Hub.
        host: address to listen on. With `0.0.0.0` every machine in the network can use the page, without a password.
        port: port to listen on.
        options: of the pipeline, such as `transcriber`, `device` and `revision`; None is left out.

    Raises:
        ImportError: if gradio or matplotlib is not installed.
        InputError: if the port is not valid, or the model does not exist.
        OSError: if the port is in use.
    """
    if not 0 < port < 65536:
        raise InputError(f"port must be a number from 1 to 65535, got {port}")
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        # For uploads and other temporary files, deleted with the page. Gradio reads it when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        ended = sweep_regularly(folder, KEPT, every=60)
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
    loaded = load_model(model, **hub)
    erc = pipeline(TASK, model=loaded, trust_remote_code=False, **options)  # type: ignore[call-overload]  # tasks of transformers alone
    page = build_page(erc)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            theme=_theme(gr),
            css=_CSS,
            share=False,
            quiet=True,
            footer_links=[],
            run_history=False,  # would keep the inputs in the browser
            enable_monitoring=False,
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
            app_kwargs={"middleware": [Middleware(PageGuard, folder=folder, host=host)]},
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise OSError(
            f"Cannot listen on {host}, port {port}; if it is in use, choose another --port ({error})"
        ) from error
    print(f"The page is at {page.local_url} until it is interrupted", flush=True)
    page.block_thread()


def emotions(
    erc, rows: Sequence[Sequence[Any]], paths: Sequence[str], reads_video: bool = False
) -> tuple[list[list[str]], str]:
    r"""
    Predict the emotions or scores of the turns in the table.

    Args:
        rows: the table, with the cells of `COLUMNS` in each row; empty rows are ignored.
        paths: of the uploaded recordings.
        reads_video: whether the pipeline takes video; otherwise a recording is its audio.

    Returns:
        the rows of the turns, with transcribed text filled in; the result as HTML.

    Raises:
        InputError: naming the turn; turns are counted from 1.
    """
    turns, cells = page_turns(rows, paths)
    times = [(turn.get("start"), turn.get("end")) for turn in turns]
    whole = len(turns) == 1 and "audio" in turns[0] and times == [(None, None)]
    contents = {path: content_of(path, reads_video) for path in paths}
    for turn in turns:
        if "audio" in turn:
            recording = turn.pop("audio")
            turn[contents[recording]] = recording
        else:  # its times are only for the plot
            turn.pop("start", None)
            turn.pop("end", None)
    try:
        found = erc(turns)
    except (ValueError, OSError) as error:
        raise InputError(for_page(str(error), paths)) from error
    except (MemoryError, RuntimeError) as error:  # torch's, where memory runs out
        raise InputError(
            f"These {len(turns)} turns could not be processed, perhaps due to too little memory: "
            f"{type(error).__name__}: {short(error)}. Enter fewer turns at once"
        ) from error
    cells = [[one.get("text") or row[0], *row[1:]] for one, row in zip(found, cells, strict=True)]
    note = "<p>The whole recording is one turn. To split it, choose its subtitles or enter a row for each turn.</p>"
    return cells, note * whole + _picture(found, times) + _table(found, cells)


def _gradio():
    try:
        import gradio
        import matplotlib  # noqa: F401  (checked here, not at the first request)
    except ImportError as error:
        raise MissingLibraryError("The page needs gradio and matplotlib: pip install gradio matplotlib") from error
    return gradio


def _model_line(erc) -> str:
    config = erc.model.config
    name = Path(config._name_or_path).name or "unnamed"
    labels = ", ".join(html.escape(str(label)) for label in config.id2label.values())
    predicted = "scores" if config.task == "regression" else "emotions"
    return f"<p>Model: <b>{html.escape(name)}</b>. Its {predicted}: {labels}.</p>"


def _theme(gr):
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none from the network
    dark = {"button_primary_background_fill": "#0B5CAD", "button_primary_background_fill_hover": "#08437E"}
    return theme.set(**dark, **{f"{name}_dark": colour for name, colour in dark.items()})  # contrast to white text


def _alert(message: str) -> str:
    return f'<p class="mister-e-error" role="alert"><strong>Not done.</strong> {html.escape(message)}</p>'


def _picture(found: Sequence[dict[str, Any]], times: Sequence[tuple[float | None, float | None]]) -> str:
    file = io.BytesIO()
    timed = [one | {"start": start, "end": end} for one, (start, end) in zip(found, times, strict=True)]
    figure = timeline_figure(timed, first=1)
    figure.savefig(file, format="png")
    picture = base64.b64encode(file.getvalue()).decode()
    weights = "".join(f" and of the {kind.title}s" for kind in ANSWERED_WEIGHTS if kind.answer in found[0])
    shown = "Lines of the turns' scores" if "task" in found[0] else "Bars of the turns' emotions"
    return (
        '<div class="mister-e-scroll" tabindex="0" role="region" '
        f'aria-label="Plot of the {_predicted(found)}; the table below has the same content">'
        f'<img alt="{shown}{weights}" src="data:image/png;base64,{picture}"></div>'
    )


def _predicted(found: Sequence[dict[str, Any]]) -> str:
    return "scores" if "task" in found[0] else "emotions"


def _table(found: Sequence[dict[str, Any]], rows: Sequence[Sequence[str]]) -> str:
    weights = weight_columns(found[0])
    targets = list(found[0]["scores"]) if "task" in found[0] else []
    shown = targets or ("emotion", "probability")
    header = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("turn", "words", *shown, *weights))
    body = ""
    for number, (one, row) in enumerate(zip(found, rows, strict=True), start=1):
        values = [f"{one['scores'][target]:.2f}" for target in targets] or [one["label"], f"{one['score']:.2f}"]
        cells = (row[0], *values, *(f"{weight_columns(one)[name]:.2f}" for name in weights))
        body += (
            f'<tr><th scope="row">{number}</th>' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    what = _predicted(found)
    return (
        f'<div class="mister-e-scroll" tabindex="0" role="region" aria-label="Table of the {what}">'
        f"<table><caption>{what.capitalize()}</caption><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
        "</div>"
    )
