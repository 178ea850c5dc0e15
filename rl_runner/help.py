"""`--help`: every key with its value and the comment of its YAML; where settings are typed also types and ranges."""

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from rl_runner import notes
from rl_runner.notes import constructor

COLUMN = 34  # where comments begin
MARKUP = re.compile(r"^(?:\.\. |Args:)", re.MULTILINE)  # where a docstring goes on for another program
Texts = dict[str, str]  # by dotted path
# Classes whose keys another one takes.
SCHEMA = "rl_runner.config.schema"
KEYS_OF = {"hydra_plugins.rl_runner.OptunaSweeper": "rl_runner.sweep.search.Search"}


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
