"""What may be asked of the page, and when uploads go: without gradio."""

import asyncio
import json
import os
import socket
import time

import pytest

from mister_e_hf.inference import page_guard
from mister_e_hf.inference.page_guard import PageGuard, sweep, sweep_regularly


def ask(guard: PageGuard, method: str = "GET", path: str = "/", parts: tuple[bytes, ...] = (), **headers) -> tuple:
    """Status and body that a request of such parts gets."""
    headers = {"host": "127.0.0.1:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}
    waiting = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    sent = []

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items() if value is not None]
    asyncio.run(guard({"type": "http", "path": path, "method": method, "headers": raw}, receive, send))
    starts = [message["status"] for message in sent if message["type"] == "http.response.start"]
    assert len(starts) == 1
    return starts[0], b"".join(message.get("body", b"") for message in sent)


@pytest.fixture
def guard(tmp_path):
    async def echo(scope, receive, send):
        if scope["path"] == "/broken":
            raise KeyError(7)
        body, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return PageGuard(echo, str(tmp_path), "127.0.0.1")


OWN = (
    "127.0.0.1:7860",
    "localhost:7860",
    "localhost.",
    "LOCALHOST",
    "[::1]:7860",
    "192.168.1.4",
    socket.gethostname(),
)
OTHERS = (
    "evil.example",
    "evil.example:7860",
    "127.0.0.1.evil.example",
    "a@127.0.0.1",
    "",
    "[",
    "localhost.evil.example",
)


@pytest.mark.parametrize(
    ("host", "status"), [*((host, 200) for host in OWN), *((host, 403) for host in (*OTHERS, None))]
)
def test_only_its_own_names_are_answered(guard, host, status):
    assert ask(guard, host=host)[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),  # another program of this machine
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
    ],
)
def test_other_pages_are_refused(guard, headers, status):
    assert ask(guard, "POST", "/gradio_api/call/emotions", (b"{}",), **headers)[0] == status


def test_a_call_arrives_as_it_was_sent(guard):
    body = json.dumps({"data": [[["Hi.", "", "", ""]], [{"path": "/tmp/a.wav"}]]}).encode()
    assert ask(guard, "POST", "/gradio_api/call/emotions", (body[:9], body[9:])) == (200, body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"data": [{"path": "http://recordings.example/a.wav"}]}', "fetches nothing"),
        (b'{"data": [[[{"a": {"path": " HTTPS://x/a.wav"}}]]]}', "fetches nothing"),
        (b'{"data": [{"path": "file:///etc/passwd"}]}', "fetches nothing"),
        (b"{", "must be JSON"),
        (b"\xff", "must be JSON"),
        (b"[" * 60 + b"]" * 60, "nested too deeply"),
        (b"[" * 200_000, "must be JSON"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused_in_one_line(guard, body, message):
    status, answer = ask(guard, "POST", "/gradio_api/queue/join", (body,))
    assert status == 400 and message in json.loads(answer)["detail"]


@pytest.mark.parametrize(
    "path", ["/gradio_api/process_recording", "/gradio_api/proxy=http://x/", "/gradio_api/deep_link"]
)
def test_endpoints_that_it_does_not_need_are_closed(guard, path):
    assert ask(guard, "POST", path, (b"{}",))[0] == 404


def test_files_are_accepted_only_by_the_upload_up_to_a_size(guard, monkeypatch, tmp_path):
    monkeypatch.setattr(page_guard, "MAX_UPLOAD", 1000)
    monkeypatch.setattr(page_guard, "_MAX_CALL", 100)
    form = {"content_type": "multipart/form-data; boundary=x"}
    assert ask(guard, "POST", "/gradio_api/upload", (b"x" * 900,), **form) == (200, b"x" * 900)
    assert ask(guard, "POST", "/gradio_api/call/emotions", (b"x" * 90,), **form)[0] == 415
    for path, size in (("/gradio_api/upload", 1001), ("/gradio_api/call/emotions", 101)):
        assert ask(guard, "POST", path, (b"1" * size,), content_length=str(size))[0] == 413
        assert (
            ask(guard, "POST", path, (b"1" * (size // 2), b"1" * size))[0] == 413
        )  # of a length that it does not say
    for length in ("-1", "x", "9" * 30):
        assert ask(guard, "POST", "/gradio_api/upload", content_length=length)[0] == 413
    (tmp_path / "kept").write_bytes(bytes(3500))
    monkeypatch.setattr(page_guard, "_MAX_KEPT", 4000)
    assert ask(guard, "POST", "/gradio_api/upload", (b"x" * 600,), content_length="600")[0] == 413
    assert ask(guard, "POST", "/gradio_api/upload", (b"x" * 400,), content_length="400")[0] == 200


def test_what_fails_inside_is_one_line(guard, capfd):
    status, answer = ask(guard, "POST", "/broken", (b"{}",))
    assert status == 400 and "not a call" in json.loads(answer)["detail"]
    assert "Traceback" not in capfd.readouterr().err


def test_all_old_files_of_the_folder_go(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("tmphalf", "deep/er/whole.wav", "deep/new.wav"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("tmphalf", "deep/er/whole.wav", "deep/er"):
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "link").symlink_to("/nowhere")
    sweep(str(tmp_path), 3600)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "link", "new.wav"] or (
        sorted(path.name for path in tmp_path.rglob("*"))
        == ["deep", "er", "link", "new.wav"]  # its folder was written to
    )
    ended = sweep_regularly(str(tmp_path), -1, every=0.02)
    end = time.monotonic() + 10
    # os.walk, unlike rglob, does not mind a folder that is deleted while it looks
    while any(files for _, _, files in os.walk(tmp_path)) and time.monotonic() < end:
        time.sleep(0.02)
    ended.set()
    assert not any(files for _, _, files in os.walk(tmp_path))
