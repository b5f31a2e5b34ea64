"""The modules whose code is stored in a checkpoint folder, by what needs them."""

SHARED = (
    "base.errors",
    "base.fitted_statistics",
    "base.configuration_labelled",
    "base.losses",
    "base.modalities",
    "base.remote_code",
    "base.target_scale",
    "hub.loading",
)
PRETRAINING = ("models.pretraining", "models.mister_e.pretraining_mister_e")
VIDEO = ("media.video", "media.video_frames", "media.media_files", "base.interrupts")
BACKBONES = (
    "encoders.backbones",
    "encoders.backbone_kind",
    "encoders.text_backbones",
    "encoders.speech_backbones",
    "encoders.mel_backbones",
    "encoders.image_backbones",
    "base.devices",
    "media.transcripts",
    *VIDEO,
)
STAGE_1 = (
    *SHARED,
    "encoders.configuration_utterance_encoder",
    "encoders.modeling_utterance_encoder",
    *BACKBONES,
    "encoders.backbone_trial",
    "encoders.adapters",
    "encoders.encoder_lora",
    "encoders.layer_mixture",
    "encoders.pooling",
    "encoders.fingerprint",
)
STAGE_2 = (
    *SHARED,
    "hub.pretrained",
    "base.devices",
    "models.turns",
    "models.turn_attention",
    "models.turn_recurrence",
    "models.turn_layers",
    "models.configuration_conversation",
    "models.stored_models",
    "models.modeling_conversation",
    "models.mister_e.configuration_mister_e",
    "models.mister_e.co_attention",
    "models.mister_e.modeling_mister_e",
)
PROCESSOR = ("encoders.processing_utterance_encoder", "encoders.processor_files")
PIPELINE = (
    *PROCESSOR,
    "base.part_weights",
    "hub.pretrained",
    "inference.pipeline_conversation_emotion",
    "inference.stored_stages",
    "inference.raw_turns",
    "inference.turn_vectors",
    "inference.generated_answers",
    "inference.turn_contents",
    "encoders.packing",
    "media.audio",
    "media.audio_layout",
    "media.audio_objects",
    "media.subtitles",
    "media.text_files",
)


def file_stems(*modules: str) -> set[str]:
    """The names of these modules' files in a checkpoint folder, without `.py`."""
    return {module.rpartition(".")[2] for module in modules}


# What a checkpoint of stage 2 has at least: its card, configuration, weights and code.
CHECKPOINT = {
    "README.md",
    "config.json",
    "model.safetensors",
    *(f"{name}.py" for name in file_stems(*STAGE_2, *STAGE_1, *PIPELINE)),
}
