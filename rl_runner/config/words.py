"""The words `key=value` of a command line, as Hydra takes them."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from rl_runner.config.targets import PARTS

# Values of Hydra's own config that are dicts of whatever keys.
OPEN = ("hydra.launcher.options", "hydra.sweeper.params")


def opened(word: str) -> str:
    """The word with `++` if it sets a key within a group, or a whole dict; with the files' group if it names a part.

    Hydra adds what the YAML does not hold only when told to, and nobody thinks of it; our own schema knows which keys
    there are.
    """
    bare = word.lstrip("+")
    key, _, value = bare.partition("=")
    if key in PARTS and not value.lstrip().startswith("{"):
        return f"{PARTS[key].base}@{bare}"
    within = key.startswith(OPEN) if key.startswith("hydra") else "." in key or value.lstrip().startswith("{")
    return f"++{bare}" if within and key[:1].isalpha() else word


def as_typed(word: str) -> str:
    """The word without what `opened` adds."""
    bare = word.lstrip("+")
    return next((typed for typed in (bare.partition("@")[2], bare) if opened(typed) == word), word)


def spelt(path: Sequence[Any], text: str) -> str:
    """The word that sets a value, which is taken literally but for its interpolations."""
    return f"{'.'.join(map(str, path))}={QuotedString(text, Quote.double).with_quotes()}"
