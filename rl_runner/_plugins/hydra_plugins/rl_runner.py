"""What Hydra finds of ours: a source of configs, so that `env=<any Gymnasium id>` needs no YAML file, and the sweepers.

Jobs of a sweep are all validated before the first one starts or anything is written.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rl_runner.config import environment
from rl_runner.config.words import as_typed, opened
from rl_runner.errors import UserError

MOST_ENVS = 200  # beyond which a glob is a mistake: each of them would be made first

OmegaConf.register_new_resolver("path_safe", lambda name: re.sub(r"[^\w.-]+", "_", str(name)), replace=True)


class GymnasiumSource(ConfigSource):
    """`env/<id>` for whatever id, whose existence is for the validation to ask, and `preset/<id>` of its family."""

    @staticmethod
    def scheme() -> str:
        return "gymnasium"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "env")

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        return bool(name) and (group == "env" or (group == "preset" and environment.preset_of(name) is not None))

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        config: dict[str, Any] = {"defaults": ["/env/default@_here_", "_self_"], "id": name}
        if group == "preset":
            config = {"defaults": [f"/preset/{environment.preset_of(name)}"]}
        package = "_global_" if group == "preset" else "env"
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(config), header={"package": package})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else ["env"]
        if results_filter == ObjectType.GROUP:
            return []
        return environment.known_ids()  # for glob(...); help and completion know of them by themselves


class GymnasiumSearchPath(SearchPathPlugin):
    """Appends the source after the directories of files, so that real files win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Hydra puts --config-dir before the first provider of this name: so it comes before this source as well.
        search_path.append(provider="schema", path="gymnasium://")


class GridSweeper(Sweeper):
    """All combinations of the swept values, each a job; `params`: swept values of a file."""

    def __init__(self, params: DictConfig, **settings: Any):
        self.params, self.settings = params, settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.master, self.loader = config, hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> None:
        from rl_runner.sweep import sweep

        jobs = grid(parse(arguments, self.params, self.loader))
        sweep(jobs, self.compose(jobs), self.master.hydra)

    def compose(self, jobs: Sequence[Sequence[str]]) -> list[Any]:
        """The validated configs of jobs by their words."""
        from rl_runner.config.compose import validate_jobs

        return validate_jobs(lambda words: self.loader.load_sweep_config(self.master, list(map(opened, words))), jobs)


class OptunaSweeper(GridSweeper):
    """A search for the values that score best."""

    def sweep(self, arguments: list[str]) -> None:
        from rl_runner.sweep.search import search, space_of

        overrides = parse(arguments, self.params, self.loader)
        words = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        swept = [override for override in overrides if override.is_sweep_override()]
        space = space_of(swept or parse([], self.shipped_space(), self.loader))
        search(space, lambda *jobs: self.compose([[*words, *job] for job in jobs]), self.settings, self.master.hydra)

    def shipped_space(self) -> DictConfig:
        """The content of search/<algo>.yaml."""
        algo = self.master.hydra.runtime.choices["algo"]
        if algo not in self.loader.get_group_options("search"):
            raise UserError(f"algo={algo} has no search/{algo}.yaml: sweep some values, as in optimizer.lr=1e-3,1e-4")
        loaded = self.loader.load_configuration(f"search/{algo}", [], RunMode.RUN)
        return OmegaConf.masked_copy(loaded.search, list(loaded.search))


def parse(arguments: Sequence[str], params: DictConfig, loader: ConfigLoader) -> list[Override]:
    """The overrides of the command line, after those of a file that it does not override; `loader` is for globs."""
    parser = OverridesParser.create(loader)
    typed = parser.parse_overrides(list(map(as_typed, arguments)))
    keys = {override.key_or_group for override in typed}
    filed = [as_typed(f"{key!s}={value}") for key, value in params.items() if str(key).lstrip("+") not in keys]
    return [*parser.parse_overrides(filed), *typed]


def grid(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each job: the product of all swept values, the last one changing fastest."""
    return [list(job) for job in itertools.product(*map(_values, overrides))]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigCompositionException("a grid needs values; to search an interval add hydra/sweeper=optuna")
    values = list(override.sweep_string_iterator())
    if not values:
        raise ConfigCompositionException("matches nothing, so there would be no job")
    if override.key_or_group == "env" and len(values) > MOST_ENVS:
        raise ConfigCompositionException(f"matches {len(values):,} environments; name fewer")
    return [f"{override.get_key_element()}={value}" for value in values]
