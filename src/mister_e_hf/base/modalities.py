"""The modalities of a turn, said once: the names of their vectors, masks, columns, encoders and raw fields.

A further modality is one more entry of [`MODALITIES`], and a model that reads it.
"""

from dataclasses import dataclass

TASK = "conversation-emotion-recognition"
# The class index of a turn that is not scored, and of padding. A score is NaN there.
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Modality:
    r"""
    One modality of a turn.

    Args:
        name: what every other name is made of (`"speech"`).
        content: the field of a raw turn that holds it (`"audio"`).
        noun: what messages call the contents of several turns (`"audio"`, `"transcripts"`).
    """

    name: str
    content: str
    noun: str

    @property
    def embeddings(self) -> str:
        """Argument of a model's `forward`: vectors (B, T, D)."""
        return f"{self.name}_embeddings"

    @property
    def embedding(self) -> str:
        """Field of a raw turn that gives its vector in place of its content."""
        return f"{self.name}_embedding"

    @property
    def mask(self) -> str:
        """Argument of a model's `forward`: whether the turn has the modality (B, T)."""
        return f"{self.name}_mask"

    @property
    def masked(self) -> str:
        """Argument of a pre-training model's `forward`: whether the vector is hidden, to be reconstructed (B, T)."""
        return f"{self.name}_masked"

    @property
    def features(self) -> str:
        """Column of a table of vectors."""
        return f"{self.name}_features"

    @property
    def has(self) -> str:
        """Column of a table of vectors: whether each turn has the modality."""
        return f"has_{self.content}"

    @property
    def width(self) -> str:
        """Field of a model's configuration: the width D of its vectors."""
        return f"{self.name}_embedding_dim"

    @property
    def encoder(self) -> str:
        """Folder of a checkpoint and section of a recipe."""
        return f"{self.name}_encoder"


# In the order of every list of modalities.
MODALITIES: dict[str, Modality] = {
    "speech": Modality("speech", content="audio", noun="audio"),
    "text": Modality("text", content="text", noun="transcripts"),
    "visual": Modality("visual", content="video", noun="video"),
}
