"""Pushing to and loading from a Hub, each side in a process of its own that knows the other only through the Hub."""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.checkpoint_code import CHECKPOINT
from support.loopback_hub import TOKEN, LoopbackHub, loopback_hub
from support.new_process import run_python

PUSH = """
import sys

import torch
from datasets import Dataset, Features, List, Value
from safetensors.torch import save_file

from mister_e_hf import MisterEConfig, MisterEModel

DIALOGUES = {
    "dialogue_id": ["a", "b"],
    "utterance_ids": [["a0", "a1", "a2"], ["b0"]],
    "labels": [["joy", "anger", "joy"], ["neutral"]],
    "text_features": [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[-1.0, 1e-30]]],
    "speech_features": [[[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]], [[7.0, 8.0, 9.0]]],
}
vectors = List(List(Value("float32")))
names = {"utterance_ids": List(Value("string")), "labels": List(Value("string"))}
features = Features({"dialogue_id": Value("string"), **names, "text_features": vectors, "speech_features": vectors})
dialogues = Dataset.from_dict(DIALOGUES, features=features)
dialogues.push_to_hub("org/dialogues")
dialogues.to_parquet(sys.argv[1] + "/dialogues.parquet")

torch.manual_seed(0)
sizes = {"speech_embedding_dim": 3, "text_embedding_dim": 2, "hidden_size": 8}
sizes |= {"attention_dim": 6, "fusion_num_layers": 1}
model = MisterEModel(MisterEConfig(**sizes, id2label={0: "anger", 1: "joy", 2: "neutral"})).eval()
batch = {"speech_embeddings": torch.randn(2, 4, 3), "text_embeddings": torch.randn(2, 4, 2)}
expected = {}
for name in ("first", "second", "branch"):
    for parameter in model.parameters():
        parameter.data.normal_()
    expected[name] = model(**batch).logits.detach()
    model.push_to_hub("org/name", revision="experiment" if name == "branch" else None)
model.push_to_hub("org/secret", private=True)
save_file({**batch, **expected}, sys.argv[1] + "/expected.safetensors")
"""

# Put before LOAD: the order of imports, or no package at all.
PACKAGE_LAST = "import transformers; import mister_e_hf"
PACKAGE_FIRST = "import mister_e_hf; import transformers"
NO_PACKAGE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mister_e_hf":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, NotInstalled())
"""
LOAD = """
import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModel

folder, options, *loads = map(json.loads, sys.argv[1:])
expected = load_file(folder + "/expected.safetensors")
batch = {name: expected[name] for name in ("speech_embeddings", "text_embeddings")}
report = {}
for repo_id, revision, name in loads:
    try:
        model = AutoModel.from_pretrained(repo_id, revision=revision, **options)
    except Exception as error:
        report[name] = [isinstance(error, OSError), str(error)]
    else:
        report[name] = [torch.equal(model(**batch).logits, expected[name]), type(model).__module__.split(".")[0]]
report["modules"] = sorted(name for name in sys.modules if name.split(".")[0] == "mister_e_hf")
"""
REPORT = "\nprint(json.dumps(report))\n"

LOAD_DATASET = """
from datasets import Dataset, load_dataset

from mister_e_hf import read_corpus

loaded, pushed = load_dataset("org/dialogues", split="train"), Dataset.from_parquet(folder + "/dialogues.parquet")
report["dataset"] = [loaded.features == pushed.features, loaded.to_dict() == pushed.to_dict()]
split = read_corpus("org/dialogues", {"anger": 0, "joy": 1, "neutral": 2}, splits=("train",))["train"]
report["corpus"] = [split.dialogue_ids, split.labels.tolist(), split[0]["speech_mask"].tolist()]
"""


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as hub:
        yield hub


def run(script: str, env: dict[str, str], folder: Path, *arguments: str) -> str:
    """Runs a script in a fresh process; what it prints last."""
    done = run_python("-c", script, *arguments, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return (done.stdout.splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, tmp_path_factory) -> Path:
    """Everything is on the Hub; this folder has what it must give back."""
    folder = tmp_path_factory.mktemp("pushed")
    run(PUSH, hub.env(folder / "home"), folder, str(folder))
    return folder


@pytest.fixture
def load(hub: LoopbackHub, pushed: Path, tmp_path: Path):
    """Loads (repository, revision, name of the expected output) in a fresh process with an empty cache."""

    def load(script: str, *loads: tuple[str, str, str], token: str | None = None, **options) -> dict:
        arguments = [json.dumps(argument) for argument in (str(pushed), options, *loads)]
        return json.loads(run(script + REPORT, hub.env(tmp_path / "home", token), tmp_path, *arguments))

    return load


def test_only_what_loading_needs_is_pushed(hub, pushed):
    assert set(hub.files("org/name")) == {".gitattributes"} | CHECKPOINT
    assert ("POST", "/org/name.git/info/lfs/objects/batch", 200) in hub.requests


def test_package_imported_after_transformers(hub, load):
    start, first, second, branch = hub.commits("org/name")
    report = load(
        PACKAGE_LAST + LOAD + LOAD_DATASET,
        ("org/name", "main", "second"),
        ("org/name", first, "first"),
        ("org/name", "experiment", "branch"),
        ("org/secret", "main", "branch"),
        token=TOKEN,
    )
    for name in ("first", "second", "branch"):
        assert report[name] == [True, "mister_e_hf"]
    assert report["dataset"] == [True, True]
    assert report["corpus"] == [["a", "b"], [1, 0, 1, 2], [True, False, True]]


def test_package_imported_before_transformers_without_a_token(load):
    report = load(
        PACKAGE_FIRST + LOAD,
        ("org/name", "main", "second"),
        ("org/secret", "main", "private"),
        ("org/nowhere", "main", "missing"),
        ("org/name", "nowhen", "revision"),
    )
    assert report["second"] == [True, "mister_e_hf"]
    for name in ("private", "missing"):
        is_os_error, message = report[name]
        assert is_os_error and "is not a local folder and is not a valid model identifier" in message
    is_os_error, message = report["revision"]
    assert is_os_error and "nowhen is not a valid git identifier" in message


def test_without_the_package(hub, load):
    first = hub.commits("org/name")[1]
    report = load(
        NO_PACKAGE + LOAD, ("org/name", "main", "second"), ("org/name", first, "first"), trust_remote_code=True
    )
    assert report == {"second": [True, "transformers_modules"], "first": [True, "transformers_modules"], "modules": []}


def ask(hub: LoopbackHub, method: str, path: str, body=None, token: str | None = TOKEN, **headers: str):
    connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request(method, path, body, headers)  # an iterator goes out in chunks
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_protocol():
    with loopback_hub() as hub:
        repo = json.dumps({"organization": "org", "name": "name", "type": "dataset", "visibility": "private"}).encode()
        assert ask(hub, "POST", "/api/repos/create", repo, token=None)[0].status == 401
        assert ask(hub, "POST", "/api/repos/create", repo)[0].status == 200
        assert ask(hub, "POST", "/api/repos/create", repo)[0].status == 409
        operations = [
            {"key": "header", "value": {"summary": "Add a file"}},
            {
                "key": "file",
                "value": {"path": "folder/digits.txt", "content": "MDEyMzQ1Njc4OQ==", "encoding": "base64"},
            },
        ]
        chunks = [json.dumps(operation).encode() + b"\n" for operation in operations]
        answer, content = ask(hub, "POST", "/api/datasets/org/name/commit/main", iter(chunks))
        assert answer.status == 200
        assert json.loads(content)["commitOid"] == hub.commits("org/name", "dataset")[-1]
        assert hub.files("org/name", "dataset") == [".gitattributes", "folder/digits.txt"]
        assert hub.read("org/name", "folder/digits.txt", "dataset") == b"0123456789"

        file = "/datasets/org/name/resolve/main/folder/digits.txt"
        for wanted, status, part in [
            ("bytes=2-4", 206, b"234"),
            ("bytes=7-", 206, b"789"),
            ("bytes=-2", 206, b"89"),
            ("bytes=8-99", 206, b"89"),
            ("bytes=10-", 416, b""),
        ]:
            answer, content = ask(hub, "GET", file, Range=wanted)
            assert (answer.status, content) == (status, part)
        answer, content = ask(hub, "HEAD", file)
        assert (answer.status, answer.headers["Content-Length"], content) == (200, "10", b"")

        settings = "/api/datasets/org/name/settings"
        for asked, private in [({"private": False}, False), ({"visibility": "private"}, True)]:
            assert ask(hub, "PUT", settings, json.dumps(asked).encode(), token=None)[0].status == 401
            assert ask(hub, "PUT", settings, json.dumps(asked).encode())[0].status == 200
            assert hub.is_private("org/name", "dataset") == private
            assert ask(hub, "GET", file, token=None)[0].status == (401 if private else 200)

        for path, token, status, code in [
            (file, None, 401, "RepoNotFound"),
            ("/org/name/resolve/main/README.md", TOKEN, 404, "RepoNotFound"),
            ("/api/datasets/org/name/revision/nowhen", TOKEN, 404, "RevisionNotFound"),
            (file + ".gz", TOKEN, 404, "EntryNotFound"),
            ("/api/datasets/org/name/tree/main/nothing", TOKEN, 404, "EntryNotFound"),
            ("/api/whoami-v2", "another", 401, None),
        ]:
            answer, _ = ask(hub, "GET", path, token=token)
            assert (answer.status, answer.headers["X-Error-Code"]) == (status, code)
