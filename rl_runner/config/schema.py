"""The config of a run: its schema, and its file."""

import functools
import operator
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, PrivateAttr, model_serializer

from rl_runner import persistence
from rl_runner.config import environment, targets
from rl_runner.config.environment import EnvConfig as EnvConfig
from rl_runner.config.problems import RENAMED, flat_keys, override_problem
from rl_runner.config.targets import GROUPS, PARTS, ROLES, Strict, checked, is_difference
from rl_runner.config.words import Written, interpolations, opened, plain, renamed, spelt
from rl_runner.errors import UserError
from rl_runner.persistence import COMMAND, command_line_of, flatten
from rl_runner.wiring import Fraction, names


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return name


class RunLevel(Strict):
    """What belongs to no group; steps are environment steps.

    A key that is younger than some saved run has a default: what the code did before.
    """

    seed: NonNegativeInt
    total_steps: PositiveInt
    num_envs: PositiveInt
    learning_starts: NonNegativeInt
    update_every: PositiveInt
    updates: PositiveInt
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_end: Fraction = 0.0
    device: Annotated[str, AfterValidator(_device)]
    threads: Literal["auto"] | PositiveInt
    accelerate: Literal["auto", "eager", "compile", "cudagraph"]
    precision: Literal["highest", "high", "medium", "bfloat16"]
    eval_every: NonNegativeInt
    eval_episodes: PositiveInt
    final_eval_episodes: PositiveInt
    eval_epsilon: Fraction = 0.0
    eval_max_steps: PositiveInt = 1_000
    eval_process: Literal["auto", "separate", "same"] = "auto"
    vectorization: Literal["sync", "async"] = "sync"
    clip_rewards: PositiveFloat | None = None
    normalize_observations: bool = False
    normalize_rewards: PositiveFloat | None = None
    log_every: PositiveInt
    checkpoint_every: PositiveInt | None
    plugins: list[str]
    dry_run: bool
    fresh: bool = False


# What a file from before a key existed means.
DEFAULTS_ADDED_LATER = {key: field.default for key, field in RunLevel.model_fields.items() if not field.is_required()}
# Keys that a config leaves out while they say nothing new: so a job of a sweep keeps the name that it had before.
SILENT: Any = {key: default for key, default in DEFAULTS_ADDED_LATER.items() if key not in ("lr_schedule", "fresh")}
SILENT |= {part: {} for part in PARTS}
DEFAULTS_ADDED_LATER |= {name: role.missing for name, role in ROLES.items() if role.missing}


class Config(RunLevel):
    """Everything that decides a run; never mutated."""

    env: EnvConfig
    algo: dict[str, Any]
    network: dict[str, Any]
    optimizer: dict[str, Any]
    replay: dict[str, Any]
    # Differences of one part of the agent to `network` or `optimizer`, or another class with all its keys.
    actor_network: dict[str, Any] = Field(default_factory=dict)
    critic_network: dict[str, Any] = Field(default_factory=dict)
    actor_optimizer: dict[str, Any] = Field(default_factory=dict)
    critic_optimizer: dict[str, Any] = Field(default_factory=dict)
    alpha_optimizer: dict[str, Any] = Field(default_factory=dict)
    encoder: dict[str, Any]
    value: dict[str, Any]
    loggers: dict[str, dict[str, Any]]
    # The names of the chosen files, for people to read: {"algo": "ddqn", ..., "tuned": "ddqn_CartPole-v1"}.
    chosen: dict[str, str] = Field(default_factory=dict)

    # Values that came from the process environment, by path, as they were written: secrets stay out of files.
    _written: Written = PrivateAttr(default_factory=dict)
    _command_line: list[str] = PrivateAttr(default_factory=list)

    def group(self, name: str) -> dict[str, Any]:
        """All keys of a group; of a part of the agent also those that it shares with the group that it differs from."""
        own: dict[str, Any] = getattr(self, name)
        base = ROLES[name].base
        return getattr(self, base) | own if base and is_difference(own) else own

    def factory(self, name: str, group: Mapping[str, Any] | None = None) -> functools.partial[Any]:
        """The class of a group, with all its keys set; what the runner wires is left to the caller, by keyword."""
        return targets.factory(name, group or self.group(name), self.plugins)

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in SILENT or value != SILENT[name]}


class Parsed(NamedTuple):
    """A config as far as it is sound."""

    config: Config | None  # None if there are problems
    env: EnvConfig | None
    targets: dict[str, Callable[..., Any]]  # of each group whose target is allowed
    problems: list[str]


def parse(
    raw: Mapping[str, Any], written: Written, chosen: Mapping[str, str], command_line: Sequence[str] = ()
) -> Parsed:
    """Check keys, types, ranges and targets of plain values, all problems at once; no environment is made."""
    raw = renamed(raw)
    run_level = {key: value for key, value in raw.items() if key not in ("env", "loggers", *GROUPS)}
    plugins = _strings(raw.get("plugins"))
    plugin_problems = targets.import_plugins(plugins)
    env_keys = [f"env.{key}" for key in EnvConfig.model_fields]
    known = [*RunLevel.model_fields, "env", *env_keys, "loggers", *GROUPS]
    values = {name: raw.get(name, ROLES[name].missing) for name in GROUPS}
    loggers = raw.get("loggers", ROLES["loggers"].missing)
    if not isinstance(loggers, Mapping):
        return Parsed(None, None, {}, ["loggers: choose them by name, loggers=[tensorboard], see --help"])
    values |= {f"loggers.{name}": group for name, group in loggers.items()}
    around = environment.wrappers_of(raw.get("env"))
    problems = [f"{name}: {line}" for name, group in around.items() if (line := environment.missing(group))]
    values |= {} if problems else around
    groups = targets.read_groups(values, plugins, known)
    known += [key for group in groups.values() for key in group.keys]
    problems += checked(RunLevel, run_level, known)[1] + plugin_problems
    env, env_problems = None, ["env: needs env.id, the name of an environment"]
    if isinstance(raw.get("env"), Mapping):
        env, env_problems = checked(EnvConfig, raw["env"], known, "env.")
    problems += env_problems
    algo = groups["algo"].target
    for name, group in groups.items():
        if algo and values[name] and name in PARTS and not names(algo, name):
            problems.append(f"algo={chosen.get('algo', algo.__name__)} has no {name}; use {ROLES[name].base}")
        elif name in around and (line := environment.refusal(group.target, values[name])):
            problems.append(f"{name}: {line}")
        else:
            problems += group.problems
    if any(line.startswith("env.wrappers") for line in problems):
        env = None  # which is not to be made of them
    allowed = {name: group.target for name, group in groups.items() if group.target}
    if problems:
        return Parsed(None, env, allowed, problems)
    sound: dict[str, Any] = {name: group.values for name, group in groups.items()}
    sound["loggers"] = {name: sound.pop(f"loggers.{name}") for name in loggers}
    sound["env"] = {**raw["env"], "wrappers": [sound.pop(name) for name in around]}
    config = Config.model_validate({**raw, **sound, "chosen": chosen})
    config._written.update(written)
    config._command_line.extend(command_line)
    return Parsed(config, config.env, allowed, problems)


def written_values(config: Config) -> dict[str, Any]:
    """The config as it may stand in files: what came from the process environment is left unresolved."""
    values = config.model_dump(mode="json")
    for (*parents, key), text in config._written.items():
        functools.reduce(operator.getitem, parents, values)[key] = text
    return values


def save_config(config: Config, path: Path) -> None:
    """Write the config as YAML; the command line stands above it as a comment, whose line it must not leave."""
    words = shlex.join(config._command_line)
    command = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    text = f"{COMMAND}{command}\n{yaml.safe_dump(written_values(config), sort_keys=False)}"
    persistence.replace(path, text.encode())


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a saved run, changed by `key=value` overrides; UserError if it is not sound.

    The file may come from a stranger: what it would import, or read from outside of itself, the overrides must name.
    """
    saved, command_line = _read_file(path)
    typed = _override(saved, overrides)
    keys = [tuple(key.split(".")) for key in typed]
    problems = [
        f"{path} would read more than itself: if you trust it, add {shlex.quote(' '.join(spelt(place, text).split()))}"
        for place, text in interpolations(OmegaConf.to_container(saved))
        # A resolver, which could read anything, is called by ${name:...}; what only refers to the file itself may stay.
        if ":" in text and not any(tuple(map(str, place))[: len(key)] == key for key in keys)
    ]
    if problems:
        raise UserError("\n".join(problems))
    values, written = plain(saved)
    trusted = _strings(values.get("plugins")) if "plugins" in typed else []
    unknown = [name for name in _packages(values, typed) if not targets.within(name, trusted)]
    if packages := ",".join(dict.fromkeys(name.partition(".")[0] for name in unknown)):
        raise UserError(f"{path} would import {packages}: if you trust it, add plugins=[{packages}]")
    values = renewed(values, _strings(values.get("plugins")))
    chosen = values.pop("chosen", {})
    if not isinstance(chosen, Mapping):
        raise UserError(f"{path} is not the config of a run")
    chosen = {str(group): str(name) for group, name in chosen.items()}
    config, _, _, problems = parse(values, written, chosen, [*command_line, *overrides])
    if config is None:
        raise UserError("\n".join(f"{path}: {line}" for line in problems))
    return config


def renewed(values: Mapping[str, Any], plugins: Sequence[str]) -> dict[str, Any]:
    """A saved config in today's words: a key that has another name now, unless its class still takes it.

    `plugins`: the packages that may be imported for that, whatever the config itself names.
    """
    renewed = renamed(values)
    for old, new in RENAMED.items():
        (group, key), (place, name) = old.split("."), new.split(".")
        keys = renewed.get(group)
        if not isinstance(keys, dict) or key not in keys:
            continue
        try:
            target = targets.resolve(group, keys.get("_target_"), plugins)
            takes = targets.schema(target, group)
        except UserError:
            continue  # which is said elsewhere
        unknown = key not in takes.model_fields and takes.model_config["extra"] == "forbid"
        if unknown and (value := keys.pop(key)) is not None:
            renewed[place] = {name: value} | (renewed.get(place) or {})
    return renewed


def words_to_trust(config: Config) -> list[str]:
    """What whoever opens the saved config again has to type: the packages that it imports, and what it reads."""
    packages = ",".join(dict.fromkeys(_packages(config.model_dump(include={"plugins", "env"}), ())))
    named = [f"plugins=[{packages}]"] if packages else []
    return named + [spelt(place, text) for place, text in config._written.items()]


def _read_file(path: Path) -> tuple[DictConfig, list[str]]:
    """The content of a saved config, and the command line that stands above it."""
    try:
        text = path.read_text("utf-8")
        saved = OmegaConf.create(yaml.safe_load(text))
    except FileNotFoundError:
        raise UserError(persistence.no_run(path.parent)) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(saved, DictConfig):
        raise UserError(f"{path} is not the config of a run")
    return saved, command_line_of(text)


def _override(saved: DictConfig, overrides: Sequence[str]) -> set[str]:
    """Change the saved config by overrides; the keys that they name."""
    OmegaConf.set_struct(saved, True)
    problems: list[str] = []
    typed: set[str] = set()
    for text in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([opened(text)])
            key, value = parsed.package or parsed.key_or_group, parsed.value()
            if parsed.is_delete() or parsed.is_sweep_override():
                problems.append(f"{text}: a saved run takes key=value, one value each")
            elif key in ("env", *GROUPS) and not isinstance(value, dict):
                problems.append(f"{text}: a saved run keeps its {key} but for single keys; start a new run")
            else:
                OmegaConf.update(saved, key, value, force_add=parsed.is_force_add())
                typed |= flatten({key: value}).keys()
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(override_problem(text, error, flat_keys(saved)))
    if problems:
        raise UserError("\n".join(problems))
    return typed


def _packages(values: Mapping[str, Any], typed: Collection[str]) -> list[str]:
    """What a config would import from elsewhere: its plugins, and the module of an environment that nobody typed."""
    env = values.get("env")
    module = str(env.get("id")).rpartition(":")[0] if isinstance(env, Mapping) and "env.id" not in typed else ""
    return _strings(values.get("plugins")) + ([module] if module else [])


def _strings(values: Any) -> list[str]:
    """The strings of a list, and nothing of what is none."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    return [value for value in values if isinstance(value, str)] if is_list else []
