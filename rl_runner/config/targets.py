"""Which classes a config may name, and with which keys: a constructor's signature is the schema of its group."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator
from pydantic_core.core_schema import ValidationInfo

from rl_runner.errors import UserError
from rl_runner.wiring import as_written


class Role(NamedTuple):
    """What the class that a group names has to be."""

    package: str  # ours, or PyTorch's, in which the class is defined
    protocol: str  # what it fulfils, or is a subclass of
    wired: Set[str]  # constructor parameters that the runner passes; every other one is a key of the config
    base: str | None = None  # the group that this one holds differences to, for one part of an agent
    missing: Mapping[str, Any] | None = None  # what a config from before the group existed means
    besides: tuple[str, ...] = ()  # further packages whose classes may be named, as if they were plug-ins


SEARCH = "rl_runner.sweep.search"
OTHER_WRAPPERS = ("minigrid.wrappers", "rl_runner.envs.wrappers")
NETWORK_GETS = {"n_in", "n_out", "lead", "generator", "spec", "outputs"}
NETWORK = Role("rl_runner.networks", "rl_runner.networks.NetworkFactory", NETWORK_GETS, besides=("rl_runner.residual",))
OPTIMIZER = Role("torch.optim", "torch.optim.Optimizer", {"params"})
NETWORK_OF_PART = NETWORK._replace(base="network", missing={})
OPTIMIZER_OF_PART = OPTIMIZER._replace(base="optimizer", missing={})
PARTS = dict.fromkeys(("actor_network", "critic_network"), NETWORK_OF_PART)
PARTS |= dict.fromkeys(("actor_optimizer", "critic_optimizer", "alpha_optimizer"), OPTIMIZER_OF_PART)
ROLES = {
    "algo": Role(
        "rl_runner.algos",
        "rl_runner.protocols.Agent",
        {"spec", "network", "optimizer", "encoder", "value", "seed", "device", "total_steps", *PARTS},
    ),
    "network": NETWORK,
    "optimizer": OPTIMIZER,
    "encoder": Role(
        "rl_runner.encoders",
        "rl_runner.encoders.EncoderFactory",
        {"spec", "generator"},
        missing={"_target_": "rl_runner.encoders.Flat"},
    ),
    "value": Role("rl_runner.values", "rl_runner.values.Value", set(), missing={"_target_": "rl_runner.values.Scalar"}),
    "replay": Role(
        "rl_runner.replay",
        "rl_runner.protocols.Replay",
        {"spec", "num_envs", "gamma", "total_steps", "seed", "device", "directory"},
    ),
    **PARTS,
    "loggers": Role(
        "rl_runner.sinks",
        "rl_runner.sinks.Sink",
        {"directory", "hparams", "step", "state"},
        missing={"tensorboard": {"_target_": "rl_runner.sinks.TensorBoard"}},
    ),
    "env.wrappers": Role("gymnasium.wrappers", "gymnasium.Wrapper", {"env"}, besides=OTHER_WRAPPERS),
    "hydra.launcher": Role("rl_runner.sweep", "rl_runner.sweep.engines.Engine", {"threads"}),
    "hydra.sweeper": Role(SEARCH, f"{SEARCH}.Search", {"space", "compose", "directory"}),
}
GROUPS = tuple(role for role in ROLES if "." not in role and role != "loggers")  # of the config; loggers are several
# Optimizers that no network here can use: a base class, one for closures, for sparse gradients, for matrices alone.
UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
# Packages that are nobody's plug-in: naming one would open all that it can do to a config.
NO_PLUGINS = {"rl_runner", "torch", *sys.stdlib_module_names}


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


Model = TypeVar("Model", bound=Strict)


def role_of(group: str) -> Role:
    """What a group has to be: `algo`, `loggers.tensorboard`, `env.wrappers.0`."""
    several = next((name for name in ("loggers", "env.wrappers") if group.startswith(f"{name}.")), group)
    return ROLES[several]


def resolve(role: str, target: Any, plugins: Sequence[str] = ()) -> Callable[..., Any]:
    """The class that a dotted path names for a role, or from a plug-in also a function; UserError for any other object.

    The object found is what counts, not how its path begins; nothing is imported but what a path may begin with.
    """
    package, protocol, *_, besides = role_of(role)
    plugins = [*plugins, *besides]
    path = str(target)
    module, _, name = path.rpartition(".")
    allowed = [package, *plugins]
    refusal = UserError(f"_target_={path}: only classes of {package} that fit {role}, and plugins=[...] may be named")
    if not within(module, allowed) or not all(part.isidentifier() for part in path.split(".")):
        raise refusal
    found = getattr(_import(module, path), name, None)
    if found is None:
        raise _no_such_class(path)
    home = getattr(found, "__module__", "")
    is_class = inspect.isclass(found) and not getattr(found, "_is_protocol", False)
    is_factory = inspect.isfunction(found) and within(home, plugins)
    # Not the name of something that a module of ours imports, or keeps to itself.
    is_its_name = within(module, plugins) or (module in (package, home) and "._" not in path)
    is_unusable = within(home, ["torch.optim"]) and name in UNUSABLE
    if not ((is_class or is_factory) and is_its_name and within(home, allowed)) or is_unusable:
        raise refusal
    if lacking := _lacking(found, protocol):
        raise UserError(f"_target_={path}: cannot be {role}, for it has no {', no '.join(lacking)}")
    return found


def factory(role: str, group: Mapping[str, Any], plugins: Sequence[str] = ()) -> functools.partial[Any]:
    """The group's class with all its keys set; what the runner wires is left to the caller, by keyword."""
    keys = {key: value for key, value in group.items() if not key.startswith("_")}
    return functools.partial(resolve(role, group["_target_"], plugins), **keys)


class Group(NamedTuple):
    """What a group of the config says, as far as it is sound."""

    target: Callable[..., Any] | None
    values: dict[str, Any]  # in their proper types, `_target_` included
    problems: list[str]
    keys: Sequence[str] = ()  # all that the target takes, with the group's name


def read_group(name: str, group: Any, plugins: Sequence[str] = ()) -> Group:
    """Check one group by itself."""
    return read_groups({name: group}, plugins)[name]


def read_groups(groups: Mapping[str, Any], plugins: Sequence[str], known: Sequence[str] = ()) -> dict[str, Group]:
    """Check the target of each group, and its keys against the target's signature; `known`: the keys beside groups.

    A part of an agent comes after the group that it holds differences to, and has its target unless it names one.
    """
    found: dict[str, Group] = {}
    models: dict[str, type[Strict]] = {}
    for name, group in groups.items():
        base = found.get(role_of(name).base or "")
        target, problems, takes = None, list[str](), list[str]()
        if base and is_difference(group):
            target = base.target
        elif not isinstance(group, Mapping) or is_difference(group):
            problems = [f"{name}: needs _target_, the path of a class; choose {name}=NAME, see --help"]
        else:
            try:
                target = resolve(name, group["_target_"], plugins)
            except UserError as error:
                problems = [f"{name}.{error}"]
        if target:
            models[name] = schema(target, name, partial=is_difference(group))
            takes = [f"{name}.{key}" for key in models[name].model_fields]
        found[name] = Group(target, {}, problems, takes)
    known = [*known, *(key for group in found.values() for key in group.keys)]
    for name, model in models.items():
        # `_partial_` is Hydra's own marker for what a config here always is.
        keys = {key: value for key, value in groups[name].items() if key not in ("_target_", "_partial_")}
        sound, problems = checked(model, keys, known, f"{name}.")
        marker = {key: groups[name][key] for key in ("_target_",) if key in groups[name]}
        values = marker | sound.model_dump(exclude_unset=True) if sound else {}
        found[name] = found[name]._replace(values=values, problems=problems)
    return found


def checked(
    model: type[Model], values: Mapping[str, Any], known: Sequence[str], prefix: str = ""
) -> tuple[Model | None, list[str]]:
    """A model of the values, or one line for each that it refuses; `known`: all keys that there are."""
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        from rl_runner.config.problems import value_problems

        return None, value_problems(error, known, prefix)


def is_difference(group: Any) -> bool:
    """Whether a part's group changes keys of its base; one with a class of its own takes the base's place."""
    return isinstance(group, Mapping) and "_target_" not in group


def schema(target: Callable[..., Any], group: str, partial: bool = False) -> type[Strict]:
    """A model of the target's keyword parameters but for those that the runner wires; `partial`: any may be missing."""
    fields: dict[str, Any] = {}
    parameters = _signature(target)
    for name, parameter in parameters.items():
        if name not in role_of(group).wired and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            unknown = parameter.annotation is parameter.empty or isinstance(parameter.annotation, str)
            default = None if partial else ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (Any if unknown else as_written(parameter.annotation), default)
    model = create_model(target.__name__, __base__=Strict, **fields)
    if _takes_anything(parameters):
        model.model_config["extra"] = "allow"
        model.model_rebuild(force=True)
    return model


def _takes_anything(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def import_plugins(plugins: Sequence[str]) -> list[str]:
    """Import the user's packages, so that they may register environments; the problems met."""
    problems = []
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as with python -m: a package need not be installed
    for name in plugins:
        if name.partition(".")[0] in NO_PLUGINS:
            problems.append(f"plugins: {name} is no package of yours; name the one that holds your classes")
            continue
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            problems.append(f"plugins: importing {name} fails ({type(error).__name__}: {error})")
    return problems


def _signature(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # an annotation that exists for type checkers only
        return inspect.signature(target).parameters


def _accepts_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_accepts_bool(part) for part in get_args(annotation))


def within(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of the packages, or lies in one."""
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _import(module: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except UserError:  # which extra it needs
        raise
    except ModuleNotFoundError as error:
        if error.name and within(module, [error.name]):
            raise _no_such_class(path) from error
        raise UserError(f"_target_={path}: {error}") from error
    except Exception as error:
        raise UserError(f"_target_={path}: importing {module} fails ({type(error).__name__}: {error})") from error


def _no_such_class(path: str) -> UserError:
    return UserError(f"_target_={path}: there is no such class")


def _lacking(target: Callable[..., Any], path: str) -> list[str]:
    """What a protocol or a base class asks for that a class, or as far as it can be seen a function, does not have."""
    module, _, name = path.rpartition(".")
    protocol = getattr(importlib.import_module(module), name)
    if call := vars(protocol).get("__call__"):  # it asks for a constructor
        given, wanted = _signature(target), list(inspect.signature(call).parameters)[1:]
        return [name for name in wanted if name not in given and not _takes_anything(given)]
    if not inspect.isclass(target):
        return []
    if not getattr(protocol, "_is_protocol", False):
        return [] if issubclass(target, protocol) else [f"base {protocol.__name__}"]
    methods = [name for name, member in vars(protocol).items() if callable(member) and not name.startswith("_")]
    return [name for name in methods if not callable(getattr(target, name, None))]
