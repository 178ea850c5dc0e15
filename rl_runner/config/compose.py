"""From the words of a command line to a run or a sweep by way of Hydra, or to one line for each of their mistakes."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_runner.config.environment import preset_of
from rl_runner.config.problems import flat_keys, key_of, override_problem, unknown_choice
from rl_runner.config.schema import Config, Parsed, parse
from rl_runner.config.targets import GROUPS
from rl_runner.config.validate import validate
from rl_runner.config.words import as_typed, opened, plain
from rl_runner.errors import UserError
from rl_runner.help import install, show
from rl_runner.notes import CONFIGS as CONFIGS
from rl_runner.persistence import attempts

# What Hydra raises when it cannot compose what was asked for.
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)
FOR_SWEEPS = ("hydra/launcher=", "hydra/sweeper=", "hydra.launcher.", "hydra.sweeper.")
SWEEPERS = tuple(f"hydra_plugins.rl_runner.{name}" for name in ("GridSweeper", "OptunaSweeper"))
SEARCH = "hydra/sweeper=optuna"
CHOICES = ("env", *GROUPS, "preset", "tuned")
Load = Callable[[Sequence[str]], DictConfig]  # composes typed words


def start(arguments: Namespace, parser: ArgumentParser) -> None:
    """Train or sweep as the command line says, or show what it composes to."""
    hydra, name = set_up(arguments), arguments.config_name or "config"
    arguments.overrides = list(map(opened, arguments.overrides))
    try:
        if arguments.hydra_help:
            return hydra.hydra_help(name, parser, arguments)
        if arguments.shell_completion:
            return install(lambda: hydra.shell_completion(name, arguments.overrides))
        if arguments.cfg:
            return hydra.show_cfg(name, arguments.overrides, arguments.cfg, arguments.package, arguments.resolve)
        if arguments.info:
            return hydra.show_info(arguments.info, name, arguments.overrides)
        mode = RunMode.MULTIRUN if arguments.multirun else RunMode.RUN
        composed = hydra.compose_config(name, arguments.overrides, mode)
        if arguments.help:
            return show(composed, arguments)
        if arguments.multirun:
            return sweep(hydra, composed)
        refuse_what_is_for_sweeps(composed)
        config = validate_composed(composed)
        directory = Path(composed.hydra.run.dir)
        if not config.dry_run:
            directory.mkdir(parents=True, exist_ok=True)
    except REFUSALS as error:
        raise explain(hydra, arguments, error) from error
    finally:
        GlobalHydra.instance().clear()
    from rl_runner.run import run

    run(config, attempts(directory)[-1] if config.fresh else directory)


def refuse_what_is_for_sweeps(composed: DictConfig) -> None:
    """UserError if a single run was composed of what only a sweep takes."""
    if ignored := [word for word in composed.hydra.overrides.hydra if word.startswith(FOR_SWEEPS)]:
        raise UserError(f"{' '.join(ignored)} is for sweeps: add -m")
    if composed.hydra.sweeper.get("params"):
        raise UserError(f"experiment={composed.hydra.runtime.choices.experiment} is a sweep: add -m")


def set_up(arguments: Namespace) -> Hydra:
    """Hydra with the directories in which it finds files."""
    version.setbase("1.3")
    search_path = create_config_search_path(f"file://{CONFIGS}")
    if arguments.config_dir:
        if not Path(arguments.config_dir).is_dir():
            raise UserError(f"--config-dir {arguments.config_dir}: no such directory")
        search_path.prepend("command-line", f"file://{Path(arguments.config_dir).absolute()}", anchor="schema")
    GlobalHydra.instance().clear()
    return Hydra.create_main_hydra2("rl_runner", search_path)


def sweep(hydra: Hydra, master: DictConfig) -> None:
    """Let the chosen sweeper plan its jobs and run them."""
    if master.hydra.sweeper._target_ not in SWEEPERS:
        chosen = f"hydra/sweeper={master.hydra.runtime.choices['hydra/sweeper']}"
        raise UserError(f"{chosen}: a sweep is planned by hydra/sweeper=grid or optuna")
    context = HydraContext(hydra.config_loader, Callbacks())
    sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=lambda _: None, config=master)
    sweeper.sweep([str(word) for word in OmegaConf.to_container(master.hydra.overrides.task, resolve=False) or []])


def validate_jobs(load: Load, jobs: Iterable[Sequence[str]]) -> list[Config]:
    """The config of every job of a sweep; UserError with one line for every problem of any."""
    checked = [check(load, words) for words in jobs]
    if problems := dict.fromkeys(line for _, lines in checked for line in lines):
        raise UserError("\n".join(problems))
    return [config for config, _ in checked if config]


def validate_composed(composed: DictConfig, unknown: Collection[str] = ()) -> Config:
    """The config that Hydra composed; UserError with one line for every problem.

    `unknown`: groups that stand at their default because the choice was refused; what they fit with is not judged.
    """
    parsed = parse_composed(composed)
    targets = {group: target for group, target in parsed.targets.items() if group not in unknown}
    env = None if "env" in unknown else parsed.env
    directory = Path(composed.hydra.run.dir) if parsed.config else None
    return validate(parsed._replace(targets=targets, env=env), directory)


def parse_composed(composed: DictConfig) -> Parsed:
    """The values as far as they are sound, and the names of the files that they came from."""
    HydraConfig.instance().set_config(composed)  # for values that interpolate it
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    unresolved: Any = OmegaConf.to_container(composed.hydra.overrides.task)  # a secret may be interpolated
    words = list(map(as_typed, unresolved))
    choices = {group.rpartition("@")[2]: name for group, name in composed.hydra.runtime.choices.items()}
    chosen = {group: str(name) for group, name in choices.items() if group in CHOICES and name}
    preset, presets = chosen.pop("preset", "none"), _known("preset", composed.hydra)
    if preset != "none" and (name := preset if preset in presets else preset_of(preset)):
        chosen["preset"] = name
    tuned = chosen.pop("tuned", "none")
    known = _known("tuned", composed.hydra)
    if folder := tuned.rpartition("/")[0]:  # of an id with a slash
        known += [f"{folder}/{name}" for name in _known(f"tuned/{folder}", composed.hydra)]
    if tuned in known and tuned != "none":
        chosen["tuned"] = tuned
    parsed = parse(*plain(own), chosen, words)
    problems = list(parsed.problems)
    typed = set(map(key_of, words))
    if "env.id" in typed and "tuned" not in typed and tuned != "none" and parsed.env:
        problems += _tuned_for_another(parsed.env.id, chosen, known)
    if "env.id" in typed and "preset" not in typed and parsed.env and preset_of(parsed.env.id) != chosen.get("preset"):
        problems.append(
            f"env.id={parsed.env.id}: presets go with env=...; write env={parsed.env.id}, or add preset=none"
        )
    if "preset" not in chosen and preset not in ("none", chosen.get("env")):
        problems.append(unknown_choice("preset", preset, presets))
    if "tuned" in chosen:
        problems = [_or_untuned(line, tuned, typed) for line in problems]
    if tuned not in known and tuned != f"{chosen.get('algo')}_{chosen.get('env')}":
        # Hydra skips a missing optional file without a word, also where the user named it.
        problems.append(unknown_choice("tuned", tuned, known))
    return parsed._replace(config=None if problems else parsed.config, problems=problems)


def _tuned_for_another(env_id: str, chosen: Mapping[str, str], known: Collection[str]) -> list[str]:
    """A tuned file belongs to env=...: the id of another environment typed besides would get it, or miss its own."""
    own = f"{chosen.get('algo')}_{env_id}"
    file = chosen.get("tuned") or (own if own in known else None)
    if file is None or chosen.get("env") == env_id:
        return []
    belongs = env_id if file == own else chosen.get("env")
    return [f"env.id={env_id}: tuned/{file} goes with env={belongs}; write env={env_id}, or add tuned=none"]


def _or_untuned(line: str, tuned: str, typed: Collection[str]) -> str:
    """A key that the user did not type may come from the tuned file, which knows only the shipped classes."""
    key, _, complaint = line.partition(": ")
    named = any(f"{word}.".startswith(f"{key}.") for word in typed)
    untyped = complaint.startswith("no such key") and not named
    return f"{line}; or, if tuned/{tuned} sets it, tuned=none" if untyped else line


def _known(group: str, hydra: Any) -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    overrides: Any = OmegaConf.to_container(hydra.overrides.hydra)  # they may name further search paths
    return loader.get_group_options(group, config_name=hydra.job.config_name, overrides=overrides)


def explain(hydra: Hydra, arguments: Namespace, error: Exception) -> UserError:
    """All that is wrong with a command line, where Hydra stops at the first thing."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return UserError(f"{error.filename}: {error.strerror}; choose another place with hydra.run.dir=...")

    def load(job: Sequence[str]) -> DictConfig:
        return hydra.compose_config(arguments.config_name or "config", list(map(opened, job)), RunMode.RUN)

    words = list(map(as_typed, arguments.overrides))
    jobs, refused = jobs_of(words) if arguments.multirun else ([words], {})
    problems = [*refused.values(), *(line for job in jobs for line in check(load, job, refused)[1])]
    return UserError("\n".join(dict.fromkeys(problems)) or " ".join(str(error).split()))


def jobs_of(words: Sequence[str]) -> tuple[list[list[str]], dict[str, str]]:
    """The jobs of a sweep, and one line for each key that cannot be swept; intervals of a search are left out."""
    from hydra_plugins.rl_runner import grid

    parsed, problems = [], {}
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for word in words:
        try:
            (one,) = parser.parse_overrides([word])
            if SEARCH not in words or not one.is_sweep_override() or one.is_discrete_sweep():
                grid([one])
                parsed.append(one)
        except HydraException as error:
            problems[key_of(word)] = override_problem(word, error, known=[])
    return grid(parsed), problems


def check(load: Load, words: Sequence[str], unknown: Collection[str] = ()) -> tuple[Config | None, list[str]]:
    """The config of these words, or one line for each word that Hydra refuses and each problem of what the others mean.

    `unknown`: keys that were refused before; what is typed for a group whose choice was refused cannot be judged.
    """
    config, problems, refused = None, list[str](), set[str]()
    try:
        composed = load(words)
    except REFUSALS:
        composed, problems, refused = _compose_what_can_be(load, words)
    try:
        config = validate_composed(composed, refused.union(unknown))
    except UserError as error:
        problems += str(error).splitlines()
    return config, problems


def _compose_what_can_be(load: Load, words: Sequence[str]) -> tuple[DictConfig, list[str], set[str]]:
    """Add one word after the other, choices of files first, leaving out those that are refused.

    Also a line for each refused one, and the groups whose choice was refused.
    """
    accepted: list[str] = []
    problems, refused = [], set[str]()
    try:
        composed = load([])
    except REFUSALS as error:
        raise UserError(" ".join(str(error).split())) from error
    for word in sorted(words, key=_rank):
        if key_of(word).partition(".")[0] in refused:
            continue
        try:
            composed = load([*accepted, word])
            accepted.append(word)
        except REFUSALS as error:
            values: Any = OmegaConf.to_container(composed, resolve=False)
            if not word.lstrip("+~").startswith("hydra."):
                del values["hydra"]  # it may have meant a key of Hydra's own only if it begins like one
            problems.append(override_problem(word, error, flat_keys(values)))
            refused |= {key_of(word)} & set(CHOICES)
    return composed, problems, refused


def _rank(word: str) -> int:
    """-1 for Hydra's own files, 0 for its settings, 1 for choices of files, 2 for values within them."""
    key = key_of(word)
    if key.startswith("hydra/"):
        return -1
    return 0 if key.startswith("hydra.") else 1 if key in (*CHOICES, "experiment") else 2
