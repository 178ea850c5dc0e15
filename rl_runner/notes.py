"""What the YAML files say of each key, read without composing them: comments for the help, names for the completion."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Where the YAML lies: in an installed package, or beside it in a checkout.
PACKAGE = Path(__file__).parent
CONFIGS = next(place for place in (PACKAGE / "configs", PACKAGE.parent / "configs") if place.is_dir())
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
PLACE = re.compile(r"#\s*@package\s+(\S+)")


class File(NamedTuple):
    """A file of a group."""

    name: str  # such as algo/sac
    group: str
    defaults: list[Any]
    header: str  # the comment that it begins with
    values: dict[str, str]  # by dotted path from the config's root, as written; "" for a list or a mapping
    comments: dict[str, str]  # by the same paths, and by those of what has keys of its own
    content: dict[str, Any]  # the same as a tree


def read(path: Path, group: str, name: str) -> File:
    """One file; its keys lie below its group, unless `@package` says otherwise."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    above = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    package = next((found[1] for line in above if (found := PLACE.match(line))), "_group_")
    prefix = {"_group_": group.replace("/", "."), "_global_": ""}.get(package, package)
    values, comments = dict[str, str](), dict[str, str]()
    for key, node, comment in _keys(yaml.compose(text, LOADER), lines, f"{prefix}." if prefix else ""):
        if not (isinstance(node, yaml.MappingNode) and node.value):
            values[key] = node.value if isinstance(node, yaml.ScalarNode) else ""
        comments[key] = comment
    content = yaml.load(text, LOADER) or {}
    defaults = content.pop("defaults", [])
    for part in reversed(prefix.split(".") if prefix else []):
        content = {part: content}
    header = " ".join(line.lstrip("# ") for line in above if not PLACE.match(line))
    return File(f"{group}/{name}".strip("/"), group, defaults, header, values, comments, content)


def files(choices: Mapping[str, str], places: Sequence[Path], main: str = "config") -> Iterator[File]:
    """The main file and those of the chosen options, each after the files that it begins with, later ones winning.

    `choices`: of the groups that stand otherwise than in the main file. `places`: directories, the first one wins.
    """
    if path := _find("", main, places):
        yield (first := read(path, "", main))
        chosen = defaults_of(first) | dict(choices)
        for group, name in chosen.items():
            named = re.sub(r"\$\{(\w+)\}", lambda found: str(chosen.get(found[1])), str(name))
            yield from _with_bases(group, named, places)


def defaults_of(main: File) -> dict[str, str]:
    """The groups of the main file in the order of their weight, and its choices."""
    entries = [next(iter(entry.items())) for entry in main.defaults if isinstance(entry, dict)]
    return {words.split()[-1].lstrip("/"): str(choice) for words, choice in entries}


def groups(places: Sequence[Path]) -> list[str]:
    """The names of all groups that have files."""
    below = [(place, path.parent) for place in places for path in [*place.glob("*/*.yaml"), *place.glob("*/*/*.yaml")]]
    return sorted({parent.relative_to(place).as_posix() for place, parent in below})


def options(group: str, places: Sequence[Path]) -> list[str]:
    """The names of a group's files."""
    return sorted({path.stem for place in places for path in (place / group).glob("*.yaml")})


def _with_bases(group: str, name: str, places: Sequence[Path]) -> Iterator[File]:
    """What an option without a file means to say, as an environment's id, stands in its group's default."""
    if path := _find(group, name, places) or _find(group, "default", places):
        file = read(path, group, path.stem)
        for base in file.defaults:
            if isinstance(base, str) and base not in ("_self_", path.stem):
                yield from _with_bases(group, base, places)
        yield file


def _find(group: str, name: str, places: Sequence[Path]) -> Path | None:
    candidates = (place / group / f"{name}.yaml" for place in places)
    return next((path for path in candidates if path.is_file()), None)


def _keys(node: Any, lines: Sequence[str], prefix: str) -> Iterator[tuple[str, Any, str]]:
    """Every key below a node but the list of defaults, with its value and the comment behind it or above it."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.value == "defaults":
            continue
        path = f"{prefix}{key.value}"
        on_one_line = value.end_mark.line == key.end_mark.line
        end = value.end_mark if on_one_line else key.end_mark
        behind = re.search(r"(?:^|[\s:])#\s*(.*)", lines[end.line][end.column :])
        yield path, value, behind[1].strip() if behind else _above(lines, key.start_mark.line)
        yield from _keys(value, lines, f"{path}.")


def _above(lines: Sequence[str], line: int) -> str:
    """The comment lines right above a line, unless they are the header of the file."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.strip().lstrip("# ") for text in lines[first:line]) if first else ""
