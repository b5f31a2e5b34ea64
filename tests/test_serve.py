"""The page: what its button does, and, where gradio, selenium and Chromium are, the page in a browser."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from mister_e_hf import cli
from mister_e_hf.corpora import demo_recordings
from mister_e_hf.demo import run_demo
from mister_e_hf.serve import build_page, emotions, name_recordings, page_turns, subtitle_rows

ROOT = Path(__file__).parents[1]
SRT = "1\n00:00:00,100 --> 00:00:00,800\nReally, you said?\n\n2\n00:00:00,900 --> 00:00:01,400\nNever.\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "run"
    short = ["--num_train_epochs", "1", "--disable_tqdm"]
    for modality in ("speech", "text"):
        short += [
            f"--{modality}_encoder.training.num_train_epochs",
            "1",
            f"--{modality}_encoder.training.disable_tqdm",
        ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_recordings, "SPLIT_SIZES", {"train": 8, "validation": 3, "test": 3})
        run_demo(folder, ROOT / "hub_configs" / "demo-recordings.yaml", tuple(short))
    return folder


@pytest.fixture(scope="module")
def recogniser(run):
    return pipeline("conversation-emotion-recognition", model=str(run))


@pytest.fixture
def recording(tmp_path) -> str:
    path = tmp_path / "call.wav"
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 180 * np.arange(24_000) / 16_000), 16_000)
    return str(path)


def test_rows_become_turns(recording):
    rows = [["You did what?", "", "", ""], ["", None, None, None], ["Never.", "0.2", "0.9", ""]]
    turns, kept = page_turns(rows, [recording])
    assert turns == [
        {"text": "You did what?"},
        {"text": "Never.", "start": 0.2, "end": 0.9, "audio": recording},
    ]
    assert kept == [["You did what?", "", "", ""], ["Never.", "0.2", "0.9", ""]]
    named = [["a", "", "", "call.wav"], ["b", "", "", ""]]
    assert [turn.get("audio") for turn in page_turns(named, [recording])[0]] == [recording, None]
    assert page_turns([], [recording])[0] == [{"text": None, "audio": recording}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["", "", "", ""]], "There is no turn yet"),
        ([["a", "1", "", ""]], "Turn 1 has a start or an end alone"),
        ([["a", "2", "1", ""]], "Turn 1 ends at 1 s, and starts at 2 s"),
        ([["a", "one", "2", ""]], "Turn 1: start must be seconds, such as 12.5, got 'one'"),
        ([["a", "", "", ""], ["b", "", "", "x.wav"]], "Turn 2: no recording is called 'x.wav'; chosen are: none"),
        ([["", "1", "2", ""]], "Turn 1 has neither words nor a recording"),
    ],
)
def test_rows_that_are_no_turns_are_named(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        page_turns(rows, [])


def test_a_recording_that_no_turn_takes_is_named(recording):
    with pytest.raises(ValueError, match="The recording call.wav belongs to no turn"):
        page_turns([["a", "", "", ""], ["b", "", "", ""]], [recording])
    with pytest.raises(ValueError, match="The recording call.wav was deleted"):
        page_turns([["a", "", "", ""]], [recording.replace("call", "gone/call")])


def test_subtitles_and_names_fill_the_table(tmp_path):
    (tmp_path / "call.srt").write_text(SRT)
    assert subtitle_rows(str(tmp_path / "call.srt")) == [
        ["Really, you said?", "0.1", "0.8", ""],
        ["Never.", "0.9", "1.4", ""],
    ]
    (tmp_path / "bad.srt").write_text("nothing")
    with pytest.raises(ValueError, match=r"'bad.srt' has 0 lines") as error:
        subtitle_rows(str(tmp_path / "bad.srt"))
    assert str(tmp_path) not in str(error.value)
    assert name_recordings([["a", "", "", ""]], ["/x/1.wav", "/x/2.wav"]) == [
        ["a", "", "", "1.wav"],
        ["", "", "", "2.wav"],
    ]


def test_the_answer_is_the_pipeline_s_in_words_and_as_a_picture(recogniser, recording):
    pytest.importorskip("matplotlib")
    rows = [["Really <b>you</b> said?", "0.1", "0.8", ""], ["Never.", "0.9", "1.4", ""]]
    expected = recogniser(
        [
            {"audio": recording, "start": 0.1, "end": 0.8, "text": rows[0][0]},
            {"audio": recording, "start": 0.9, "end": 1.4, "text": "Never."},
        ]
    )
    kept, shown = emotions(recogniser, rows, [recording])
    assert kept == rows
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", shown)[1:]]
    for found, one in zip(cells, expected, strict=True):
        assert found[1:3] == [one["label"], f"{one['score']:.2f}"]
        assert found[3:] == [f"{weight:.2f}" for weight in one["gate"].values()]
    assert "&lt;b&gt;you" in shown and "<b>you" not in shown
    assert shown.count("data:image/png;base64,") == 1 and 'alt="' in shown


def test_what_the_pipeline_refuses_is_told_in_the_table_s_words(recogniser, recording):
    with pytest.raises(ValueError, match=r"^Turn 2: 'call.wav'") as error:
        emotions(recogniser, [["a", "0.1", "0.5", ""], ["b", "0.9", "30", ""]], [recording])
    assert "/" not in str(error.value).replace("'call.wav'", "")


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys, run):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'mister-e-hf\[serve\]'"):
        build_page(None)
    assert cli.main(["serve", str(run)]) == 1
    assert "pip install 'mister-e-hf[serve]'" in capsys.readouterr().err
    assert cli.main(["serve", str(run), "--port", "0"]) == 2
    assert "port must be a number from 1 to 65535" in capsys.readouterr().err


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PARTS = {"gradio": importlib.util.find_spec("gradio"), "selenium": importlib.util.find_spec("selenium")}
MISSING = [name for name, part in (PARTS | {"chromium": CHROMIUM, "chromedriver": DRIVER}).items() if not part]


@contextlib.contextmanager
def page_at(run: Path, home: Path, port: int):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "mister_e_hf.cli", "serve", str(run), "--port", str(port)]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=2)
                break
            time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1400"):
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def wait_for(look, seconds: float = 40.0):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if found := look():
                return found
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_the_page_in_a_browser(run, recording, tmp_path, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "call.srt").write_text(SRT)

    def text(name: str) -> str:
        return browser.find_element(By.ID, name).text

    def press():
        button = browser.find_element(By.ID, "press")
        button = button if button.tag_name == "button" else button.find_element(By.TAG_NAME, "button")
        button.send_keys(Keys.ENTER)  # by keyboard

    with page_at(run, tmp_path, 7893) as address:
        browser.get(address)
        wait_for(lambda: browser.find_element(By.ID, "press"))
        assert "must not be used for" in browser.find_element(By.TAG_NAME, "body").text
        press()
        wait_for(lambda: "There is no turn yet" in text("trouble"))
        assert "Traceback" not in browser.page_source

        recordings, subtitles = (
            browser.find_element(By.CSS_SELECTOR, f"#{name} input[type=file]") for name in ("recordings", "subtitles")
        )
        recordings.send_keys(recording)
        wait_for(lambda: "KB" in text("recordings"))  # its size, when it is there
        subtitles.send_keys(str(tmp_path / "call.srt"))
        wait_for(lambda: "Never." in text("turns"))
        press()
        wait_for(lambda: "Emotions" in text("result") and "gate weight of fusion" in text("result"))
        assert text("trouble") == ""
        assert browser.find_element(By.CSS_SELECTOR, "#result img").get_attribute("naturalWidth") != "0"
        rows = browser.find_elements(By.CSS_SELECTOR, "#result tbody tr")
        assert [row.text.split()[0] for row in rows] == ["1", "2"]

        # On a phone the page itself never scrolls sideways.
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        )
        time.sleep(1)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        # Nothing was asked of any other machine.
        asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert asked and not [name for name in asked if not name.startswith((address, "data:", "blob:"))]
        browser.save_screenshot(str(tmp_path / "phone.png"))
