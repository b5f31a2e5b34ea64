"""Checkpoints written before this package had folders (commit 195750f), stored without their code, still load."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

from mister_e_hf import MisterEModel, MisterEProcessor, UtteranceEncoder
from mister_e_hf.inference.stored_stages import load_encoder, load_model

FOLDER = Path(__file__).parents[1] / "reference" / "before_rooms"
MISTER_E, BC_LSTM = FOLDER / "mister_e", FOLDER / "bc_lstm"
TURNS = [
    {"text": "so well"},
    {"speech_embedding": [0.5, -1.0, 2.0]},
    {"text": "who grr so", "speech_embedding": [1.0, 0.0, 0.25]},
]


def stored(prefix: str) -> dict[str, torch.Tensor]:
    tensors = load_file(FOLDER / "expected.safetensors")
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def assert_close(found: torch.Tensor, expected: torch.Tensor):
    # Another CPU may round in another way.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (lambda: AutoModel.from_pretrained(MISTER_E), "mister_e"),
        (lambda: MisterEModel.from_pretrained(MISTER_E), "mister_e"),
        (lambda: load_model(MISTER_E), "mister_e"),
        (lambda: AutoModel.from_pretrained(BC_LSTM), "bc_lstm"),
        (lambda: load_model(BC_LSTM), "bc_lstm"),
    ],
    ids=["AutoModel", "from_pretrained", "load_model", "AutoModel of a baseline", "load_model of a baseline"],
)
def test_stage_2_gives_the_stored_outputs(load, name):
    with torch.no_grad():
        output = load()(**stored("batch"))
    expected = stored(name)
    assert set(expected) <= set(output)
    for field, value in expected.items():
        assert_close(output[field], value)


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_encoder(MISTER_E, "text", 4),
        lambda: (
            AutoModel.from_pretrained(MISTER_E, subfolder="text_encoder"),
            AutoProcessor.from_pretrained(MISTER_E, subfolder="text_encoder"),
        ),
        lambda: (
            UtteranceEncoder.from_pretrained(MISTER_E, subfolder="text_encoder"),
            MisterEProcessor.from_pretrained(MISTER_E, subfolder="text_encoder"),
        ),
    ],
    ids=["load_encoder", "Auto classes", "from_pretrained"],
)
def test_the_encoder_and_its_processor_give_the_stored_outputs(load):
    encoder, processor = load()
    inputs, expected = processor(["so well", "hooray", "who grr so"]), stored("processor")
    assert set(inputs) == set(expected) and all(torch.equal(inputs[name], expected[name]) for name in expected)
    with torch.no_grad():
        output = encoder(**inputs)
    for field, value in stored("encoder").items():
        assert_close(output[field], value)


def test_the_pipeline_gives_the_stored_answers():
    erc = pipeline("conversation-emotion-recognition", model=str(MISTER_E))
    expected, stream = stored("pipeline"), erc.stream()
    for found in (erc(TURNS), [stream(turn) for turn in TURNS]):
        scores = [[turn["scores"][label] for label in ("anger", "joy")] for turn in found]
        assert_close(torch.tensor(scores, dtype=torch.float64), expected["scores"])
        assert_close(torch.tensor([[*turn["gate"].values()] for turn in found], dtype=torch.float64), expected["gate"])
