"""What may be a key or a file's name, wherever it comes from: a store holds what others wrote, and names become paths here."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from physion.errors import ConfigError

LONGEST_NAME, LONGEST_KEY = 255, 1024  # bytes: what file systems and S3 allow
SHA256 = re.compile(r"[0-9a-f]{64}")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe_key(key: str) -> str:
    """The key itself, `a/b/c`: below any folder it is a path that stays inside, and it can be printed.

    Raises ValueError.
    """
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"{key!r} is no key: give names separated by single slashes")
        if len(part.encode(errors="replace")) > LONGEST_NAME or not part.isprintable():
            raise ValueError(f"{key[:LONGEST_NAME]!r} is no key: a name is too long, or cannot be printed")
    if len(key.encode(errors="replace")) > LONGEST_KEY:
        raise ValueError(f"{key[:LONGEST_NAME]!r}... is no key: it is longer than {LONGEST_KEY} bytes")
    return key


def checked_key(key: str) -> str:
    """The key itself. Raises ConfigError when it is none."""
    try:
        return safe_key(key)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def is_key(key: str) -> bool:
    """Whether it is one; what is none was not written by a store of this program."""
    try:
        safe_key(key)
    except ValueError:
        return False
    return True


def sha256_name(text: str) -> str:
    """A SHA-256 as the name of a file; the only thing that becomes one unseen. Raises ConfigError for anything else."""
    if not SHA256.fullmatch(text):
        raise ConfigError(f"{text!r} is no SHA-256")
    return text


def shown(text: str) -> str:
    """A text without what makes a terminal do anything but show it: ESC and other controls, and turns of direction."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same, also without ends of lines and tabs: for a name that a line of text quotes."""
    return re.sub(r"[\t\n\u2028\u2029]", "\N{REPLACEMENT CHARACTER}", shown(text))


Key = Annotated[str, AfterValidator(safe_key)]
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+,-]{0,199}")
Word = Annotated[str, Field(pattern=rf"^{WORD.pattern}$")]
"""A name that this program gives: of a stage, an instance, a fingerprint."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
