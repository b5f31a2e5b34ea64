"""A checkpoint with an encoder of video: pushed, and loaded from the Hub with its own code, without this package."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import pipeline

pytest.importorskip("av", reason="needs the extra `av`")

from mister_e_hf.hub.checkpoint import checkpoint_files, pushed_contents  # noqa: E402
from mister_e_hf.inference.doctor import examine  # noqa: E402
from support.hidden_packages import HIDE  # noqa: E402
from support.loopback_hub import loopback_hub  # noqa: E402
from support.new_process import run_python  # noqa: E402
from support.small_checkpoint import write_video_checkpoint  # noqa: E402
from support.small_encoders import LABELS, tone  # noqa: E402
from support.small_pipeline import TASK  # noqa: E402
from support.small_videos import plain, write_clip  # noqa: E402

PUSH = """
import sys
from mister_e_hf import __name__
from transformers import AutoModel

AutoModel.from_pretrained(sys.argv[1]).push_to_hub("org/video")
"""
LOAD = (
    HIDE
    + """
import json, sys
import numpy, soundfile, soxr, torch

hidden = hide("mister_e_hf", "datasets", "pyarrow", "pandas", "sklearn", "scipy", "accelerate", "peft", "evaluate")
from transformers import pipeline

erc = pipeline(sys.argv[1], model="org/video", trust_remote_code=True)
found = erc(json.loads(sys.argv[2]))
try:
    erc([{"text": "so"}, {"video": "nowhere.mp4"}])
    raise AssertionError("a video that does not exist was read")
except ValueError as error:
    assert "dialogue 0, turn 1: Video file 'nowhere.mp4' not found" in str(error), error
assert not hidden & {name.partition(".")[0] for name in sys.modules}
print(json.dumps(found))
"""
)


@pytest.mark.slow
def test_a_pushed_checkpoint_reads_video_with_its_own_code(tmp_path):
    folder = write_video_checkpoint(tmp_path / "run")
    write_clip(tmp_path / "clip.mp4", [plain((200, 20, 20))] * 20, fps=10, sound=tone(2, 220))
    turns = [{"video": str(tmp_path / "clip.mp4"), "text": "so you see"}, {"text": "well"}]
    expected = pipeline(TASK, model=folder)(turns)
    with loopback_hub() as hub:

        def python(*words: str) -> str:
            call = run_python("-c", *words, env=hub.env(tmp_path / "home"), cwd=tmp_path)
            assert call.returncode == 0, call.stdout + call.stderr
            return call.stdout

        python(PUSH, str(folder))
        files = set(hub.files("org/video"))
        assert {"visual_encoder/config.json", "visual_encoder/preprocessor_config.json", "video.py"} <= files
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
        found = json.loads(python(LOAD, TASK, json.dumps(turns)).splitlines()[-1])
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            [one["scores"][label] for label in LABELS], [wanted["scores"][label] for label in LABELS], atol=1e-5
        )


def test_card_doctor_and_file_list_know_the_encoder_of_video(tmp_path, monkeypatch):
    folder = write_video_checkpoint(tmp_path / "run")
    card = ModelCard.load(folder / "README.md").text
    for text in (
        "from audio, text and video, without using who speaks",
        'erc([{"video": "clip0.mp4"}, {"text": "Calm down.", "video": "clip1.mp4"}])  # the audio is that of the vid',
        "The vectors of video are computed with `visual_encoder/`",
        "vectors = encoder(**processor(video)).embeddings  # paths of videos, or frames (K, H, W, 3) in uint8",
        "visual_embeddings=visual_embeddings",
    ):
        assert text in card, text
    assert checkpoint_files(folder).keys() == pushed_contents(folder).keys()
    findings = list(examine(folder))
    assert all(good for good, _ in findings), findings
    assert any(text.startswith("visual_encoder/: ") for _, text in findings)
    monkeypatch.setattr("mister_e_hf.inference.doctor.version_of", lambda name: None)
    assert (False, "visual_encoder/: video cannot be read without PyAV: pip install av") in list(examine(folder))
