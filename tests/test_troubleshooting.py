"""docs/troubleshooting.md quotes what the program says, and every error message is there or in docs/store.md."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
STORES = (ROOT / "docs" / "store.md").read_text()
OF_OTHERS = {"physion: command not found"}
CODE = {path: path.read_text() for path in sorted((ROOT / "physion").rglob("*.py"))}
HOLE = "\N{HORIZONTAL ELLIPSIS}"  # what varies in a message


def quotes(page):
    """The texts in the first column of a page's tables."""
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    return {text for row in rows for text in re.findall(r"`([^`]+)`", row)}


def written(node):
    """The text of an expression, with holes for what is not known before it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "shown":
        return written(node.args[0])
    return HOLE


def messages():
    """Each place that makes an error, with the text of its message."""
    trees = {path: ast.parse(text) for path, text in CODE.items()}
    errors, found = {"PhysionError"}, {}
    for _ in range(3):  # classes of classes
        for tree in trees.values():
            classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
            errors |= {one.name for one in classes if errors & {getattr(base, "id", "") for base in one.bases}}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            own = path.name == "errors.py" and getattr(node.func, "attr", "") == "__init__"
            if own or getattr(node.func, "id", "") in errors:
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = written(node.args[0])
    return found


def is_quoted(message, quote):
    return re.search(".*?".join(re.escape(part.strip()) for part in quote.split("...")), message, re.DOTALL) is not None


def test_every_quoted_message_is_in_the_code():
    # Texts that go on in the next line of code are one.
    code = "".join(re.sub(r'"\s*\n\s*(?:\+ )?f?"', "", text) for text in CODE.values())
    quoted = quotes(PAGE) - OF_OTHERS
    assert len(quoted) > 200
    assert [text for text in quoted if not all(part.strip() in code for part in text.split("..."))] == []


def test_every_message_is_on_a_page():
    quoted = [text for text in quotes(PAGE) | quotes(STORES) if len(text) > 8]
    # Those without words of their own pass another message on.
    texts = {where: text for where, text in messages().items() if len(re.findall(r"[A-Za-z]{2,}", text)) > 1}
    assert len(texts) > 230
    assert {where: text for where, text in texts.items() if not any(is_quoted(text, quote) for quote in quoted)} == {}


def test_a_message_that_is_on_no_page_is_noticed():
    assert is_quoted(f"weights '{HOLE}' are odd: {HOLE}", "weights ... odd")
    assert not is_quoted(f"weights '{HOLE}' are odd: {HOLE}", "odd ... weights")
    assert written(ast.parse('shown(f"{one} is bad" + " and odd")', mode="eval").body) == f"{HOLE} is bad and odd"
