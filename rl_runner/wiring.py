"""Parts are given to each other by name: a constructor takes those that it names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def names(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a function or constructor has a parameter of this name."""
    return parameter in inspect.signature(function).parameters


def wire(make: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call `make` with those of the available parts that its signature names."""
    wanted = inspect.signature(make).parameters
    return make(**{name: part for name, part in available.items() if name in wanted})
