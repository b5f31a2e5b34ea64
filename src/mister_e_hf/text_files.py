"""Text of any age: UTF-8, or Windows-1252."""

from pathlib import Path

from .errors import InputError


def read_text(path: Path) -> str:
    """
    A text file in UTF-8, with or without a byte-order mark, or else in Windows-1252, as old copies of corpora are. What is valid
    UTF-8 is taken as it stands.
    """
    content = path.read_bytes()
    # UTF-16, and most of what is no text, would pass for Windows-1252 but for its zeros.
    for encoding in ("utf-8-sig",) if b"\0" in content else ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"'{path}' is text neither in UTF-8 nor in Windows-1252. Save it as UTF-8.")
