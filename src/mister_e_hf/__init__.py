"""MiSTER-E for Hugging Face: a mixture of speech, text and cross-modal experts for emotion recognition in conversations.

Public names load the module they live in when they are first used; importing the package imports nothing heavy.
"""

import importlib

from . import _registration

__version__ = "0.1.0"

_HOME = {
    "MisterEConfig": "configuration_mister_e",
    "MisterEModel": "modeling_mister_e",
    "MisterEOutput": "modeling_mister_e",
    "UtteranceEncoderConfig": "configuration_utterance_encoder",
    "UtteranceEncoder": "modeling_utterance_encoder",
    "UtteranceEncoderOutput": "modeling_utterance_encoder",
    "MisterEProcessor": "processing_mister_e",
    "ConversationEmotionPipeline": "pipeline_mister_e",
    "DialogueVectors": "vectors",
    "read_corpus": "vector_files",
    "write_vectors": "vector_files",
    "DialogueCollator": "collator",
    "LikeLengthSampler": "collator",
    "Recipe": "recipe",
    "MisterETrainer": "trainer",
    "MisterETrainingArguments": "trainer",
    "EmotionMetrics": "emotion_metrics",
    "load_audio": "audio",
    "Iemocap": "corpora.iemocap",
    "Meld": "corpora.meld",
    "CmuMosi": "corpora.cmu_mosi",
    "DialogueFolder": "corpora.dialogue_folder",
    "convert_reference_checkpoint": "convert",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    importlib.import_module(".installation", __name__).check_installation()
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_registration.install()
