"""Constructors as their source tells them, nothing imported: so the help need not wait for PyTorch."""

import ast
import functools
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any, NamedTuple

LIGHT = {"annotated_types", "collections", "pathlib", "pydantic", "typing"}  # what annotations are made of
BUILTINS = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}


class _Opaque(type):
    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: Any) -> type:
        return cls


class Opaque(metaclass=_Opaque):
    """Whatever else an annotation names: nothing that a config can hold."""


class Constructor(NamedTuple):
    """What a class says of itself."""

    doc: str
    annotations: dict[str, Any]  # of its keywords


class Module:
    """The names of a module, each evaluated when an annotation asks for it."""

    def __init__(self, name: str, path: Path):
        self.package = name if path.stem == "__init__" else name.rpartition(".")[0]
        self.nodes: dict[str, ast.stmt] = {}
        for node in ast.parse(path.read_bytes()).body:
            match node:
                case ast.Import() | ast.ImportFrom():
                    self.nodes |= {alias.asname or alias.name: node for alias in node.names}
                case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)) | ast.ClassDef(name):
                    self.nodes[name] = node

    def find(self, name: str) -> tuple["Module", str, ast.stmt | None]:
        """Where a name is defined, however often it is imported in between; there its own name, and its node."""
        node = self.nodes.get(name)
        if isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), self.package)
            if source.partition(".")[0] not in LIGHT and (module := read(source)):
                return module.find(_original(node, name))
        return self, name, node

    def __getitem__(self, name: str) -> Any:
        module, name, node = self.find(name)
        match node:
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                return module.value(value)
            case ast.ImportFrom(module=str(source)) if source.partition(".")[0] in LIGHT:
                return getattr(import_module(source), _original(node, name), Opaque)
            case ast.Import() if (source := _original(node, name)).partition(".")[0] in LIGHT:
                return import_module(source)
        return BUILTINS.get(name, Opaque)

    def value(self, expression: ast.expr | None) -> Any:
        """The value of an annotation, or of what one is made of."""
        if expression is None:
            return Any
        code = compile(ast.Expression(expression), "annotation", "eval")
        names: Any = self  # asked for each name as a mapping is
        return eval(code, {"__builtins__": {}}, names)

    def initializer(self, name: str) -> tuple["Module", ast.FunctionDef] | None:
        """The `__init__` of a class, or of the first of its bases that has one."""
        module, _, node = self.find(name)
        if not isinstance(node, ast.ClassDef):
            return None
        own = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        bases = (module.initializer(base.id) for base in node.bases if isinstance(base, ast.Name))
        return (module, own[0]) if own else next(filter(None, bases), None)


def constructor(target: str) -> Constructor | None:
    """The constructor of a class by its dotted path, or None if there is no source that tells it."""
    path, _, name = target.rpartition(".")
    try:
        module = read(path)
        if module is None or (found := module.initializer(name)) is None:
            return None
        home, function = found
        (_, *arguments), doc = [*function.args.posonlyargs, *function.args.args], module.find(name)[2]
        keywords = [*arguments, *function.args.kwonlyargs]
        annotations = {argument.arg: home.value(argument.annotation) for argument in keywords}
        return Constructor(ast.get_docstring(doc) or "" if isinstance(doc, ast.ClassDef) else "", annotations)
    except Exception:  # whatever a source may hold, the help is shown without
        return None


@functools.cache
def read(name: str) -> Module | None:
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
    return Module(name, path)


def _original(node: ast.Import | ast.ImportFrom, name: str) -> str:
    return next(alias.name for alias in node.names if name in (alias.asname, alias.name))
