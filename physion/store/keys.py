"""Which strings may be keys or file names, whoever wrote them: a store holds what others wrote, and names become paths here."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from physion.errors import ConfigError

LONGEST_NAME, LONGEST_KEY = 255, 1024  # bytes: the limits of file systems and S3
SHA256 = re.compile(r"[0-9a-f]{64}")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe_key(key: str) -> str:
    """The key itself, `a/b/c`, if it is a path that stays inside any folder it is below, and is printable.

    Raises ValueError.
    """
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"{key!r} is not a valid key: give names separated by single slashes")
        if len(part.encode(errors="replace")) > LONGEST_NAME or not part.isprintable():
            raise ValueError(f"{key[:LONGEST_NAME]!r} is not a valid key: a name is too long, or cannot be printed")
    if len(key.encode(errors="replace")) > LONGEST_KEY:
        raise ValueError(f"{key[:LONGEST_NAME]!r}... is not a valid key: it is longer than {LONGEST_KEY} bytes")
    return key


def checked_key(key: str) -> str:
    """The key itself. Raises ConfigError if it is invalid."""
    try:
        return safe_key(key)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def is_key(key: str) -> bool:
    """Whether a text is a valid key; anything else was not written by a store of this program."""
    try:
        safe_key(key)
    except ValueError:
        return False
    return True


def sha256_name(text: str) -> str:
    """A SHA-256 as a file name. Only this becomes a name without further checks. Raises ConfigError for anything else."""
    if not SHA256.fullmatch(text):
        raise ConfigError(f"{text!r} is not a SHA-256")
    return text


def shown(text: str) -> str:
    """A text without characters that make a terminal do more than show it: ESC and other controls, direction changes."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same, also without line ends and tabs: for a name quoted in a line of text."""
    return re.sub(r"[\t\n\u2028\u2029]", "\N{REPLACEMENT CHARACTER}", shown(text))


Key = Annotated[str, AfterValidator(safe_key)]
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+,-]{0,199}")
Word = Annotated[str, Field(pattern=rf"^{WORD.pattern}$")]
"""A name that this program gives: of a stage, an instance or a fingerprint."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
