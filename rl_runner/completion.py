"""What TAB may add to a command line; it composes nothing, so that the prompt does not wait."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from rl_runner import notes
from rl_runner.commands import COMMANDS, hydra_parser, parser
from rl_runner.console import quiet
from rl_runner.persistence import CONFIG

FLAGS = {"-sc", "--shell-completion"}
UNQUOTED = re.compile(r"[^\w@%+=:,./~-]")  # what means something else to a shell


def answer(shell: str) -> None:
    """Print what the last word of the shell's line may become; whatever goes wrong is no news for a prompt."""
    candidates: list[str] = []
    with quiet(), suppress(Exception):
        line = os.environ["COMP_LINE"].encode()
        point = os.environ.get("COMP_POINT", "")
        typed = line[: int(point) if point.isdecimal() and int(point) else None].decode(errors="replace")
        _, *words = typed.split() if typed[-1:].strip() else [*typed.split(), ""]
        candidates = sorted(complete(words))
    if shell == "fish" or not any(UNQUOTED.search(candidate) for candidate in candidates):
        print("\n".join(candidates))  # else bash, which knows how to quote, completes names of files by itself


def install(print_script: Callable[[], Any]) -> None:
    """Print Hydra's function for a shell, such that a broken installation does not complain over the prompt."""
    if sys.argv[0].endswith(".py"):
        sys.argv[0] = "rl-runner"  # whose words a shell can complete; those of python -m it cannot
    with redirect_stdout(io.StringIO()) as script:
        print_script()
    print(re.sub(r"-sc query=\w+", r"\g<0> 2>/dev/null", script.getvalue()), end="")


def complete(words: Sequence[str]) -> set[str]:
    """What the last of the words may become."""
    *before, word = words
    if before and before[0] in COMMANDS:
        found = _of_command(before[0], before[1:], word)
    elif word.startswith("-"):
        found = set(hydra_parser()._option_string_actions)
    else:
        found = set() if before else set(COMMANDS)
        found |= set(_settings(before, word))
    return {candidate for candidate in found if candidate.startswith(word)}


def _of_command(name: str, before: Sequence[str], word: str) -> set[str]:
    actions = parser(name)._option_string_actions
    if before and before[-1] in actions and actions[before[-1]].nargs != 0:
        return set()  # the value of an option: the shell completes names of files by itself
    if word.startswith("-"):
        return set(actions)
    places = [place for place in before if not place.startswith("-") and "=" not in place]
    if name == "report" or not places:
        return set(_directories(word))
    return {f"{key}=" for key in notes.read(Path(places[0]) / CONFIG, "", "").values} if name == "resume" else set()


def _directories(word: str) -> Iterator[str]:
    """Directories that begin like the word; those of runs have nothing below them to choose."""
    folder = word.rpartition("/")[0] + "/" if "/" in word else ""
    if not (Path(folder) / CONFIG).exists():
        for path in Path(folder).iterdir():
            if path.is_dir() and (not path.name.startswith(".") or word.rpartition("/")[2].startswith(".")):
                yield f"{folder}{path.name}" + ("" if (path / CONFIG).exists() else "/")


def _settings(before: Sequence[str], word: str) -> Iterator[str]:
    """`group=option`, `key=` and the value that a key has, each with the marks and the list that were typed."""
    mark = word[:1] if word[:1] in ("+", "~") else ""
    name, equals, value = word.removeprefix(mark).partition("=")
    typed = dict(setting.split("=", 1) for setting in before if "=" in setting)
    places = [Path(place) for option, place in pairwise(before) if option in ("--config-dir", "-cd")] + [notes.CONFIGS]
    parts = notes.parts(places)
    groups = [*notes.groups(places), *parts]
    if equals and name in groups:
        listed = value[: value.rfind(",") + 1]
        options = _choices(parts.get(name, name), places, value.removeprefix(listed))
        yield from (f"{mark}{name}={listed}{option}" for option in options)
        return
    keys = _keys(typed, places)
    for part, base in parts.items():  # which takes every key of the group that it differs from
        keys |= {
            f"{part}.{key.removeprefix(f'{base}.')}": keys[key] for key in list(keys) if key.startswith(f"{base}.")
        }
    if equals:
        yield f"{mark}{name}={keys.get(name, '')}"
    else:
        yield from (f"{mark}{group}=" for group in groups)
        for steps in (key.split(".") for key in keys):
            head = steps[: name.count(".") + 1]
            yield mark + ".".join(head) + ("=" if head == steps else ".")


def _keys(typed: Mapping[str, str], places: Sequence[Path]) -> dict[str, str]:
    """All keys with the values that their files give them; a chosen option's take the place of its group's."""
    keys: dict[str, str] = {}
    for file in notes.files({group: name for group, name in typed.items() if "." not in group}, places):
        keys |= file.values
    return {key: value for key, value in keys.items() if not key.rpartition(".")[2].startswith("_")}


def _choices(group: str, places: Sequence[Path], typed: str) -> Iterable[str]:
    found = set(notes.options(group, places))
    if group == "env":
        from rl_runner.config.environment import known_ids

        found |= set(known_ids(typed))
    return found
