"""What docs/troubleshooting.md quotes is what the program says."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
OF_OTHERS = {"physion: command not found"}


def test_every_quoted_message_is_in_the_code():
    # Texts that go on in the next line of code are one.
    code = "".join(re.sub(r'"\s*\n\s*(?:\+ )?f?"', "", path.read_text()) for path in (ROOT / "physion").rglob("*.py"))
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    quoted = {text for row in rows for text in re.findall(r"`([^`]+)`", row)} - OF_OTHERS
    assert len(quoted) > 30
    assert [text for text in quoted if not all(part.strip() in code for part in text.split("..."))] == []
