"""EGMF: experts of the fused modalities guide a language model by pseudo tokens."""
