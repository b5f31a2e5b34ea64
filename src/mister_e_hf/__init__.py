"""MiSTER-E for Hugging Face: a mixture of speech, text and cross-modal experts for emotion recognition.

A public name loads its module when it is first used; importing the package imports nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING

from . import _registration

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from .corpora.ch_sims_v2 import ChSimsV2 as ChSimsV2
    from .corpora.cherma import Cherma as Cherma
    from .corpora.cmu_mosei import CmuMosei as CmuMosei
    from .corpora.cmu_mosi import CmuMosi as CmuMosi
    from .corpora.dialogue_folder import DialogueFolder as DialogueFolder
    from .corpora.iemocap import Iemocap as Iemocap
    from .corpora.meld import Meld as Meld
    from .encoders.configuration_utterance_encoder import UtteranceEncoderConfig as UtteranceEncoderConfig
    from .encoders.modeling_utterance_encoder import UtteranceEncoder as UtteranceEncoder
    from .encoders.modeling_utterance_encoder import UtteranceEncoderOutput as UtteranceEncoderOutput
    from .encoders.processing_utterance_encoder import MisterEProcessor as MisterEProcessor
    from .evaluation.emotion_metrics import EmotionMetrics as EmotionMetrics
    from .evaluation.score_metrics import ScoreMetrics as ScoreMetrics
    from .inference.pipeline_conversation_emotion import ConversationEmotionPipeline as ConversationEmotionPipeline
    from .media.audio import load_audio as load_audio
    from .media.video import load_frames as load_frames
    from .models.egmf.configuration_egmf import EgmfConfig as EgmfConfig
    from .models.egmf.configuration_egmf_fusion import EgmfFusionConfig as EgmfFusionConfig
    from .models.egmf.modeling_egmf import EgmfModel as EgmfModel
    from .models.egmf.modeling_egmf import EgmfOutput as EgmfOutput
    from .models.egmf.modeling_egmf_fusion import EgmfFusionModel as EgmfFusionModel
    from .models.egmf.modeling_egmf_fusion import EgmfFusionOutput as EgmfFusionOutput
    from .models.emo_caps.configuration_emo_caps import EmoCapsConfig as EmoCapsConfig
    from .models.emo_caps.modeling_emo_caps import EmoCapsModel as EmoCapsModel
    from .models.emo_caps.modeling_emo_caps import EmoCapsOutput as EmoCapsOutput
    from .models.emo_caps.pretraining_emo_caps import EmoCapsForPreTraining as EmoCapsForPreTraining
    from .models.mister_e.configuration_mister_e import MisterEConfig as MisterEConfig
    from .models.mister_e.convert_reference import convert_reference_checkpoint as convert_reference_checkpoint
    from .models.mister_e.modeling_mister_e import MisterEModel as MisterEModel
    from .models.mister_e.modeling_mister_e import MisterEOutput as MisterEOutput
    from .models.mister_e.pretraining_mister_e import MisterEForPreTraining as MisterEForPreTraining
    from .models.modeling_conversation import ConversationOutput as ConversationOutput
    from .training.dialogue_trainer import DialogueTrainer as DialogueTrainer
    from .training.dialogue_trainer import DialogueTrainingArguments as DialogueTrainingArguments
    from .training.dialogue_trainer import MisterETrainer as MisterETrainer
    from .training.dialogue_trainer import MisterETrainingArguments as MisterETrainingArguments
    from .training.pretraining_trainer import PretrainingArguments as PretrainingArguments
    from .training.pretraining_trainer import PretrainingTrainer as PretrainingTrainer
    from .training.recipe import Recipe as Recipe
    from .vectors.collator import DialogueCollator as DialogueCollator
    from .vectors.dialogue_vectors import DialogueVectors as DialogueVectors
    from .vectors.pooled import read_pooled as read_pooled
    from .vectors.sampler import LikeLengthSampler as LikeLengthSampler
    from .vectors.store import read_corpus as read_corpus
    from .vectors.store import write_vectors as write_vectors

__version__ = "0.1.0"

_HOME = {
    "MisterEConfig": "models.mister_e.configuration_mister_e",
    "MisterEModel": "models.mister_e.modeling_mister_e",
    "MisterEOutput": "models.mister_e.modeling_mister_e",
    "EgmfConfig": "models.egmf.configuration_egmf",
    "EgmfModel": "models.egmf.modeling_egmf",
    "EgmfOutput": "models.egmf.modeling_egmf",
    "EgmfFusionConfig": "models.egmf.configuration_egmf_fusion",
    "EgmfFusionModel": "models.egmf.modeling_egmf_fusion",
    "EgmfFusionOutput": "models.egmf.modeling_egmf_fusion",
    "EmoCapsConfig": "models.emo_caps.configuration_emo_caps",
    "EmoCapsModel": "models.emo_caps.modeling_emo_caps",
    "EmoCapsForPreTraining": "models.emo_caps.pretraining_emo_caps",
    "EmoCapsOutput": "models.emo_caps.modeling_emo_caps",
    "MisterEForPreTraining": "models.mister_e.pretraining_mister_e",
    "UtteranceEncoderConfig": "encoders.configuration_utterance_encoder",
    "UtteranceEncoder": "encoders.modeling_utterance_encoder",
    "UtteranceEncoderOutput": "encoders.modeling_utterance_encoder",
    "MisterEProcessor": "encoders.processing_utterance_encoder",
    "ConversationEmotionPipeline": "inference.pipeline_conversation_emotion",
    "DialogueVectors": "vectors.dialogue_vectors",
    "read_corpus": "vectors.store",
    "read_pooled": "vectors.pooled",
    "write_vectors": "vectors.store",
    "DialogueCollator": "vectors.collator",
    "LikeLengthSampler": "vectors.sampler",
    "Recipe": "training.recipe",
    "ConversationOutput": "models.modeling_conversation",
    "DialogueTrainer": "training.dialogue_trainer",
    "DialogueTrainingArguments": "training.dialogue_trainer",
    "MisterETrainer": "training.dialogue_trainer",
    "PretrainingArguments": "training.pretraining_trainer",
    "PretrainingTrainer": "training.pretraining_trainer",
    "MisterETrainingArguments": "training.dialogue_trainer",
    "EmotionMetrics": "evaluation.emotion_metrics",
    "ScoreMetrics": "evaluation.score_metrics",
    "load_audio": "media.audio",
    "load_frames": "media.video",
    "Iemocap": "corpora.iemocap",
    "Meld": "corpora.meld",
    "CmuMosi": "corpora.cmu_mosi",
    "CmuMosei": "corpora.cmu_mosei",
    "ChSimsV2": "corpora.ch_sims_v2",
    "Cherma": "corpora.cherma",
    "DialogueFolder": "corpora.dialogue_folder",
    "convert_reference_checkpoint": "models.mister_e.convert_reference",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    importlib.import_module(".base.installation", __name__).check_installation()
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_registration.install()
