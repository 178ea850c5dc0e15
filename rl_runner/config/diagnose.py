"""All that is wrong with a command line, where Hydra stops at the first thing."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from rl_runner.config.compose import CHOICES, CONFIGS, REFUSALS, validate_composed
from rl_runner.config.problems import flat_keys, override_problem
from rl_runner.config.schema import Config
from rl_runner.config.words import as_typed, opened
from rl_runner.errors import UserError

SEARCH = "hydra/sweeper=optuna"
Compose = Callable[[Sequence[str]], DictConfig]


def explain(arguments: Namespace, error: Exception) -> UserError:
    """What to tell the user about an error that Hydra raised before anything started."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return UserError(f"{error.filename}: {error.strerror}; choose another place with hydra.run.dir=...")
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        return UserError(f"--config-dir {arguments.config_dir}: no such directory")

    def load(job: Sequence[str]) -> DictConfig:
        return compose(arguments.config_name or "config", list(map(opened, job)), return_hydra_config=True)

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        if arguments.config_dir:
            _add_config_dir(Path(arguments.config_dir))
        jobs, refused = jobs_of(arguments.overrides) if arguments.multirun else ([arguments.overrides], {})
        problems = [*refused.values(), *(line for job in jobs for line in problems_of(load, job, refused))]
    return UserError("\n".join(dict.fromkeys(problems)) or " ".join(str(error).split()))


def validate_jobs(load: Compose, jobs: Iterable[Sequence[str]]) -> list[Config]:
    """The config of every job of a sweep; UserError with one line for every problem of any."""
    configs: list[Config] = []
    problems: list[str] = []
    for job in jobs:
        try:
            configs.append(validate_composed(load(job)))
        except (UserError, *REFUSALS):
            problems += problems_of(load, job)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return configs


def problems_of(load: Compose, overrides: Sequence[str], unknown: Iterable[str] = ()) -> list[str]:
    """One line for each override that Hydra refuses, and for each problem of what the others compose to.

    `unknown`: keys that were refused before.
    """
    problems: list[str] = []
    refused: set[str] = set()
    try:
        composed = load(overrides)
    except REFUSALS:
        composed, problems, refused = _compose_what_can_be(load, overrides)
    try:
        validate_composed(composed, refused.union(unknown))
    except UserError as error:
        problems += str(error).splitlines()
    return problems


def jobs_of(overrides: Sequence[str]) -> tuple[list[list[str]], dict[str, str]]:
    """The jobs of a sweep, and one line for each key that cannot be swept; intervals of a search are left out."""
    from hydra_plugins.rl_runner.sweeper import grid

    parsed, problems = [], {}
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for override in overrides:
        try:
            (one,) = parser.parse_overrides([as_typed(override)])
            if SEARCH not in overrides or not one.is_sweep_override() or one.is_discrete_sweep():
                grid([one])
                parsed.append(one)
        except HydraException as error:
            problems[override.lstrip("+~").partition("=")[0]] = override_problem(override, error, known=[])
    return grid(parsed), problems


def _add_config_dir(directory: Path) -> None:
    """What Hydra does for --config-dir, which its function for composing does not know."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    loader.config_search_path.prepend("command-line", f"file://{directory.absolute()}", anchor="schema")
    loader.repository.initialize_sources(loader.config_search_path)


def _compose_what_can_be(load: Compose, overrides: Sequence[str]) -> tuple[DictConfig, list[str], set[str]]:
    """Add one override after the other, choices of files first, leaving out those that are refused.

    Also the groups whose choice was refused: the values typed for them cannot be judged.
    """
    accepted: list[str] = []
    problems = []
    refused = set()
    try:
        composed = load([])
    except REFUSALS as error:
        raise UserError(" ".join(str(error).split())) from error
    for override in sorted(overrides, key=_rank):
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] in refused:
            continue
        try:
            composed = load([*accepted, override])
            accepted.append(override)
        except REFUSALS as error:
            problems.append(override_problem(override, error, _keys(composed, override)))
            refused |= {key} & set(CHOICES)
    return composed, problems, refused


def _keys(composed: DictConfig, override: str) -> list[str]:
    """The keys that an override may have meant: Hydra's own only if it begins like one of them."""
    values = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(values, dict)
    if not override.lstrip("+~").startswith("hydra."):
        del values["hydra"]
    return flat_keys(values)


def _rank(override: str) -> int:
    """-1 for Hydra's own files, 0 for its settings, 1 for choices of files, 2 for values within them."""
    key = override.lstrip("+~").partition("=")[0]
    if key.startswith("hydra/"):
        return -1
    return 0 if key.startswith("hydra.") else 1 if key in (*CHOICES, "experiment") else 2
