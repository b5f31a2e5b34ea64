"""Counts of the prompts that a model writes: how many, and what was left out of those that were too long."""

from collections.abc import Mapping

from .plain_text import count_of


def prompt_sentence(counts: Mapping[str, int]) -> str | None:
    """What there was no room for, from [`ConversationPreTrainedModel.prompt_counts`]; None if all of it was read."""
    earlier, shortened = counts.get("earlier_turns", 0), counts.get("shortened_turns", 0)
    if not earlier and not shortened:
        return None
    prompts = count_of(counts["prompts"], "prompt")
    return (
        f"{prompts} had no room (max_length) for {count_of(earlier, 'earlier turn')} and for the end of "
        f"{count_of(shortened, 'turn')}"
    )


def counted_since(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """The counts of what was written in between."""
    return {name: count - before[name] for name, count in now.items()}
