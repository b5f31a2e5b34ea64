"""Raw dialogues become emotions."""
