"""What constructors go by: they are given the parts that they name, and their keys have ranges."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

# Ranges that pydantic has no name for; the config is validated against them.
Fraction = Annotated[float, Field(ge=0, le=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
AboveOne = Annotated[float, Field(gt=1)]


def names(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a function or constructor has a parameter of this name."""
    return parameter in inspect.signature(function).parameters


def wire(make: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call `make` with those of the available parts that its signature names."""
    wanted = inspect.signature(make).parameters
    return make(**{name: part for name, part in available.items() if name in wanted})
