"""Protect the local web app: who may send what, how much, and when uploads are deleted."""

import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from transformers import logging

from ..base.errors import short

logger = logging.get_logger(__name__)

MAX_UPLOAD = 500_000_000  # bytes of one request: two hours of 16 kHz WAV in stereo
_MAX_KEPT = 4 * MAX_UPLOAD  # bytes of all uploads at once
_MAX_CALL = 8_000_000  # bytes of a request without an upload, such as a table
_MAX_DEPTH = 50
_UPLOAD = "/gradio_api/upload"
# Endpoints of gradio that query other machines, serve other users' data or accept files for other purposes.
_CLOSED = re.compile(r"/(?:gradio_api/)?(?:process_recording|proxy=|component_server|deep_link|run-history|dev/|mcp)")


class PageGuard:
    r"""
    ASGI middleware around gradio's application. It refuses, in one line: a `Host` that names another machine, as after
    DNS rebinding; an `Origin` that is another page; uploads over `MAX_UPLOAD` bytes; a URL in place of an upload; and
    gradio's endpoints that the page does not need. An error inside is logged in one line, without a traceback.

    Args:
        app: the application.
        folder: where it stores uploads.
        host: the address that it listens on.
    """

    def __init__(self, app, folder: str, host: str):
        self.app, self.folder = app, folder
        self.names = {"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":  # the page uses none
            return await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        upload = path.rstrip("/") == _UPLOAD and method == "POST"
        if refusal := self._refusal(path, method, headers, upload):
            return await _answer(send, *refusal)
        started, limit = False, MAX_UPLOAD if upload else _MAX_CALL

        async def noticed(message):
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            if upload:
                await self.app(scope, _counted(receive, limit), noticed)
            elif method == "POST":
                body = await _body(receive, limit)
                if message := _not_a_call(body):
                    return await _answer(send, 400, message)
                await self.app(scope, _replayed(body, receive), noticed)
            else:
                await self.app(scope, receive, noticed)
        except _TooLarge:
            if not started:
                await _answer(send, 413, f"At most {limit:,} bytes are taken at once")
        except Exception as error:  # from gradio, for a call that it does not know
            logger.warning(
                f"The page refused {method} {short(repr(path), 80)}: {type(error).__name__}: {short(error, 80)}"
            )
            if not started:
                await _answer(send, 400, "This is not a call that the page takes")

    def _refusal(self, path: str, method: str, headers: dict[str, str], upload: bool) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            return 403, "The page does not answer under this name; use the address that it printed"
        if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()) or (
            method != "GET" and headers.get("sec-fetch-site") == "cross-site"
        ):
            return 403, "The page takes nothing from other pages"
        if _CLOSED.match(path):
            return 404, "The page has nothing there"
        size = headers.get("content-length", "0")
        limit = MAX_UPLOAD if upload else _MAX_CALL
        if not size.isascii() or not size.isdigit() or len(size) > 18 or int(size) > limit:
            return 413, f"At most {limit:,} bytes are taken at once"
        if upload and int(size) + _kept(self.folder) > _MAX_KEPT:
            return 413, "The page holds too many uploads; wait until they are deleted"
        if method == "POST" and not upload and headers.get("content-type", "").startswith("multipart"):
            return 415, "Files go to the page's own upload"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if not name or "@" in host:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.rstrip(".") in self.names
        return True  # DNS rebinding needs a name


class _TooLarge(Exception):
    pass


def _counted(receive, limit: int):
    taken = 0

    async def counted():
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise _TooLarge
        return message

    return counted


async def _body(receive, limit: int) -> bytes:
    parts, counted = [], _counted(receive, limit)
    while (message := await counted())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _replayed(body: bytes, receive):
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed():
        return waiting.pop() if waiting else await receive()

    return replayed


def _not_a_call(body: bytes) -> str | None:
    """What is wrong with the body of a call; None if nothing is."""
    try:
        waiting = [(json.loads(body or b"{}"), 0)]
    except (ValueError, RecursionError):
        return "A call must be JSON"
    while waiting:
        value, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            return "The call is nested too deeply"
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "://" in path:
                return "A recording must be uploaded; the page fetches nothing from an address"
            waiting += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, list):
            waiting += [(part, depth + 1) for part in value]
    return None


async def _answer(send, status: int, message: str):
    body = json.dumps({"detail": message, "error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def quiet(page: Any, error_class: type[Exception]):
    """Turn every error of a call into one of gradio's own, in one line, which it does not print."""
    process = page.process_api

    async def process_quietly(*given, **named):
        try:
            return await process(*given, **named)
        except error_class as error:
            error.print_exception = False  # type: ignore[attr-defined]  # of gradio.Error
            raise
        except Exception as error:
            logger.warning(f"The page refused a call: {type(error).__name__}: {short(error, 200)}")
            raise error_class(f"Not done: {short(error, 200)}", print_exception=False) from None  # type: ignore[call-arg]  # of gradio.Error

    page.process_api = process_quietly


def sweep(folder: str, seconds: float):
    """Delete every file of a folder that was written that long ago, partial uploads included, and empty folders."""
    for path, found in _files(folder):
        if time.time() - found.st_mtime > seconds:
            with contextlib.suppress(OSError):  # gone meanwhile
                os.unlink(path)
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            if place != folder and time.time() - os.stat(place).st_mtime > seconds:
                os.rmdir(place)


def sweep_regularly(folder: str, seconds: float, every: float) -> threading.Event:
    """Run [`sweep`] in a thread until the returned event is set."""
    ended = threading.Event()

    def work():
        while not ended.wait(every):
            try:
                sweep(folder, seconds)
            except OSError as error:
                logger.warning(f"Uploads could not be deleted: {short(error, 200)}")

    threading.Thread(target=work, daemon=True).start()
    return ended


def _kept(folder: str) -> int:
    return sum(found.st_size for _, found in _files(folder))


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield (path := os.path.join(place, name)), os.lstat(path)
