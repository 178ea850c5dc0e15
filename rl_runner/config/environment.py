"""The config of an environment; what may stand around it, and what to write instead of the rest."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, field_validator, model_serializer

from rl_runner.config.env_ids import installed
from rl_runner.config.targets import Strict

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


def missing(group: Any) -> str | None:
    """The line for a wrapper whose package is an extra that is not installed."""
    target = group.get("_target_") if isinstance(group, Mapping) else None
    if str(target).startswith("minigrid.") and not installed("minigrid"):
        return f"{target} needs minigrid, which is not installed: pip install 'rl-runner[minigrid]'"
    if str(target).startswith("gymnasium.wrappers.vector"):
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
        return f"{name}.terminal_on_life_loss=true starts a new game at every life, so later lives are never seen"
    return None
