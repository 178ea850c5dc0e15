"""The words `key=value` of a command line, as Hydra takes them, and the interpolations in their values."""

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from rl_runner.config.targets import PARTS
from rl_runner.errors import UserError, hide

# Values of Hydra's own config that are dicts of whatever keys.
OPEN = ("hydra.launcher.options", "hydra.sweeper.params")


def opened(word: str) -> str:
    """The word `key=value` for Hydra: with `++` if it sets a key within a group, or a whole dict.

    Hydra adds what the YAML does not hold only when told to, and nobody thinks of it; our own schema knows which keys
    there are. A file for a part of an agent is one of the group that the part differs from: `network@critic_network`.
    """
    bare = word.lstrip("+")
    key, _, value = bare.partition("=")
    is_dict = value.lstrip().startswith("{")
    if key in PARTS and not is_dict:
        return f"{PARTS[key].base}@{bare}"
    within = key.startswith(OPEN) if key.startswith("hydra") else "." in key or is_dict
    return f"++{bare}" if within and key[:1].isalpha() else word


def as_typed(word: str) -> str:
    """The word without what `opened` adds."""
    bare = word.lstrip("+")
    return next((typed for typed in (bare.partition("@")[2], bare) if opened(typed) == word), word)


def spelt(path: Sequence[Any], text: str) -> str:
    """The word that sets a value, which is taken literally but for its interpolations."""
    return f"{'.'.join(map(str, path))}={QuotedString(text, Quote.double).with_quotes()}"


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with the old word of our networks, `layer_norm`, as the one that took its place, `norm`."""
    new = deepcopy(dict(values))
    for part in ("network", "actor_network", "critic_network"):
        own, base = new.get(part), new.get("network")
        if isinstance(own, dict) and isinstance(base, dict) and isinstance(own.get("layer_norm"), bool):
            ours = str(own.get("_target_", base.get("_target_"))).startswith("rl_runner.networks.")
            if ours and own.pop("layer_norm"):
                own["norm"] = "layer"
    return new


Written = dict[tuple[Any, ...], str]  # text of values by their path
_read: list[str] = []  # what was read of the process environment so far


def read_environment(name: str, *default: Any) -> Any:
    """`${oc.env:NAME}`, whose value no message may show."""
    value = oc.env(name, *default)
    hide(str(value), f"${{oc.env:{name}}}")
    _read.append(name)
    return value


OmegaConf.register_new_resolver("oc.env", read_environment, replace=True)


def plain(config: DictConfig) -> tuple[dict[str, Any], Written]:
    """The resolved values, and the text of those that came from the process environment, however indirectly."""
    written: Written = {}
    try:
        for path, text in interpolations(OmegaConf.to_container(config)):
            before = len(_read)
            node = functools.reduce(operator.getitem, path, config)
            if OmegaConf.is_config(node):
                OmegaConf.to_container(node, resolve=True)
            if len(_read) > before:
                written[path] = text
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise UserError("the interpolations of this config go round in a circle") from None
    return {str(key): value for key, value in resolved.items()}, written


def interpolations(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Path and text of every value that is to be resolved."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from interpolations(value, (*path, key))
        elif isinstance(value, str) and "${" in value:
            yield (*path, key), value
