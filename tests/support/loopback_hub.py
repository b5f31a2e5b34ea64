"""A Hugging Face Hub on 127.0.0.1 for tests: model and dataset repositories, pushed to and loaded from over HTTP.

    with loopback_hub() as hub:
        run_python("script.py", env=hub.env(home))
        assert "config.json" in hub.files("org/name")

The client reads its environment when it is imported, so whatever uses this Hub runs in a new process. The Hub keeps
every commit of a repository; the contents of files are in a temporary folder that is removed with it. Reading a
private repository and every write need the token. Only what `huggingface_hub`, `transformers` and `datasets` request
to push and load is implemented: no Xet, pull requests, tags or pages of listings.
"""

import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "loopback-token"
USER = "loopback-user"

# What goes through LFS; everything else is sent inside the commit.
LFS_PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.onnx",
    "*.parquet",
    "*.arrow",
    "*.wav",
    "*.flac",
    "*.zip",
)


class Blob(NamedTuple):
    """One content of a file."""

    sha256: str
    size: int
    git_oid: str  # of the content, or of the pointer that git keeps in place of an LFS file
    pointer_size: int | None = None  # None where the file is not in LFS

    @property
    def etag(self) -> str:
        return self.git_oid if self.pointer_size is None else self.sha256


@dataclass
class Repo:
    url: str
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)  # sha -> files by path, oldest first
    branches: dict[str, str] = field(default_factory=dict)  # name -> sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        identity = [len(self.commits), branch, self.branches.get(branch), sorted(files.items())]
        sha = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    @property
    def writes(self) -> bool:
        return self.method not in ("GET", "HEAD")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class HubError(Exception):
    """An answer that is an error; clients tell errors apart by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.reply = _json({"error": message}, status, {name: value for name, value in headers.items() if value})


def _json(content, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode())


_ROUTES: list[tuple[str, re.Pattern, Callable[..., Reply]]] = []
_REPO_ID = "(?P<repo_id>[^/]+(?:/[^/]+)?)"
_API = f"/api/(?P<repo_type>model|dataset)s/{_REPO_ID}"
_GIT = f"/(?:(?P<repo_type>dataset)s/)?{_REPO_ID}"
_REVISION = "(?P<revision>[^/]+)"


def _route(method: str, pattern: str):
    """
    Register a function that answers such requests.

    It gets the named groups of the pattern: for repo_type and repo_id the repository, if the request may see it, and
    for revision the commit.
    """

    def register(function):
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class LoopbackHub:
    r"""
    Attributes:
        endpoint: the address, for `HF_ENDPOINT`.
        requests: what was asked, in order: (method, path, status).
    """

    def __init__(self, endpoint: str, folder: Path):
        self.endpoint = endpoint
        self.requests: list[tuple[str, str, int]] = []
        self._folder = folder
        self._repos: dict[tuple[str, str], Repo] = {}
        self._lock = threading.Lock()

    def env(self, home: str | Path, token: str | None = TOKEN) -> dict[str, str]:
        """
        The environment of a new process that uses this Hub and keeps its cache and settings in the folder `home`.

        It is anonymous if `token` is None.
        """
        foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "PYTORCH_TRANSFORMERS_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env = {name: value for name, value in env.items() if not name.lower().endswith("_proxy")}
        env |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home)}
        env |= dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
        return env if token is None else {**env, "HF_TOKEN": token}

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[str]:
        """Paths of the files that a revision holds, sorted."""
        repo = self._repos[repo_type, repo_id]
        return sorted(repo.commits[repo.resolve(revision)])

    def read(self, repo_id: str, path: str, repo_type: str = "model", revision: str = "main") -> bytes:
        repo = self._repos[repo_type, repo_id]
        return self._content(repo.commits[repo.resolve(revision)][path])

    def commits(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Commits of all branches, oldest first; the first one holds only `.gitattributes`."""
        return list(self._repos[repo_type, repo_id].commits)

    def is_private(self, repo_id: str, repo_type: str = "model") -> bool:
        return self._repos[repo_type, repo_id].private

    def answer(self, request: Request) -> Reply:
        if "Authorization" in request.headers and not request.has_token:
            raise HubError(401, "Invalid credentials in Authorization header")
        for method, pattern, function in _ROUTES:
            match = pattern.fullmatch(request.path)
            if match and method == request.method.replace("HEAD", "GET"):
                groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                with self._lock:
                    if "repo_id" in groups:
                        repo_type, repo_id = groups.pop("repo_type", "model"), groups.pop("repo_id")
                        groups["repo"] = self._repos.get((repo_type, repo_id))
                        self._check_access(request, groups["repo"])
                    if "revision" in groups:
                        groups["commit"] = groups["repo"].resolve(groups.pop("revision"))
                    return function(self, request, **groups)
        raise HubError(404, f"The loopback Hub does not speak {request.method} {request.path}")

    def _check_access(self, request: Request, repo: Repo | None):
        if repo is None or (repo.private and not request.has_token):
            raise HubError(404 if request.has_token else 401, "Repository not found", "RepoNotFound")
        if request.writes and not request.has_token:
            raise HubError(401, "Invalid username or password.")

    def _content(self, blob: Blob) -> bytes:
        return (self._folder / blob.sha256).read_bytes()

    def _store(self, content: bytes) -> Blob:
        sha256 = hashlib.sha256(content).hexdigest()
        (self._folder / sha256).write_bytes(content)
        return Blob(sha256, len(content), _git_oid(content))

    # ---- accounts and repositories ----

    @_route("GET", "/api/whoami-v2")
    def _whoami(self, request):
        if not request.has_token:
            raise HubError(401, "Invalid username or password.")
        return _json({"type": "user", "name": USER, "fullname": USER, "orgs": []})

    @_route("POST", "/api/repos/create")
    def _create_repo(self, request):
        if not request.has_token:
            raise HubError(401, "Invalid username or password.")
        asked = json.loads(request.body)
        repo_type, repo_id = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        if (repo_type, repo_id) in self._repos:
            return _json({"error": "You already created this repo", "url": url}, 409)
        repo = Repo(url, private=asked.get("visibility") == "private" or asked.get("private") is True)
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repo.commit("main", {".gitattributes": self._store(attributes.encode())})
        self._repos[repo_type, repo_id] = repo
        return _json({"url": url, "name": repo_id})

    @_route("POST", f"{_API}/branch/(?P<branch>[^/]+)")
    def _create_branch(self, request, repo, branch):
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repo.branches[branch] = repo.resolve(json.loads(request.body or b"{}").get("startingPoint", "main"))
        return _json({})

    @_route("PUT", f"{_API}/settings")
    def _settings(self, request, repo):
        asked = json.loads(request.body)
        repo.private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        return _json({"private": repo.private})

    @_route("GET", f"{_API}(?:/revision/{_REVISION})?")
    def _info(self, request, repo, commit=None):
        commit = commit or repo.branches["main"]
        siblings = [{"rfilename": path} for path in sorted(repo.commits[commit])]
        repo_id = "/".join(repo.url.split("/")[-2:])
        info = {"id": repo_id, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
        return _json({**info, "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    # ---- pushing ----

    @_route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request):
        return _json({"errors": [], "warnings": []})

    @_route("POST", f"{_API}/preupload/{_REVISION}")
    def _preupload(self, request, repo, commit):
        files = []
        for path in (file["path"] for file in json.loads(request.body)["files"]):
            mode = "lfs" if any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS) else "regular"
            held = repo.commits[commit].get(path)
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": held.etag if held else None})
        return _json({"files": files})

    @_route("POST", f"{_GIT}[.]git/info/lfs/objects/batch")
    def _lfs_batch(self, request, repo):
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(request.body)["objects"]]
        for wanted in objects:
            if not (self._folder / wanted["oid"]).exists():
                wanted["actions"] = {"upload": {"href": f"{self.endpoint}/lfs/{wanted['oid']}"}}
        return _json({"transfer": "basic", "objects": objects})

    @_route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")  # without the token, as the signed addresses of the real one
    def _lfs_upload(self, request, oid):
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, "The content has another SHA-256 than its address says")
        self._store(request.body)
        return Reply(200, {}, b"")

    @_route("POST", f"{_API}/commit/(?P<branch>[^/]+)")
    def _commit(self, request, repo, branch):
        if branch not in repo.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        parent = repo.branches[branch]
        files = dict(repo.commits[parent])
        for line in request.body.splitlines():
            operation = json.loads(line)
            action, value = operation["key"], operation["value"]
            path = value.get("path")
            if action == "header":
                if value.get("parentCommit", parent) != parent:
                    raise HubError(412, "A commit has happened since")
            elif action == "file":
                files[path] = self._store(base64.b64decode(value["content"]))
            elif action == "lfsFile":
                if not (self._folder / value["oid"]).exists():
                    raise HubError(400, f"{path}: its content was not uploaded")
                size = (self._folder / value["oid"]).stat().st_size
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n"
                files[path] = Blob(value["oid"], size, _git_oid(pointer.encode()), len(pointer))
            elif action in ("deletedFile", "deletedFolder"):
                gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
                if not gone:
                    raise HubError(404, f"{path} does not exist", "EntryNotFound")
                for name in gone:
                    del files[name]
            else:
                raise HubError(400, f"Unknown operation: {action}")
        commit = repo.commit(branch, files)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{repo.url}/commit/{commit}"})

    # ---- loading ----

    @_route("GET", f"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?")
    def _tree(self, request, repo, commit, path=""):
        start = path.strip("/") + "/" if path else ""
        entries = [entry for entry in _listing(repo.commits[commit]) if entry["path"].startswith(start)]
        if start and not entries:
            raise HubError(404, f"{path} does not exist", "EntryNotFound", commit)
        if request.query.get("recursive", [""])[0].lower() not in ("1", "true"):
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(start)]
        return _json(entries)

    @_route("GET", f"{_GIT}/resolve/{_REVISION}/(?P<path>.+)")
    def _resolve(self, request, repo, commit, path):
        blob = repo.commits[commit].get(path)
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound", commit)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.pointer_size is not None:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        content = self._content(blob)
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        if request.method == "HEAD" or part is None or part.groups() == ("", ""):
            return Reply(200, headers, content)
        first, last = part.groups()
        start = int(first) if first else max(blob.size - int(last), 0)
        stop = min(int(last) + 1, blob.size) if first and last else blob.size
        if start >= stop:
            return Reply(416, {**headers, "Content-Range": f"bytes */{blob.size}"}, b"")
        return Reply(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"}, content[start:stop])


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _listing(files: Mapping[str, Blob]) -> list[dict]:
    """Every file and folder of a commit."""
    folders = {str(folder) for path in files for folder in Path(path).parents} - {"."}
    entries = [{"type": "directory", "path": path, "oid": _git_oid(path.encode()), "size": 0} for path in folders]
    for path, blob in files.items():
        entries.append({"type": "file", "path": path, "oid": blob.git_oid, "size": blob.size})
        if blob.pointer_size is not None:
            entries[-1]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    return sorted(entries, key=lambda entry: entry["path"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes
    hub: LoopbackHub

    def do_GET(self):
        url = urlsplit(self.path)
        request = Request(self.command, url.path, parse_qs(url.query), self.headers, self._read_body())
        try:
            reply = self.hub.answer(request)
        except HubError as error:
            reply = error.reply
        except Exception:
            reply = _json({"error": traceback.format_exc()}, 500)
        self.hub.requests.append((request.method, request.path, reply.status))
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_POST = do_PUT = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """A running Hub, empty, on a free port of 127.0.0.1."""
    with tempfile.TemporaryDirectory() as folder, ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        hub = LoopbackHub(f"http://127.0.0.1:{server.server_port}", Path(folder))
        server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
