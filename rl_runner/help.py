"""What a command line may hold, as its files say it: `--help` with types and ranges, and what TAB may add.

TAB composes nothing, so that the prompt does not wait.
"""

import argparse
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import yaml

from rl_runner import notes
from rl_runner.commands import COMMANDS, hydra_parser, parser
from rl_runner.console import quiet
from rl_runner.notes import constructor
from rl_runner.persistence import CONFIG

COLUMN = 34  # where comments begin
MARKUP = re.compile(r"^(?:\.\. |Args:)", re.MULTILINE)  # where a docstring goes on for another program
Texts = dict[str, str]  # by dotted path
# Classes whose keys another one takes.
SCHEMA = "rl_runner.config.schema"
KEYS_OF = {"hydra_plugins.rl_runner.OptunaSweeper": "rl_runner.sweep.search.Search"}
FLAGS = {"-sc", "--shell-completion"}
UNQUOTED = re.compile(r"[^\w@%+=:,./~-]")  # what means something else to a shell


def show_defaults() -> None:
    """Print the help when nothing is typed, for which importing Hydra would take most of the time."""
    files = list(notes.files({}, [notes.CONFIGS]))
    values: dict[str, Any] = {}
    for file in files:
        _merge(values, file.content)
    template = values.pop("hydra")["help"]["template"]
    _print(values, comments(files, notes.defaults_of(files[0]), []), {}, [notes.CONFIGS], template)


def show(composed: Any, args: argparse.Namespace) -> None:
    """Print the help of what the words compose to."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    HydraConfig.instance().set_config(composed)
    typed = [word.lstrip("+~").partition("=")[0] for word in args.overrides]
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    values: Any = OmegaConf.to_container(own, resolve=args.resolve)
    asked = {"sweeper" if group == "experiment" else group.removeprefix("hydra/") for group in typed}
    if of_hydra := {group: OmegaConf.to_container(composed.hydra[group]) for group in asked & {"launcher", "sweeper"}}:
        values = {"hydra": of_hydra} | values
    values = {group: values[group] for group in typed if group in values} | values

    places = [Path(source.path) for source in composed.hydra.runtime.config_sources if source.schema == "file"]
    choices = {group: name for group, name in composed.hydra.runtime.choices.items() if name}
    files = notes.files(choices, places, args.config_name or "config")
    texts = comments(files, {group.rpartition("@")[2]: name for group, name in choices.items()}, typed)
    types, docs = described(values, typed) if typed else ({}, {})
    for key, words in types.items():
        said = texts.get(key, "")
        texts[key] = said if said.startswith(words) else "; ".join(filter(None, [words, said]))
    _print(values, texts, docs, places, composed.hydra.help.template)


def comments(files: Iterable[notes.File], choices: Mapping[str, str], typed: Sequence[str]) -> Texts:
    """What the files say of each key, and which one its value is from if that is not the one of its meaning."""
    texts: Texts = {}
    for file in files:
        prefix = "hydra.sweeper" if file.group == "experiment" else file.group.replace("/", ".")
        for key, text in file.comments.items():
            from_elsewhere = key in texts and key in file.values and not key.startswith(f"{prefix}.")
            said = [texts[key], f"here from {file.name}", text] if from_elsewhere else [text or texts.get(key, "")]
            texts[key] = "; ".join(filter(None, said))
        if file.group:
            choice = choices.get(file.group, "")
            texts[prefix] = ": ".join(filter(None, [choice, file.header]))
    for key in set(typed) & texts.keys() - choices.keys():
        texts[key] = "; ".join(filter(None, [texts[key], "here from the command line"]))
    return texts


def described(values: Mapping[str, Any], typed: Sequence[str]) -> tuple[Texts, Texts]:
    """Types, choices and ranges of all keys, from the constructors that take them; their docstrings, if typed."""
    from rl_runner.config.targets import ROLES

    types, docs = constructor(f"{SCHEMA}.RunLevel")[0], Texts()
    groups = dict(values) | {f"hydra.{name}": group for name, group in values.get("hydra", {}).items()}
    for name in ("env", *ROLES):
        group, role = groups.get(name), ROLES.get(name)
        target = group.get("_target_") if isinstance(group, dict) else None
        if target is None and role and role.base:
            target = groups[role.base].get("_target_")
        keys, doc = constructor(f"{SCHEMA}.EnvConfig" if role is None else KEYS_OF.get(str(target), str(target)))
        types |= {f"{name}.{key}": words for key, words in keys.items() if role is None or key not in role.wired}
        if role and keys and name.replace(".", "/") in typed:
            docs[name] = MARKUP.split(doc)[0].strip()
    return {key: words for key, words in types.items() if words}, docs


def lines(tree: Mapping[str, Any], texts: Texts, docs: Texts, path: str = "") -> Iterator[str]:
    """A config as YAML, with what there is to say of each key as a comment."""
    indent = "  " * path.count(".")
    for key, value in tree.items():
        name = f"{path}{key}"
        has_keys = isinstance(value, dict) and value
        shown = "" if has_keys else " " + _flow(value)
        yield _beside(f"{indent}{key}:{shown}", texts.get(name, ""))
        if has_keys:
            yield from (f"{indent}  # {line}".rstrip() for line in docs.get(name, "").splitlines())
            yield from lines(value, texts, docs, f"{name}.")
        if name in docs:
            others = (key for key in texts if key.startswith(f"{name}.") and key.rpartition(".")[2] not in value)
            yield from (_beside(f"{indent}  # +{key}=...", texts[key]) for key in others)


def _print(values: Mapping[str, Any], texts: Texts, docs: Texts, places: Sequence[Path], template: str) -> None:
    options = {group: notes.options(group, places) for group in notes.groups(places) if not group.startswith("hydra/")}
    options["env"] = ["any Gymnasium id", *options["env"]]
    groups = "".join(_wrapped(f"{group}: {', '.join(names)}", "  ") + "\n" for group, names in options.items())
    config = "".join(f"{line}\n" for line in lines(values, texts, docs))
    print(Template(template).substitute(APP_CONFIG_GROUPS=groups, CONFIG=config))


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = value


def _flow(value: Any) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000)
    return dumped.strip().removesuffix("\n...")


def _beside(left: str, text: str) -> str:
    return _wrapped(f"{left:<{COLUMN}} # {text}", f"{' ' * COLUMN} # ") if text else left


def _wrapped(text: str, indent: str) -> str:
    if not sys.stdout.isatty():
        return text  # a line for each key, to be searched
    columns = max(shutil.get_terminal_size().columns, 2 * COLUMN)
    return textwrap.fill(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


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
        options = notes.options(parts.get(name, name), places)
        if name == "env":
            from rl_runner.config.environment import known_ids

            options = [*options, *known_ids(value.removeprefix(listed))]
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
