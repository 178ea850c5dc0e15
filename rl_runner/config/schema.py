"""The config of a run: its schema, and its file."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, PrivateAttr, ValidationError

from rl_runner.config.problems import flat_keys, override_problem, value_problems
from rl_runner.config.targets import Strict, factory, import_plugins, read_group
from rl_runner.errors import UserError
from rl_runner.persistence import durable
from rl_runner.rundir import COMMAND, SWEEP, command_line_of

__all__ = ["Config", "EnvConfig", "Parsed", "factory", "load_config", "parse", "plain", "save_config", "written_values"]

GROUPS = ("algo", "network", "optimizer", "replay")
Written = dict[tuple[Any, ...], str]


def matching(pattern: str, meaning: str) -> AfterValidator:
    """A check that a string matches a pattern, whose complaint says what the pattern means."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value):
            return value
        raise ValueError(meaning)

    return AfterValidator(check)


class EnvConfig(Strict):
    """An environment: `gymnasium.make(id, **kwargs)`; max_episode_steps null keeps its own time limit."""

    id: Annotated[str, Field(min_length=1)]
    kwargs: dict[str, Any] = Field(default_factory=dict)
    max_episode_steps: PositiveInt | None = None
    frame_stack: PositiveInt = 1


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
    lr_schedule: Literal["constant", "linear"] = "constant"
    device: Annotated[str, matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")]
    threads: Literal["auto"] | PositiveInt
    accelerate: Literal["auto", "eager", "compile", "cudagraph"]
    precision: Literal["highest", "high", "medium"]
    eval_every: NonNegativeInt
    eval_episodes: PositiveInt
    final_eval_episodes: PositiveInt
    log_every: PositiveInt
    checkpoint_every: PositiveInt | None
    plugins: list[str]
    dry_run: bool
    fresh: bool = False


# What a file from before a key existed means.
YOUNGER = {key: field.default for key, field in RunLevel.model_fields.items() if not field.is_required()}


class Config(RunLevel):
    """Everything that decides a run; never mutated."""

    env: EnvConfig
    algo: dict[str, Any]
    network: dict[str, Any]
    optimizer: dict[str, Any]
    replay: dict[str, Any]
    # The names of the chosen files, for people to read: {"algo": "ddqn", ..., "tuned": "ddqn_CartPole-v1"}.
    chosen: dict[str, str] = Field(default_factory=dict)

    # Values that came from the process environment, by path, as they were written: secrets stay out of files.
    _written: Written = PrivateAttr(default_factory=dict)
    _command_line: list[str] = PrivateAttr(default_factory=list)


class Parsed(NamedTuple):
    """A config as far as it is sound."""

    config: Config | None  # None if there are problems
    env: EnvConfig | None
    targets: dict[str, Callable[..., Any]]  # of each group whose target is allowed
    problems: list[str]


def parse(
    raw: Mapping[str, Any], chosen: Mapping[str, str], written: Written, command_line: Sequence[str] = ()
) -> Parsed:
    """Check keys, types, ranges and targets of plain values, all problems at once; no environment is made."""
    in_groups = {name: raw[name] for name in ("env", *GROUPS) if name in raw}
    run_level = {key: value for key, value in raw.items() if key not in in_groups}
    problems = _problems(RunLevel, run_level, known=[*RunLevel.model_fields, *flat_keys(in_groups)])
    plugins = _strings(raw.get("plugins"))
    problems += import_plugins(plugins)

    env_problems = _problems(EnvConfig, raw.get("env"), [f"env.{key}" for key in EnvConfig.model_fields], "env.")
    problems += env_problems
    env = None if env_problems else EnvConfig.model_validate(raw["env"])

    groups = {name: read_group(name, raw.get(name), plugins) for name in GROUPS}
    problems += [line for group in groups.values() for line in group.problems]
    targets = {name: group.target for name, group in groups.items() if group.target}
    if problems:
        return Parsed(None, env, targets, problems)
    values = {name: group.values for name, group in groups.items()}
    config = Config.model_validate({**raw, **values, "chosen": dict(chosen)})
    config._written.update(written)
    config._command_line.extend(command_line)
    return Parsed(config, env, targets, problems)


def plain(config: DictConfig) -> tuple[dict[str, Any], Written]:
    """The resolved values, and the text of those that came from the process environment."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}, dict(_from_environment(OmegaConf.to_container(config)))


def written_values(config: Config) -> dict[str, Any]:
    """The config as it may stand in files: what came from the process environment is left unresolved."""
    values = config.model_dump(mode="json")
    for (*parents, key), text in config._written.items():
        node = values
        for parent in parents:
            node = node[parent]
        node[key] = text
    return values


def save_config(config: Config, path: Path) -> None:
    """Write the config as YAML; the command line stands above it as a comment, whose line it must not leave."""
    words = shlex.join(config._command_line)
    command = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    text = f"{COMMAND}{command}\n{yaml.safe_dump(written_values(config), sort_keys=False)}"
    durable.replace(path, text.encode())


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a saved run, changed by `key=value` overrides; UserError if it is not sound.

    The file may come from a stranger: packages that it names are imported only if the overrides name them as well.
    """
    saved, command_line = _read(path)
    packages = _packages(saved)
    trusted = _override(saved, overrides)
    if unknown := ",".join(name for name in packages if name not in trusted):
        raise UserError(f"{path} would import {unknown}: if you trust it, add plugins=[{unknown}]")
    values, written = plain(saved)
    config, _, _, problems = parse(values, values.pop("chosen", {}), written, [*command_line, *overrides])
    if config is None:
        raise UserError("\n".join(f"{path}: {line}" for line in problems))
    return config


def _problems(model: type[Strict], values: Any, known: Sequence[str], prefix: str = "") -> list[str]:
    if values is None:
        return [f"{prefix[:-1]}: missing"]
    try:
        model.model_validate(values)
    except ValidationError as error:
        return value_problems(error, known, prefix)
    return []


def _from_environment(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Path and text of every value that interpolates `oc.env`."""
    if isinstance(values, str) and "${oc.env:" in values:
        yield path, values
    elif isinstance(values, (dict, list)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _from_environment(value, (*path, key))


def _read(path: Path) -> tuple[DictConfig, list[str]]:
    """The content of a saved config, and the command line that stands above it."""
    try:
        text = path.read_text("utf-8")
        saved = OmegaConf.create(yaml.safe_load(text))
    except FileNotFoundError:
        raise UserError(_no_run(path.parent, path.name)) from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(saved, DictConfig) or not isinstance(saved.get("chosen", {}), Mapping):
        raise UserError(f"{path} is not the config of a run")
    return saved, command_line_of(text)


def _no_run(directory: Path, name: str) -> str:
    """What to say of a directory without a run, which may hold some."""
    inside = min(directory.glob(f"*/{name}"), default=None)
    if inside is None:
        return f"{directory} holds no run: there is no {name} in it"
    kind = "sweep of runs" if (directory / SWEEP).exists() else "folder of runs"
    return f"{directory} is a {kind}: name one of them, as {inside.parent}"


def _packages(saved: DictConfig) -> list[str]:
    """The packages outside this one that a saved config would import: its plugins, and its environment's module."""
    module = str(OmegaConf.select(saved, "env.id") or "").rpartition(":")[0]
    return _strings(saved.get("plugins")) + ([module.partition(".")[0]] if module else [])


def _override(saved: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Change the saved config by overrides; the plugins that they name."""
    OmegaConf.set_struct(saved, True)
    problems = []
    for text in overrides:
        try:
            (override,) = OverridesParser.create().parse_overrides([text])
            new = override.is_add() or override.is_force_add()  # such as +env.kwargs.render_mode=human
            OmegaConf.update(saved, override.key_or_group, override.value(), force_add=new)
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(override_problem(text, error, flat_keys(saved)))
    if problems:
        raise UserError("\n".join(problems))
    named = any(text.startswith("plugins=") for text in overrides)
    return _strings(saved.get("plugins")) if named else []


def _strings(values: Any) -> list[str]:
    """The strings of a list, and nothing of what is none."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    return [value for value in values if isinstance(value, str)] if is_list else []
