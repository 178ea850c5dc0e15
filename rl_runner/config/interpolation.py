"""Interpolations of a config: which read more than the config itself, and what came from the process environment."""

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from rl_runner.errors import UserError, hide

ENVIRONMENT = "oc.env"
Path = tuple[Any, ...]
Written = dict[Path, str]


def plain(config: DictConfig) -> tuple[dict[str, Any], Written]:
    """The resolved values, and the text of those that came from the process environment, however indirectly."""
    read_environment = BaseContainer._resolvers[ENVIRONMENT]

    def read(*arguments: Any) -> Any:
        value = read_environment(*arguments)
        hide(str(value), f"${{{ENVIRONMENT}:{arguments[-1][0]}}}")
        return value

    resolvers = BaseContainer._resolvers | {ENVIRONMENT: read}
    try:
        with _known(resolvers):
            resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise UserError("the interpolations of this config go round in a circle") from None
    assert isinstance(resolved, dict)
    written = {
        path: text for path, text in interpolations(config).items() if ENVIRONMENT in _asked(config, path, resolvers)
    }
    return {str(key): value for key, value in resolved.items()}, written


def reaching_out(config: DictConfig) -> Written:
    """Path and text of the values that would call a resolver, and so could read anything; none is called."""
    return {path: text for path, text in interpolations(config).items() if _asked(config, path, {})}


def interpolations(config: DictConfig) -> Written:
    """Path and text of every value that is to be resolved."""
    return dict(_texts(OmegaConf.to_container(config)))


def _texts(values: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    if isinstance(values, str) and "${" in values:
        yield path, values
    elif isinstance(values, (dict, list)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _texts(value, (*path, key))


class _Watched(dict[str, Any]):
    """OmegaConf's resolvers by name; `asked` holds the names that were looked for."""

    def __init__(self, resolvers: dict[str, Any]):
        super().__init__(resolvers)
        self.asked: set[object] = set()

    def __contains__(self, name: object) -> bool:
        self.asked.add(name)
        return super().__contains__(name)


def _asked(config: DictConfig, path: Path, resolvers: dict[str, Any]) -> set[object]:
    """The resolvers that a value asks for, itself or by way of others, where only these are known."""
    with _known(resolvers) as watched, suppress(OmegaConfBaseException, RecursionError):
        value = functools.reduce(operator.getitem, path, config)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    return watched.asked


@contextmanager
def _known(resolvers: dict[str, Any]) -> Iterator[_Watched]:
    before, watched = BaseContainer._resolvers, _Watched(resolvers)
    BaseContainer._resolvers = watched
    try:
        yield watched
    finally:
        BaseContainer._resolvers = before
