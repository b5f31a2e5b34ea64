"""A causal EMO-Caps answers turn by turn as it does for the whole dialogue."""

import torch
from transformers import pipeline

from mister_e_hf.base.modalities import TASK
from mister_e_hf.hub.checkpoint import save_checkpoint
from support.model_contract import small_model


def test_turns_one_by_one_get_the_answers_of_the_whole_dialogue(tmp_path):
    model = small_model("emo_caps", torch.float32, causal=True)
    erc = pipeline(TASK, model=save_checkpoint(tmp_path / "c", model, {}))
    vectors = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    turns = [{"speech_embedding": row[:5].tolist(), "text_embedding": row[5:].tolist()} for row in vectors]
    del turns[2]["speech_embedding"], turns[4]["text_embedding"]
    whole, stream = erc(turns), erc.stream()
    for turn, expected in zip(turns, whole, strict=True):
        found = stream(turn)
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(found["capsules"], expected["capsules"], rtol=0, atol=1e-5)
