"""Names as they are shown: one line, printable, short, distinct, and never markup."""

import hashlib
import re
from collections.abc import Iterable

LONGEST = 48  # what fits into a picture
MARKDOWN = re.compile(r"[\\`*<$~&|#>]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^[-+](?=\s)|(?<=^\d)[.)](?=\s)", re.MULTILINE)


def plain(text: str) -> str:
    """The text on one line of printable characters."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def shown(names: Iterable[str]) -> dict[str, str]:
    """Each name as it is shown; one that is too long, or looks like another, ends in a hash of the whole."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        text = plain(name)
        if not text or len(text) > LONGEST or text in found.values():
            text = f"{text[: LONGEST - 8].rstrip(' ,')}… {_hash(name)}".lstrip("… ")
        found[name] = text
    return found


def file_name(name: str) -> str:
    """A name with nothing in it that a file system dislikes, neither signs nor length."""
    text = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "_" for c in name)
    return text if len(text) <= 120 else f"{text[:110]}_{_hash(name)}"


def markdown_escaped(text: str) -> str:
    """The text as Markdown shows it, whatever a name in it contains."""
    return MARKDOWN.sub(lambda sign: f"\\{sign[0]}", text)


def spreadsheet_safe(text: str) -> str:
    """The text as a CSV cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
