"""An environment by its id and its config: which there are, what may stand around one, what to write instead."""

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import gymnasium as gym
from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, field_validator, model_serializer

from rl_runner.config.problems import closest
from rl_runner.config.targets import Strict

# What ids begin with that are registered only when a module is imported: (module, extra, preset).
NAMESPACES = {
    "ALE/": ("ale_py", "atari", "atari"),
    "MinAtar/": ("minatar.gym", "minatar", "minatar"),
    "MiniGrid-": ("minigrid", "minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid", "minigrid"),
}
# Where the code of registered ids lies, and what it imports in turn: (module, extra).
FAMILIES = {"gymnasium.envs.mujoco": ("mujoco", "mujoco"), "gymnasium.envs.box2d": ("Box2D", "box2d")}

VERSION = r"-v\d+$"  # at the end of an id
OWN = "; if a package of yours registers it, name that in plugins=[...]"
FILMS = "to see a policy, rl-runner eval DIR --video"
LEARNS = "its running statistics go on in evaluation and are lost by checkpoints: write"
# Wrappers of Gymnasium's whose work is the runner's.
INSTEAD = {
    "Autoreset": "leave it out, the runner resets",
    "ClipReward": "write clip_rewards=1, by which returns and evaluation stay the environment's own",
    "ClipAction": "leave it out, actions never leave their bounds",
    "FrameStackObservation": "write env.frame_stack=K, with which the replay can store single frames",
    "HumanRendering": FILMS,
    "NormalizeObservation": f"{LEARNS} normalize_observations=true",
    "NormalizeReward": f"{LEARNS} normalize_rewards=5",
    "RecordVideo": FILMS,
    "RenderCollection": FILMS,
    "TimeLimit": "write env.max_episode_steps=N, which counts the agent's steps, outside all wrappers",
}


class EnvConfig(Strict):
    """An environment: `gymnasium.make(id, **kwargs)`; max_episode_steps null keeps its own time limit.

    `wrappers`: inner to outer, each a mapping of `_target_` and its keys. The time limit is outside of them.
    `observation_keys`: the parts of a Dict observation that are seen; null: all of them.
    """

    id: Annotated[str, Field(min_length=1)]
    kwargs: dict[str, Any] = Field(default_factory=dict)
    max_episode_steps: PositiveInt | None = None
    frame_stack: PositiveInt = 1
    wrappers: list[dict[str, Any]] = Field(default_factory=list)
    observation_keys: list[str] | None = None

    @field_validator("wrappers", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return list(map(named, value)) if isinstance(value, list) else value

    @model_serializer(mode="wrap")
    def _without_defaults_added_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        added = ("wrappers", "observation_keys")
        return {name: value for name, value in dump(self).items() if value or name not in added}


def wrappers_of(env: Any) -> dict[str, Any]:
    """The wrappers of a config's `env` by name, env.wrappers.0 innermost; nothing of what is no list of them."""
    wrappers = env.get("wrappers") if isinstance(env, Mapping) else None
    groups = list(map(named, wrappers)) if isinstance(wrappers, list) else []
    if not all(isinstance(group, Mapping) for group in groups):
        return {}
    return {f"env.wrappers.{i}": group for i, group in enumerate(groups)}


def named(wrapper: Any) -> Any:
    """A wrapper without keys may be its name alone."""
    return {"_target_": wrapper} if isinstance(wrapper, str) else wrapper


def missing(group: Mapping[str, Any]) -> str | None:
    """The line for a wrapper whose package is an extra that is not installed."""
    target = str(group.get("_target_"))
    if target.startswith("minigrid.") and not installed("minigrid"):
        return needs(target, "minigrid", "minigrid")
    if target.startswith("gymnasium.wrappers.vector"):
        return f"{target} wraps several environments at once: name the wrapper of one, in gymnasium.wrappers"
    return None


def refusal(target: Callable[..., Any] | None, keys: Any) -> str | None:
    """Why not to use one of Gymnasium's wrappers here, and what to write instead."""
    if target is None or not target.__module__.startswith("gymnasium.wrappers"):
        return None
    name = target.__name__
    if name in INSTEAD:
        return f"{name}: {INSTEAD[name]}"
    if name.startswith("Transform"):
        ours = "write clip_rewards=1 or normalize_rewards=5, or " if name == "TransformReward" else ""
        return f"{name} takes a function, which no config can hold: {ours}name a wrapper of yours from a plug-in"
    if name == "AtariPreprocessing" and keys.get("terminal_on_life_loss"):
        return f"{name}.terminal_on_life_loss=true starts a new game at every life, hiding later ones: leave it out"
    return None


def known_ids(typed: str | None = None) -> list[str]:
    """All ids that could be typed on this machine.

    With `typed`, the beginning of one, a family is imported only if it is that one's; the others are listed by prefix.
    """
    families = {prefix for prefix, (module, *_) in NAMESPACES.items() if installed(module)}
    meant = {prefix for prefix in families if typed is None or typed.startswith(prefix)}
    for prefix in meant:
        _register(prefix)
    return sorted({*gym.registry, *(families - meant)})


def preset_of(env_id: str) -> str | None:
    """The name of the preset for an id's family."""
    return next((preset for prefix, (_, _, preset) in NAMESPACES.items() if env_id.startswith(prefix)), None)


def _register(prefix: str) -> None:
    module = importlib.import_module(NAMESPACES[prefix][0])
    if not any(name.startswith(prefix) for name in gym.registry):  # as MinAtar's, once it is imported
        module.register_envs()
    if prefix == "ALE/":  # which greets everybody on the terminal
        module.ALEInterface.setLoggerMode(module.LoggerMode.Error)


def problem(env_id: str) -> str | None:
    """Why there is no such environment here and what to type instead, or None if there is one."""
    module, _, name = env_id.rpartition(":")
    if module:
        from rl_runner.envs.process import contained, one_line  # imports torch, which tab completion does without

        try:
            with contained(module, lambda error: ImportError(one_line(error))):
                importlib.import_module(module)
        except ImportError as error:
            return f"env={env_id}: importing {module} fails ({error})"
    if prefix := next((prefix for prefix in NAMESPACES if name.startswith(prefix)), None):
        library, extra, _ = NAMESPACES[prefix]
        if not installed(library):
            return needs(f"env={env_id}", library.partition(".")[0], extra)
        _register(prefix)
    if name not in gym.registry:
        in_order = sorted(gym.registry.values(), key=lambda spec: spec.version or 0)
        newest = {re.sub(VERSION, "", spec.id): spec.id for spec in in_order}
        match = closest(re.sub(VERSION, "", name), newest)
        return f"env={env_id}: no such environment" + (f"; did you mean {newest[match]}?" if match else OWN)
    entry_point = str(gym.registry[name].entry_point)
    for package, (library, extra) in FAMILIES.items():
        if entry_point.startswith(package) and not installed(library):
            return needs(f"env={env_id}", library, extra)
    return None


def installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def needs(what: str, library: str, extra: str) -> str:
    return f"{what} needs {library}, which is not installed: pip install 'rl-runner[{extra}]'"
