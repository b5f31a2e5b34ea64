"""The README, and the README of each folder: their snippets run; the files, recipes, commands and options exist."""

import contextlib
import csv
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyarrow.parquet import read_table

from mister_e_hf import Recipe
from mister_e_hf.cli import main
from mister_e_hf.models import registry
from mister_e_hf.studies.report.results_page import main_table_in
from mister_e_hf.training.experiment import summarize
from mister_e_hf.training.recipe_files import recipe_names
from support.new_process import run_python
from support.package_files import PACKAGE, ROOMS, ROOT
from support.small_demo import run_small_demo
from support.tiny_language_models import tiny_language_model

PATTERNS = ("README.md", "CONTRIBUTING.md", "hub_configs/README.md", "scripts/README.md", "src/**/README.md")
PAGES = {str(path.relative_to(ROOT)): path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
README = TEXTS["README.md"]
NEXT = ["predict", "plot", "evaluate"]  # after a demo
COMMAND = re.compile(r"(?:python|accelerate launch|torchrun(?: --\w+ \d+)?) (?=scripts/)")
# Those of other programs.
FOREIGN = {"--constraint", "--nproc_per_node"}
every_page = pytest.mark.parametrize("page", PAGES)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """What a page tells to type, as words of `mister-e` or of a script; in blocks and between backticks."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]
    lines = [COMMAND.sub("", re.sub(r"\s+#.*", "", line)) for line in lines]
    found = [shlex.split(line) for line in lines if re.match(r"mister-e |scripts/\S+\.py ", line)]
    return [words for words in found if words[1] != "..."]


@cache
def help_of(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert not ended.value.code, command
    return printed.getvalue()


@cache
def help_of_the_demo() -> str:
    call = [sys.executable, ROOT / "scripts" / "demo.py", "--help"]
    return subprocess.run(call, capture_output=True, timeout=60, check=True).stdout.decode()


@cache
def command_names() -> list[str]:
    return re.findall(r"^    (\w+)", help_of().partition("  COMMAND\n")[2], flags=re.MULTILINE)


def is_field(option: str) -> bool:
    """Whether a recipe has the field that the option names, of MiSTER-E or of EGMF."""
    section, _, field = option.removeprefix("--").rpartition(".")
    sections = [section] if section else ["model", "corpus", "training"]
    known = [Recipe.load(name).fields() for name in ("mister-e-meld-small", "egmf-meld-small")]
    return field == "corpus" or any(field in fields.get(name, ()) for name in sections for fields in known)


def block_after(text: str, mark: str) -> list[list[str]]:
    block = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)```", text, flags=re.DOTALL)[1]
    return [shlex.split(line) for line in block.splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Where the demo was run."""
    folder = tmp_path_factory.mktemp("clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_small_demo("runs/demo")
    return folder


@pytest.fixture
def demo_run(made, monkeypatch):
    monkeypatch.chdir(made)


@pytest.fixture
def run_snippets(tmp_path, monkeypatch):
    def run(text: str) -> dict:
        """The Python of a page as a module in a file, which a model's or builder's class must come from."""
        file = tmp_path / "snippets_of_page.py"
        file.write_text("\n".join(blocks(text, "python")), encoding="utf-8")
        specification = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, file.stem, module)
        specification.loader.exec_module(module)
        return vars(module)

    entries = dict(registry._ENTRIES)
    yield run
    registry._ENTRIES.clear()
    registry._ENTRIES.update(entries)


# What the comments of the snippets say.
CHECKS = {
    "README.md": lambda names: len(names["emotions"]) == 10 and names["output"].gate_weights[0, 9, 0] == 0,
    "src/mister_e_hf/README.md": lambda names: names["turn"]["label"] in names["labels"] and len(names["notes"]) == 1,
    "src/mister_e_hf/corpora/README.md": lambda names: names["turn"]["text"] and names["turn"]["emotion"] is not None,
    "src/mister_e_hf/inference/README.md": lambda names: (
        names["turns"][1]["gate"]["speech"] == 0 and len(names["recording"]) == 2
    ),
}


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_python_snippets_run(demo_run, own_cache, run_snippets, page):
    names = run_snippets(TEXTS[page])
    assert CHECKS.get(page, bool)(names)


def test_the_first_screen_predicts_on_a_recording_of_the_demo(demo_run, run_snippets, capsys):
    block = re.search(r"<!-- first screen -->\n(```python\n.*?^```)", README, flags=re.DOTALL | re.MULTILINE)[1]
    assert README[: README.index(block)].count("\n") < 45
    names = run_snippets(block)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == len(names["segments"])
    labels = set(names["erc"].model.config.id2label.values())
    assert all(label in labels and 0 < float(score) <= 1 for label, score in printed)


def test_commands_for_your_own_recordings_run(demo_run, own_cache, capsys):
    steps = block_after(TEXTS["src/mister_e_hf/training/README.md"], "step by step")
    assert [words[1] for words in steps] == ["corpus", "init", "train", "train", "predict"]
    assert block_after(README, "own recordings") == [steps[0], steps[1], steps[3]]
    tiny = ["--num_train_epochs", "1", "--use_cpu"]
    for modality in ("speech", "text"):  # the recipe's own encoders would have to be downloaded
        tiny += [f"--{modality}_encoder.backbone", f"runs/demo/demo/backbones/{modality}"]
        tiny += [f"--{modality}_encoder.training.num_train_epochs", "1", f"--{modality}_encoder.training.use_cpu"]
    for words in steps:
        assert main([*words[1:], *(tiny if words[1] == "train" else [])]) == 0, (words, capsys.readouterr().err)
    with Path("runs/calls.csv").open(newline="") as file:
        assert {row["dialogue"] for row in csv.DictReader(file)} == {"test_000", "test_001", "test_002"}
    assert "# MiSTER-E, calls" in Path("runs/calls/README.md").read_text()


def test_commands_of_a_language_model_run(demo_run, capsys):
    steps = block_after(README, "language model")
    assert [words[1] for words in steps] == ["train", "predict"]
    # the recipe's own would have to be downloaded
    tiny = ["--model.language_model", tiny_language_model("llama"), "--use_cpu"]
    for words in steps:
        assert main([*words[1:], *(tiny if words[1] == "train" else [])]) == 0, (words, capsys.readouterr().err)
    with Path("runs/egmf.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"answer", "unparsed", "gate weight of local"} <= rows[0].keys() and all(row["text"] for row in rows)


@pytest.mark.slow
def test_commands_from_clips_to_capsules_run(tmp_path, monkeypatch, own_cache, capsys):
    monkeypatch.chdir(tmp_path)
    demo, *steps = block_after(TEXTS["src/mister_e_hf/inference/README.md"], "clips to capsules")
    assert demo == ["python", "scripts/demo.py", "runs/demo-video", "--video"]
    run_small_demo("runs/demo-video", video=True)
    tiny = ["--num_train_epochs", "1", "--use_cpu"]
    for modality in ("speech", "text", "visual"):
        tiny += [f"--{modality}_encoder.backbone", f"runs/demo-video/demo/backbones/{modality}"]
        tiny += [f"--{modality}_encoder.training.num_train_epochs", "1", f"--{modality}_encoder.training.use_cpu"]
        tiny += [f"--{modality}_encoder.num_frames", "2"] if modality == "visual" else []
    for words in steps:
        assert main([*words[1:], *(tiny if words[1] == "train" else [])]) == 0, (words, capsys.readouterr().err)
    turns = [json.loads(line) for line in Path("runs/clips.jsonl").read_text().splitlines()]
    assert all("speech+text+visual" in turn["capsules"] and "text" in turn for turn in turns)


def test_the_demo_ends_with_what_was_shown_and_commands_that_work(demo_run, capsys):
    specification = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    demo = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(demo)
    scores = json.loads(Path("runs/demo/results.json").read_text())["test"]
    demo.show(Path("runs/demo"), {"test": summarize([scores])})
    printed = capsys.readouterr().out
    for name in ("mixture", "speech", "text", "fusion"):
        assert re.search(rf"^{name} +{100 * scores[name]['weighted_f1']:.2f} ", printed, flags=re.MULTILINE)
    turns = [
        row for row in read_table("runs/demo/predictions.parquet").to_pylist() if row["dialogue_id"] == "test_000"
    ]
    shown = re.findall(r"^ +\d+  (\w+) +(\w+) ", printed, flags=re.MULTILINE)
    assert shown == [(row["label"], row["prediction"]) for row in turns]
    following = [shlex.split(line) for line in printed.partition("Try next:")[2].splitlines() if line]
    starts = [next(place for place, word in enumerate(words) if word in NEXT) for words in following]
    assert [words[start] for words, start in zip(following, starts, strict=True)] == NEXT
    program = following[0][: starts[0]]
    assert subprocess.run([*program, "--version"], capture_output=True, timeout=60).stdout.startswith(b"mister-e ")
    for words, start in zip(following, starts, strict=True):
        assert main(words[start:]) == 0, (words, capsys.readouterr().err)


def test_snippet_of_the_model_card_runs(demo_run):
    snippets = blocks(Path("runs/demo/README.md").read_text(), "python")[:2]
    soundfile.write("2.wav", np.sin(np.arange(8000) / 9), 8000)
    snippet = "\n".join(snippets).replace("REPOSITORY", "runs/demo")
    prelude = "import torch\nspeech_embeddings, text_embeddings = torch.randn(1, 3, 32), torch.randn(1, 3, 32)\n"
    call = run_python("-c", prelude + snippet)
    assert call.returncode == 0, call.stderr


# What a page names exists


@every_page
def test_every_file_exists(page):
    for name in re.findall(r"`((?:[\w-]+/)*\w+\.py)`", TEXTS[page]):
        assert (PACKAGE / name).is_file() or (ROOT / name).is_file(), name


@every_page
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], (
                target
            )


@every_page
def test_every_recipe_exists(page):
    for name in re.findall(r"(?<![\w/-])mister-e-\w[\w-]*", TEXTS[page]):
        assert name in recipe_names(), name


@every_page
def test_every_command_and_option_exists(page):
    for program, *words in commands(TEXTS[page]):
        if program.startswith("scripts/benchmarks/"):
            source = (ROOT / program).read_text(encoding="utf-8")
            assert all(f'"{word}"' in source for word in words if word.startswith("--")), (program, words)
            continue
        assert program == "mister-e" or (ROOT / program).is_file(), program
        if program == "scripts/demo.py":
            continue
        command = [words[0]] if program == "mister-e" else [Path(program).stem]
        command += [words[1]] if command == ["corpus"] and len(words) > 1 and words[1].islower() else []
        if command[0].isupper() or command[0].startswith("--"):  # `mister-e COMMAND --help`
            continue
        text = help_of(*command)
        for option in filter(re.compile(r"--\w").match, words):
            takes_fields = "Any other --field" in text
            assert re.search(rf"{re.escape(option)}\b", text) or takes_fields and is_field(option), (command, option)


@every_page
def test_every_target_of_make_exists(page):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)[
        1
    ].split()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", TEXTS[page], flags=re.MULTILINE):
        assert target in targets, target


@every_page
def test_every_option_in_the_prose_exists(page):
    helps = [help_of_the_demo(), *(help_of(name) for name in command_names() if name != "corpus")]
    helps += [help_of("corpus", name) for name in ("iemocap", "meld", "mosi", "mosei", "sims", "cherma", "folder")]
    known = {*re.findall(r"--\w+", " ".join(helps)), *FOREIGN}
    for code in re.findall(r"`([^`]+)`", prose(TEXTS[page])):
        if "scripts/benchmarks/" in code:
            continue
        for option in re.findall(r"(?<!\S)--\w[\w.]*", code):
            assert option in known or is_field(option), option


def test_the_list_of_commands_names_all():
    listed = [words[1] for words in commands("\n".join(blocks_of_section("Commands")))]
    assert sorted(listed) == sorted(command_names())


def blocks_of_section(title: str) -> list[str]:
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, flags=re.DOTALL | re.MULTILINE)[1]
    return [f"```bash\n{block}```" for block in blocks(section, "bash")]


def test_the_layout_names_every_folder():
    named = re.findall(r"`(\w+)/`", README[README.index("## Layout") :])
    assert [name for name in named if name in ROOMS] == named[: len(ROOMS)] and set(named) >= set(ROOMS)


def test_the_table_of_models_names_all():
    listed = re.findall(
        r"^\| `(\w+)` \|", README[README.index("## Models") : README.index("## Results")], flags=re.MULTILINE
    )
    assert listed[1:] == [model.model_type for model in registry.registered()]


def test_the_recipes_are_those_that_are_described():
    published = {"mister-e-iemocap6", "mister-e-iemocap4", "mister-e-meld", "mister-e-mosi"}
    sizes = {f"{name}{size}" for name in published for size in ("", "-small", "-7b")}
    further = {"mister-e-mosi-score", "mister-e-mosei", "mister-e-sims", "mister-e-cherma"}
    sizes |= {f"{name}{size}" for name in further for size in ("", "-small")}
    sizes |= {"emo-caps-iemocap6-small", "emo-caps-meld", "emo-caps-meld-small", "emo-caps-mosi-small"}
    sizes |= {"demo", "demo-recordings", "demo-video", "emo-caps-demo-video", "own-small", "own-video", "own-egmf"}
    sizes |= {f"egmf-{corpus}" for corpus in ("meld", "meld-small", "mosi-small", "mosei", "sims", "cherma")}
    assert {*recipe_names()} == sizes


def test_main_table_is_that_of_the_results():
    """Where there are results, both pages hold it; where there are none, the README has no numbers of its own."""
    results = ROOT / "RESULTS.md"
    expected = main_table_in(results.read_text()) if results.is_file() else None
    assert (expected is not None) == results.is_file()
    assert main_table_in(README) == expected


def test_lines_fit():
    others = [ROOT / "CHANGELOG.md", *(ROOT / "hub_configs").glob("*.yaml")]
    for path in [*PAGES.values(), *others]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 119 or line.startswith("|"), f"{path}:{number}"
    assert README.count("\n") <= 190
