"""The page of `mister-e serve`: its functions, and the page itself in headless Chromium."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from mister_e_hf import cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.inference.page_turns import name_recordings, page_turns, subtitle_rows
from mister_e_hf.inference.serve import emotions
from support.new_process import run_python
from support.small_demo import run_small_demo

SRT = "1\n00:00:00,100 --> 00:00:00,800\nReally, you said?\n\n2\n00:00:00,900 --> 00:00:01,400\nNever.\n"


@pytest.fixture
def sounds(tmp_path) -> list[str]:
    """Two recordings of a second and a half."""
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for number, path in enumerate(paths):
        soundfile.write(path, 0.2 * np.sin(np.arange(24_000) / (9 + number)), 16_000)
    return paths


# Its functions, with neither gradio nor a model


def answer(turns: list[dict]) -> list[dict]:
    return [
        {"label": "joy", "score": 0.75, "scores": {"joy": 0.75, "<b>": 0.25}, "gate": {"speech": 0.0, "text": 1.0}}
        for _ in turns
    ]


def test_rows_with_text_are_turns_and_empty_rows_are_ignored():
    turns, rows = page_turns([["Hi.", "", "", ""], ["", None, "", ""], [" Go. ", "", "", ""]], [])
    assert turns == [{"text": "Hi."}, {"text": "Go."}]
    assert rows == [["Hi.", "", "", ""], ["Go.", "", "", ""]]


def test_one_recording_is_of_all_turns_with_times(sounds):
    turns, _ = page_turns([["Hi.", "0.1", "0.5", ""], ["", "0.5", "1", ""], ["So.", "", "", ""]], sounds[:1])
    assert turns == [
        {"text": "Hi.", "start": 0.1, "end": 0.5, "audio": sounds[0]},
        {"text": None, "start": 0.5, "end": 1.0, "audio": sounds[0]},
        {"text": "So."},
    ]


def test_a_single_recording_is_a_turn(sounds):
    assert page_turns([["", "", "", ""]], sounds[:1])[0] == [{"text": None, "audio": sounds[0]}]


def test_several_recordings_are_named_beside_their_turns(sounds):
    rows = name_recordings([["Hi.", "", "", ""]], sounds)
    assert rows == [["Hi.", "", "", "a.wav"], ["", "", "", "b.wav"]]
    assert [turn["audio"] for turn in page_turns(rows, sounds)[0]] == sounds
    assert name_recordings(rows, sounds) == rows
    assert name_recordings([["Hi.", "", "", ""]], sounds[:1]) == [["Hi.", "", "", ""]]


def test_subtitles_become_rows(tmp_path):
    (tmp_path / "call.srt").write_text(SRT)
    rows = [["Really, you said?", "0.1", "0.8", ""], ["Never.", "0.9", "1.4", ""]]
    assert subtitle_rows(str(tmp_path / "call.srt")) == rows
    (tmp_path / "call.srt").write_text("no cue")
    with pytest.raises(ValueError, match="^'call.srt' holds no cue"):
        subtitle_rows(str(tmp_path / "call.srt"))


@pytest.mark.parametrize(
    ("rows", "chosen", "message"),
    [
        ([["", "", "", ""]], 0, "The table has no turns yet"),
        ([["Hi.", "x", "1", ""]], 0, "Turn 1: start must be seconds, such as 12.5, got 'x'"),
        ([["Hi.", "1", "", ""]], 0, "Turn 1 has only a start or an end"),
        ([["Hi.", "", "", ""], ["So.", "2", "1", ""]], 0, "Turn 2 ends at 1 s, and starts at 2 s"),
        ([["", "1", "2", ""]], 0, "Turn 1 has neither text nor a recording"),
        ([["Hi.", "", "", "c.wav"]], 2, "unknown recording 'c.wav'; expected one of a.wav, b.wav"),
        ([["Hi.", "", "", "a.wav"]], 2, "The recording b.wav belongs to no turn"),
        ([["Hi.", "", "", ""], ["So.", "", "", ""]], 1, "The recording a.wav belongs to no turn"),
        ([["Hi.", "", "", "", "x"]], 0, "Row 1 has 5 cells; expected 4: words, start, end, recording"),
        ([["Hi.", "", "", ""], ["So."]], 0, "Row 2 has 1 cells; expected 4"),
        ([["Hi.", "", "", ""], "So.."], 0, "Row 2 has So..; expected 4"),
        (5, 0, "The table must be a list of rows, got int"),
        ([["Hi.", "9" * 400, "1", ""]], 0, "Turn 1: start must be seconds"),
        ([["Hi.", "", "", ""]] * 2001, 0, "The table has 2001 turns; the page takes 2000 at once"),
    ],
)
def test_invalid_rows_raise(sounds, rows, chosen, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        page_turns(rows, sounds[:chosen])


def test_duplicate_or_deleted_recordings_raise(sounds, tmp_path):
    (tmp_path / "more").mkdir()
    other = shutil.copy(sounds[0], tmp_path / "more")
    with pytest.raises(ValueError, match="Two recordings have the same name"):
        page_turns([["Hi.", "", "", ""]], [sounds[0], str(other)])
    Path(sounds[0]).unlink()
    with pytest.raises(ValueError, match="The recording a.wav was deleted after 60 minutes"):
        page_turns([["Hi.", "", "", ""]], sounds)


def test_the_answer_is_a_picture_and_a_table_in_words():
    pytest.importorskip("matplotlib", reason="needs the extra `serve`")
    given = []

    def recogniser(turns):
        given.extend(turns)
        return answer(turns)

    rows, shown = emotions(recogniser, [["<i>Hi", "0", "1", ""], ["So.", "1", "2", ""]], [])
    assert given == [{"text": "<i>Hi"}, {"text": "So."}]  # times without sound are the picture's alone
    assert rows == [["<i>Hi", "0", "1", ""], ["So.", "1", "2", ""]]
    assert "data:image/png;base64," in shown and "<i>" not in shown and "&lt;i&gt;Hi" in shown
    for text in ("<td>joy</td><td>0.75</td><td>0.00</td><td>1.00</td>", "gate weight of speech", 'scope="row">2<'):
        assert text in shown


def test_words_that_were_transcribed_come_back_to_be_edited(sounds):
    pytest.importorskip("matplotlib", reason="needs the extra `serve`")
    rows, _ = emotions(lambda turns: [one | {"text": "Hello."} for one in answer(turns)], [], sounds[:1])
    assert rows == [["Hello.", "", "", ""]]


def test_the_pipelines_errors_name_the_row_and_the_recording(sounds):
    def recogniser(turns):
        raise ValueError(f"dialogue 0, turn 1: '{sounds[0]}' is silent")

    with pytest.raises(ValueError, match="^Turn 2: 'a.wav' is silent$"):
        emotions(recogniser, [["Hi.", "", "", ""], ["", "", "", "a.wav"]], sounds[:1])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("you tried to allocate 3200000000 bytes")])
def test_want_of_memory_is_an_answer_that_names_the_dialogue(error):
    def recogniser(turns):
        raise error

    with pytest.raises(InputError, match=f"These 2 turns could not be processed, .*memory: {type(error).__name__}"):
        emotions(recogniser, [["Hi.", "", "", ""], ["So.", "", "", ""]], [])


def test_a_recording_that_is_taken_as_one_turn_is_said(sounds):
    pytest.importorskip("matplotlib", reason="needs the extra `serve`")
    note = "The whole recording is one turn"
    assert note in emotions(answer, [["", "", "", ""]], sounds[:1])[1]
    assert note not in emotions(answer, [["", "0", "1", ""]], sounds[:1])[1]
    assert note not in emotions(answer, [["Hi.", "", "", ""]], [])[1]


def test_a_port_that_is_none_is_refused(capsys):
    assert cli.main(["serve", "org/nowhere", "--port", "70000"]) == 2
    assert "port must be a number from 1 to 65535, got 70000" in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install():
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from mister_e_hf.inference.serve import build_page\nbuild_page(None)"
    )
    call = run_python("-c", code)
    assert "pip install gradio matplotlib" in call.stderr and "MissingLibraryError" in call.stderr


# A page around a tiny checkpoint


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page around a tiny checkpoint."""
    pytest.importorskip("gradio", reason="needs the extra `serve`")
    pytest.importorskip("matplotlib", reason="needs the extra `serve`")
    folder = tmp_path_factory.mktemp("serve")
    run_small_demo(folder / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "mister_e_hf.cli", "serve", str(folder / "run"), "--port", str(port)]
    environment = os.environ | {
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(folder / "temporary"),
    }
    (folder / "temporary").mkdir()
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        wait(lambda: "The page is at" in (folder / "log").read_text() or server.poll() is not None, 90)
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(20)
    assert not list((folder / "temporary").glob("tmp*"))  # what was uploaded is gone


# Without a browser


def request(address: str, method: str, path: str, body=None, **headers) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def call(address: str, rows, files=None) -> str:
    table = {"headers": ["words", "start", "end", "recording"], "data": rows, "metadata": None}
    files = files and [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in files]
    path, json_type = "/gradio_api/call/emotions", {"Content_Type": "application/json"}
    status, text = request(address, "POST", path, json.dumps({"data": [table, files]}), **json_type)
    return text if status != 200 else request(address, "GET", f"{path}/{json.loads(text)['event_id']}")[1]


@pytest.mark.slow
def test_a_page_answers_calls_that_are_meant_and_refuses_the_others(address, tmp_path_factory):
    assert "Emotions" in call(address, [["Really?", "", "", ""]])
    assert request(address, "GET", "/")[0] == 200 and "Its emotions:" in request(address, "GET", "/config")[1]
    assert request(address, "GET", "/config", Host="evil.example")[0] == 403
    assert "Row 1 has 5 cells; expected 4" in call(address, [["a", "", "", "", "x"]])
    assert "fetches nothing" in call(address, [["", "", "", ""]], ["http://recordings.example/a.wav"])
    assert "error" in call(address, [["", "", "", ""]], ["/etc/passwd"])
    assert (
        request(address, "POST", "/gradio_api/run/emotions", '{"data": []}', Content_Type="application/json")[0] >= 400
    )
    unknown = json.dumps({"data": [5], "fn_index": 7, "session_hash": "x"})
    assert request(address, "POST", "/gradio_api/queue/join", unknown, Content_Type="application/json")[0] >= 400
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\nSSSS\r\n--x--\r\n'
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    status, text = request(address, "POST", "/gradio_api/upload", form, **kind)
    assert status == 200
    folder = next(parent for parent in Path(json.loads(text)[0]).parents if parent.name.startswith("tmp"))
    assert request(address, "POST", "/gradio_api/upload", form, Origin="http://evil.example", **kind)[0] == 403
    assert (
        request(address, "POST", "/gradio_api/process_recording", form.replace(b"files", b"video"), **kind)[0] == 404
    )
    length = {"Content_Length": "700000000"}
    assert request(address, "POST", "/gradio_api/upload", None, **length, **kind)[0] == 413
    before = {path for path in folder.rglob("*") if path.is_file()}
    half = b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(address).port)) as broken:
        broken.sendall(
            half
            + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            + form[: form.index(b"SSSS")]
            + bytes(2_000_000)
        )
        time.sleep(0.5)
    time.sleep(0.5)
    halves = {path for path in folder.rglob("*") if path.is_file()} - before
    assert halves  # which the sweep finds, since it looks at all files
    log = next(path for path in tmp_path_factory.getbasetemp().glob("serve*/log"))
    assert "Traceback" not in log.read_text()


@pytest.fixture
def browser(address):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1400"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.get(address)
    wait(lambda: len(find(browser, "#turns [data-row]")) >= 4 and find(browser, "[aria-label='Choose recordings']"))
    time.sleep(1)
    yield browser
    browser.quit()


def wait(found, seconds: float = 30):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def find(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def text(browser, selector: str) -> str:
    return find(browser, selector)[0].text


def press(browser, *keys: str):
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).pause(0.05).perform()


def choose(browser, box: str, *paths: str):
    find(browser, f"#{box} input[type=file]")[0].send_keys("\n".join(paths))
    wait(lambda: Path(paths[-1]).name in text(browser, f"#{box}").replace("\n", ""))


def go_to(browser, reached):
    """By the Tab key alone."""
    for _ in range(20):
        press(browser, "\ue004")
        if reached(browser.switch_to.active_element):
            return
    raise AssertionError("Tab does not lead there")


def in_table(element) -> bool:
    return "body-cell" in (element.get_attribute("class") or "")


ENTER, DOWN = "\ue007", "\ue015"


@pytest.mark.slow
def test_two_turns_are_typed_and_named_by_keyboard_alone(browser):
    go_to(browser, in_table)
    press(browser, ENTER, *"Really?", ENTER, DOWN, ENTER, *"Calm down.", ENTER)
    go_to(browser, lambda element: element.text == "Name the emotions")
    press(browser, ENTER)
    wait(lambda: find(browser, "#result table"))
    shown = [
        [cell.text for cell in row.find_elements("css selector", "th, td")] for row in find(browser, "#result tr")
    ]
    assert shown[0][:4] == ["turn", "words", "emotion", "probability"]
    assert [row[:2] for row in shown[1:]] == [["1", "Really?"], ["2", "Calm down."]]
    assert all(row[2] and 0 < float(row[3]) <= 1 and row[4] == "0.00" for row in shown[1:])  # nobody was heard
    assert find(browser, "#result img[alt]") and not text(browser, "#trouble")
    assert "must not be used for" in text(browser, "body") and "AI Act" in text(browser, "body")


@pytest.mark.slow
def test_a_recording_with_subtitles_is_named_edited_and_named_again(browser, sounds, tmp_path):
    (tmp_path / "call.srt").write_text(SRT)
    choose(browser, "recordings", sounds[0])
    choose(browser, "subtitles", str(tmp_path / "call.srt"))
    wait(lambda: "Really, you said?" in text(browser, "#turns"))
    find(browser, "#press")[0].click()
    wait(lambda: find(browser, "#result table"))
    assert "Never." in text(browser, "#result") and not text(browser, "#trouble")
    go_to(browser, in_table)
    press(browser, ENTER, *" Now", ENTER)
    go_to(browser, lambda element: element.text == "Name the emotions")
    press(browser, ENTER)
    wait(lambda: "Really, you said? Now" in text(browser, "#result"))


@pytest.mark.slow
def test_errors_are_shown_on_the_page(browser, sounds, tmp_path):
    find(browser, "#press")[0].click()
    wait(
        lambda: (
            "The table has no turns yet" in text(browser, "#trouble [role=alert]")
            if find(browser, "#trouble p")
            else 0
        )
    )
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    choose(browser, "recordings", str(tmp_path / "broken.wav"))
    find(browser, "#press")[0].click()
    wait(lambda: "Turn 1: 'broken.wav'" in text(browser, "#trouble"))
    assert "Traceback" not in text(browser, "body") and str(tmp_path) not in text(browser, "body")


@pytest.mark.slow
def test_it_fits_a_phone_and_asks_nothing_of_the_network(browser, address):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    go_to(browser, in_table)
    press(browser, ENTER, *"Really, you said so?", ENTER)
    find(browser, "#press")[0].click()
    wait(lambda: find(browser, "#result table"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    hosts = set(
        re.findall(r'"url":"(https?://[^/"]+/)', "".join(one["message"] for one in browser.get_log("performance")))
    )
    assert hosts == {address}


@pytest.mark.slow
def test_nothing_but_the_page_is_served(address):
    page = urllib.request.urlopen(address, timeout=20).read().decode()
    assert '"analytics_enabled":false' in page.replace(" ", "") and '"run_history":false' in page.replace(" ", "")
