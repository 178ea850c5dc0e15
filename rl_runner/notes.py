"""What files say of each key, nothing composed, imported or run: the comments of YAML, the types of constructors."""

import ast
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Where the YAML lies: in an installed package, or beside it in a checkout.
PACKAGE = Path(__file__).parent
CONFIGS = next(place for place in (PACKAGE / "configs", PACKAGE.parent / "configs") if place.is_dir())
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
PLACE = re.compile(r"#\s*@package\s+(\S+)")
# Types as a reader of YAML would say them, and the modules that they come from.
WORDS = {
    "bool": "true | false", "int": "integer", "float": "number", "str": "text", "Path": "text", "dict": "mapping",
    "Mapping": "mapping", "PositiveInt": "integer > 0", "NonNegativeInt": "integer >= 0", "FiniteFloat": "number",
    "PositiveFloat": "number > 0", "NonNegativeFloat": "number >= 0", "NonPositiveFloat": "number <= 0",
}  # fmt: skip
TYPES_OF = {"annotated_types", "collections", "pathlib", "pydantic", "typing"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


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
            if named.startswith("["):  # several options at once
                for option in re.findall(r"\w+", named):
                    yield from _with_bases(group, option, places)
            else:
                yield from _with_bases(group, named, places)


def defaults_of(main: File) -> dict[str, str]:
    """The groups of the main file in the order of their weight, and its choices."""
    entries = [next(iter(entry.items())) for entry in main.defaults if isinstance(entry, dict)]
    return {words.split()[-1].lstrip("/"): str(choice) for words, choice in entries}


def groups(places: Sequence[Path]) -> list[str]:
    """The names of all groups that have files."""
    below = [(place, path.parent) for place in places for path in [*place.glob("*/*.yaml"), *place.glob("*/*/*.yaml")]]
    return sorted({parent.relative_to(place).as_posix() for place, parent in below})


def parts(places: Sequence[Path]) -> dict[str, str]:
    """The groups that are for one part of an agent, each with the group whose files it takes."""
    main = _find("", "config", places)
    entries = [group.split("@") for group in defaults_of(read(main, "", "config"))] if main else []
    return {entry[1]: entry[0] for entry in entries if len(entry) == 2}


def options(group: str, places: Sequence[Path]) -> list[str]:
    """The names of a group's files."""
    return sorted({path.stem for place in places for path in (place / group).glob("*.yaml")})


def _with_bases(group: str, name: str, places: Sequence[Path]) -> Iterator[File]:
    """What an option without a file means to say, as an environment's id, stands in its group's default."""
    folder, _, part = group.partition("@")  # network@critic_network is for a part of an agent
    if path := _find(folder, name, places) or _find(folder, "default", places):
        file = read(path, part or group, path.stem)
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


class Source:
    """A Python module as its text tells, in which annotations are read as words."""

    def __init__(self, name: str, path: Path):
        self.package = name if path.stem == "__init__" else name.rpartition(".")[0]
        self.nodes: dict[str, ast.stmt] = {}
        for node in ast.parse(path.read_bytes()).body:
            match node:
                case ast.ImportFrom():
                    self.nodes |= {alias.asname or alias.name: node for alias in node.names}
                case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)) | ast.ClassDef(name):
                    self.nodes[name] = node

    def find(self, name: str) -> tuple["Source", str, ast.stmt | None]:
        """Where a name is defined, however often it is imported in between; there its own name, and its node."""
        node = self.nodes.get(name)
        if not isinstance(node, ast.ImportFrom):
            return self, name, node
        own = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
        module = resolve_name("." * node.level + (node.module or ""), self.package)
        source = None if module.partition(".")[0] in TYPES_OF else source_of(module)
        return source.find(own) if source else (self, own, None)

    def words(self, annotation: ast.expr | None) -> str:
        """What an annotation lets a key be; "" if nothing that a config can hold, or anything."""
        match annotation:
            case ast.Constant(value=None):
                return "null"
            case ast.BinOp(left=left, right=right):
                return self._alternatives([left, right])
            case ast.Name(name):
                source, own, node = self.find(name)
                aliased = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
                return source.words(aliased) if aliased else WORDS.get(own, "list" if own in ("list", "tuple") else "")
            case ast.Subscript(value=ast.Name() | ast.Attribute() as kind, slice=inner):
                name = self.find(kind.id)[1] if isinstance(kind, ast.Name) else kind.attr
                return self._generic(name, inner.elts if isinstance(inner, ast.Tuple) else [inner])
        return ""

    def _generic(self, name: str, parts: Sequence[ast.expr]) -> str:
        match name:
            case "Literal":
                return " | ".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
            case "Union":
                return self._alternatives(parts)
            case "Optional":
                return self._alternatives([*parts, ast.Constant(None)])
            case "Annotated":
                fields = [part for part in parts[1:] if isinstance(part, ast.Call)]
                bounds = {keyword.arg: ast.unparse(keyword.value) for call in fields for keyword in call.keywords}
                said = [f"{sign} {bounds[bound]}" for bound, sign in BOUNDS.items() if bound in bounds]
                return " ".join(filter(None, [self.words(parts[0]), ", ".join(said)]))
            case "list" | "tuple" | "Sequence" | "Iterable":
                return f"list of {', '.join(filter(None, map(self.words, parts)))}"
        return WORDS.get(name, "")

    def _alternatives(self, parts: Iterable[ast.expr]) -> str:
        return " | ".join(dict.fromkeys(filter(None, map(self.words, parts))))

    def keys(self, name: str) -> dict[str, str] | None:
        """The keywords of a class, or of the first of its bases that has some, in words: of `__init__`, or fields."""
        source, _, node = self.find(name)
        if not isinstance(node, ast.ClassDef):
            return None
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                arguments = [*part.args.posonlyargs, *part.args.args, *part.args.kwonlyargs][1:]
                return {argument.arg: source.words(argument.annotation) for argument in arguments}
        fields = {
            part.target.id: part
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
        own = {key: source.words(field.annotation) for key, field in fields.items()}
        bases = (source.keys(base.id) for base in node.bases if isinstance(base, ast.Name))
        return own or next(filter(None, bases), None)


def constructor(target: str) -> tuple[dict[str, str], str]:
    """The keywords of a class by its dotted path, in words, and what its docstring says; nothing without a source."""
    path, _, name = target.rpartition(".")
    try:
        if (source := source_of(path)) and isinstance(node := source.find(name)[2], ast.ClassDef):
            return source.keys(name) or {}, ast.get_docstring(node) or ""
    except (SyntaxError, ValueError, ImportError, OSError):  # whatever a source may hold, the help is shown without
        pass
    return {}, ""


@functools.cache
def source_of(name: str) -> Source | None:
    """A module by its name; its packages are not imported, so their folders are gone through by hand."""
    top, *parts = name.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    for part in parts:
        below = [path.parent / f"{part}.py", path.parent / part / "__init__.py"]
        if not (found := [file for file in below if path.stem == "__init__" and file.is_file()]):
            return None
        path = found[-1]
    return Source(name, path)
