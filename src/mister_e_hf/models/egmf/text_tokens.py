"""Token ids of the parts of a prompt, from tokenizers of every kind."""

from typing import Any

from ...base.errors import InputError


class TextTokens:
    r"""
    Token ids of pieces of text, without the tokens that a tokenizer adds around a text, and with nothing in the text
    read as such a token: `"</s>"` in a transcript is four characters.

    Args:
        tokenizer: of the language model.

    Attributes:
        start: the tokens that the tokenizer itself begins a text with; Qwen2's and GPT-2's have none.
        end: the token that ends a text.

    Raises:
        InputError: if the tokenizer has no token that ends a text.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer {type(tokenizer).__name__} has no token that ends a text, with which an answer ends; "
                "set its eos_token"
            )
        self.end = int(tokenizer.eos_token_id)
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        self._special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - ends)
        whole, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        first = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
        self.start = list(whole[:first])

    def __call__(self, text: str, after: str = "\n") -> list[int]:
        """
        The tokens of a piece of text that follows another one, which is not among them.

        SentencePiece's mark for the beginning of a text is therefore not among them either, and a word after a gap
        has the token of a word inside a sentence.
        """
        for before in (after, "\n"):
            head, whole = self._ids(before), self._ids(before + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        # half of a surrogate pair, which JSON may hold, is not text to a tokenizer
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [token for token in ids if token not in self._special]  # a Unigram may still have the piece "</s>"

    def text(self, ids: list[int]) -> str:
        """The text of token ids that a language model wrote, up to the token that ends it."""
        written = ids[: ids.index(self.end)] if self.end in ids else ids
        return self.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
