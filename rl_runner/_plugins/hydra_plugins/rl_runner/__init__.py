"""`env=<any Gymnasium id>` without a YAML file: a config source that answers where no file does."""

import re

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

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
        return config_path.startswith("env/") or self._preset(config_path) is not None

    @staticmethod
    def _preset(config_path: str) -> str | None:
        group, _, env_id = config_path.removesuffix(".yaml").partition("/")
        if group != "preset":
            return None
        from rl_runner.config.env_ids import preset_of

        return preset_of(env_id)

    def load_config(self, config_path: str) -> ConfigResult:
        if preset := self._preset(config_path):
            config = OmegaConf.create({"defaults": [f"/preset/{preset}"]})
            return ConfigResult(self.provider, self.full_path(), config, header={"package": "_global_"})
        env_id = config_path.removeprefix("env/").removesuffix(".yaml")
        config = OmegaConf.create(
            {"id": env_id, "kwargs": {}, "max_episode_steps": None, "frame_stack": 1, "wrappers": []}
        )
        return ConfigResult(self.provider, self.full_path(), config, header={"package": "env"})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else ["env"]
        if results_filter == ObjectType.GROUP:
            return []
        from rl_runner.config.env_ids import known_ids  # for glob(...); help and completion know of them by themselves

        return known_ids()


class GymnasiumSearchPath(SearchPathPlugin):
    """Appends the source after the directories of files, so that real files win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Hydra puts --config-dir before the first provider of this name: so it comes before this source as well.
        search_path.append(provider="schema", path="gymnasium://")
