"""MiSTER-E for Hugging Face: a mixture of speech, text and cross-modal experts for emotion recognition in conversations.

Public names load the module they live in when they are first used; importing the package imports nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING

from . import _registration

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from .audio import load_audio as load_audio
    from .collator import DialogueCollator as DialogueCollator
    from .collator import LikeLengthSampler as LikeLengthSampler
    from .configuration_mister_e import MisterEConfig as MisterEConfig
    from .configuration_utterance_encoder import UtteranceEncoderConfig as UtteranceEncoderConfig
    from .convert import convert_reference_checkpoint as convert_reference_checkpoint
    from .corpora.cmu_mosi import CmuMosi as CmuMosi
    from .corpora.dialogue_folder import DialogueFolder as DialogueFolder
    from .corpora.iemocap import Iemocap as Iemocap
    from .corpora.meld import Meld as Meld
    from .dialogue_vectors import DialogueVectors as DialogueVectors
    from .emotion_metrics import EmotionMetrics as EmotionMetrics
    from .modeling_mister_e import MisterEModel as MisterEModel
    from .modeling_mister_e import MisterEOutput as MisterEOutput
    from .modeling_utterance_encoder import UtteranceEncoder as UtteranceEncoder
    from .modeling_utterance_encoder import UtteranceEncoderOutput as UtteranceEncoderOutput
    from .pipeline_mister_e import ConversationEmotionPipeline as ConversationEmotionPipeline
    from .processing_mister_e import MisterEProcessor as MisterEProcessor
    from .recipe import Recipe as Recipe
    from .trainer import MisterETrainer as MisterETrainer
    from .trainer import MisterETrainingArguments as MisterETrainingArguments
    from .vectors import read_corpus as read_corpus
    from .vectors import write_vectors as write_vectors

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
    "DialogueVectors": "dialogue_vectors",
    "read_corpus": "vectors",
    "write_vectors": "vectors",
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
