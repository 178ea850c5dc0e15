"""Which classes a config may name, and with which keys: a constructor's signature is the schema of its group."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator
from pydantic_core.core_schema import ValidationInfo

from rl_runner.config.problems import value_problems
from rl_runner.errors import UserError

ALLOWED = ("rl_runner.", "torch.optim.", "torch.nn.")

# Constructor parameters that the runner passes; every other one is a key of the config.
WIRED = {
    "algo": {"spec", "network", "optimizer", "seed", "device", "total_steps"},
    "network": {"n_in", "n_out", "lead", "generator"},
    "optimizer": {"params"},
    "replay": {"spec", "num_envs", "gamma", "total_steps", "seed", "device", "directory"},
    "hydra.launcher": {"threads"},
    "hydra.sweeper": {"space", "compose", "directory"},
}


class Strict(BaseModel):
    """A model that refuses unknown keys, infinite numbers, and true or false for a number."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _accepts_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("something else than true or false")
        return value


def resolve(target: str, plugins: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function that a dotted path names; UserError unless it comes from an allowed package.

    The object found is what counts: `torch.nn.parallel.distributed.os.getcwd` begins like an allowed one.
    """
    allowed = (*ALLOWED, *(f"{name}." for name in plugins))
    if not str(target).startswith(allowed):
        raise _not_allowed(target)
    found = _locate(str(target))
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not f"{found.__module__}.".startswith(allowed):
        raise _not_allowed(target)
    return found


def factory(group: Mapping[str, Any], plugins: Sequence[str] = ()) -> functools.partial[Any]:
    """The group's class with all its keys set; what the runner wires is left to the caller, by keyword."""
    keys = {key: value for key, value in group.items() if not key.startswith("_")}
    return functools.partial(resolve(group["_target_"], plugins), **keys)


class Group(NamedTuple):
    """What a group of the config says, as far as it is sound."""

    target: Callable[..., Any] | None
    values: dict[str, Any]  # in their proper types, `_target_` included
    problems: list[str]


def read_group(name: str, group: Any, plugins: Sequence[str]) -> Group:
    """Check a group's target, and its keys against the target's signature."""
    if not isinstance(group, Mapping) or "_target_" not in group:
        return Group(None, {}, [f"{name}: needs _target_, the path of a class; choose {name}=NAME, see --help"])
    try:
        target = resolve(group["_target_"], plugins)
    except UserError as error:
        return Group(None, {}, [f"{name}.{error}"])
    # Hydra's own marker for what a config here always is.
    keys = {key: value for key, value in group.items() if key not in ("_target_", "_partial_")}
    model = schema(target, name)
    try:
        values = model.model_validate(keys).model_dump(exclude_unset=True)
    except ValidationError as error:
        known = [f"{name}.{field}" for field in model.model_fields]
        return Group(target, {}, value_problems(error, known, prefix=f"{name}."))
    return Group(target, {"_target_": group["_target_"], **values}, [])


def schema(target: Callable[..., Any], group: str) -> type[BaseModel]:
    """A model of the target's keyword parameters, without those that the runner wires."""
    fields: dict[str, Any] = {}
    open_ended = False
    for name, parameter in _signature(target).items():
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
        elif name not in WIRED[group] and parameter.kind is not parameter.VAR_POSITIONAL:
            annotation = Any if _unknown(parameter.annotation) else parameter.annotation
            fields[name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    model = create_model(target.__name__, __base__=Strict, **fields)
    if open_ended:
        model.model_config["extra"] = "allow"
        model.model_rebuild(force=True)
    return model


def import_plugins(plugins: Sequence[str]) -> list[str]:
    """Import the user's packages, so that they may register environments; the problems met."""
    problems = []
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as with python -m: a package need not be installed
    for name in plugins:
        try:
            importlib.import_module(name)
        except Exception as error:
            problems.append(f"plugins: importing {name} fails ({type(error).__name__}: {error})")
    return problems


def _signature(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # an annotation that exists for type checkers only
        return inspect.signature(target).parameters


def _unknown(annotation: Any) -> bool:
    return annotation is inspect.Parameter.empty or isinstance(annotation, str)


def _accepts_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_accepts_bool(part) for part in get_args(annotation))


def _locate(path: str) -> Any:
    parts = path.split(".")
    for i in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:i])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                continue
            raise UserError(f"_target_={path}: {error}") from error
        except Exception as error:
            raise UserError(f"_target_={path}: importing {module} fails ({type(error).__name__}: {error})") from error
        for part in parts[i:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
        break
    raise UserError(f"_target_={path}: there is no such class")


def _not_allowed(target: object) -> UserError:
    return UserError(f"_target_={target}: only rl_runner, torch.optim, torch.nn and plugins=[...] may be named")
