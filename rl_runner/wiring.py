"""What constructors go by: they are given the parts that they name, and their keys have ranges."""

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Field

# Ranges that pydantic has no name for; the config is validated against them.
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
AboveOne = Annotated[float, Field(gt=1)]


def names(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a function or constructor has a parameter of this name."""
    return parameter in inspect.signature(function).parameters


def as_written(annotation: Any) -> Any:
    """An annotation that a config can meet: a number or a list for NumPy's scalars and arrays."""
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(map(as_written, get_args(annotation)))]  # noqa: UP007 - of parts that are known now
    kind = get_origin(annotation) or annotation
    if getattr(kind, "__module__", None) != "numpy":
        return annotation
    return list[Any] if kind.__name__ == "ndarray" else float


def wire(make: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call `make` with those of the available parts that its signature names."""
    wanted = inspect.signature(make).parameters
    return make(**{name: part for name, part in available.items() if name in wanted})
