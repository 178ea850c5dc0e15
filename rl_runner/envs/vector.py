"""Environments as tensors: seeded episodes, true successors, and a state that can be saved and continued exactly."""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl_runner.envs.spaces import action_map
from rl_runner.envs.state import ActionHistory, SeededEnv
from rl_runner.errors import UserError

if TYPE_CHECKING:
    from rl_runner.config.schema import EnvConfig

EVAL_LIMIT = 1000  # steps after which evaluation cuts the episodes of an environment without a time limit
LONGEST = 100_000  # steps of an episode that can be played again; the actions of a longer one are not kept


class Step(NamedTuple):
    """The result of one vector step."""

    next_obs: Tensor  # [N, *obs]; the true successor: at an episode's end its final observation
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool; never for a time limit
    truncated: Tensor  # [N] bool; never where terminated
    episodes: list[tuple[float, int]]  # (return, length) of the episodes that ended in this step


class Envs:
    """N copies of an environment, stepped in turn.

    Episode k of environment i is reset with a seed of its own, derive(seed, name, i, k). With `auto_reset=False` an
    environment whose episode has ended rests, its reward 0 and its observation unchanged, until `reset`. With
    `rebuild=True` every episode gets a new environment, for one whose reset leaves traces of the episode before.
    """

    obs: Tensor  # [N, *obs]; the current observation, after any reset; a new tensor in every step
    first: Tensor  # [N] bool; whether obs is the first of an episode
    active: Tensor  # [N] bool; whether the episode goes on: False only without auto_reset

    def __init__(
        self,
        env: "EnvConfig",
        num_envs: int,
        seed: int,
        name: str = "train",
        *,
        auto_reset: bool = True,
        rebuild: bool = False,
    ):
        self.num_envs = num_envs
        self._auto_reset = auto_reset
        self._seeded = [SeededEnv(env, (seed, name, i), rebuild) for i in range(num_envs)]
        self.spec, space = self._seeded[0].spec, self.envs[0].action_space
        if any(each.spec != self.spec or each.env.action_space != space for each in self._seeded):
            raise UserError(f"env={env.id} has different spaces each time that it is made: register it with fixed ones")
        self._to_env_actions = action_map(space)
        self._none = torch.zeros(num_envs, dtype=torch.bool)  # shared by all steps, so never written
        self._obs_shape = (num_envs, *self.spec.obs_shape)
        self._obs_dtype = torch.empty(0, dtype=self.spec.obs_dtype).numpy().dtype
        dim = self.spec.action_dim
        self._history = ActionHistory(
            np.empty(num_envs, np.int64) if dim is None else np.empty((num_envs, dim), np.float32)
        )
        self.reset()

    @property
    def envs(self) -> list[gym.Env]:
        """The N Gymnasium environments themselves, to render or to look into."""
        return [seeded.env for seeded in self._seeded]

    def reset(self, episode: int = 0) -> None:
        """Start the given episode in every environment."""
        obs = np.empty(self._obs_shape, self._obs_dtype)
        for i, env in enumerate(self._seeded):
            obs[i] = env.reset(episode)
        self._begin(obs)

    def step(self, action: Tensor) -> Step:
        """Act in every environment, [N] int64 or [N, action_dim] in [-1, 1]; RunFailed if one of them breaks."""
        actions = self._to_env_actions(self._history.append(action.numpy(force=True)))
        N = self.num_envs
        next_obs, reward = np.empty(self._obs_shape, self._obs_dtype), np.zeros(N, np.float32)
        ended: dict[int, bool] = {}  # environment: whether it terminated
        for i, env in enumerate(self._seeded):
            if not env.playing:
                next_obs[i] = self.obs[i]
                continue
            next_obs[i], reward[i], terminal, _ = env.step(actions[i])
            if not env.playing:
                ended[i] = terminal
        if len(self._history) > LONGEST:
            self._let_go()
        self.obs = torch.from_numpy(next_obs)
        self.first = self._none
        if not ended:
            return Step(self.obs, torch.from_numpy(reward), self._none, self._none, [])
        terminated = torch.tensor([ended.get(i, False) for i in range(N)])
        truncated = torch.tensor([not ended.get(i, True) for i in range(N)])
        episodes = [(self._seeded[i].total, self._seeded[i].length) for i in ended]
        step = Step(self.obs, torch.from_numpy(reward), terminated, truncated, episodes)
        self._after(list(ended))
        return step

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to bring every running episode back: its number and its actions."""
        return {
            "episode": [env.episode for env in self._seeded],
            "length": [env.length for env in self._seeded],
            "return": [env.total for env in self._seeded],
            "obs": self.obs,
            "actions": torch.from_numpy(self._history.rows[len(self._history) - self._replayable() :].copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Replay the running episodes; one line for each that did not come out bit for bit and so begins anew."""
        history, obs = state["actions"].numpy(), state["obs"].numpy().copy()
        lines = []
        for i, env in enumerate(self._seeded):
            episode, length = state["episode"][i], state["length"][i]
            replayed = np.empty_like(obs[i])
            kept = length <= len(history)
            last = env.replay(episode, self._to_env_actions(history[len(history) - length :, i])) if kept else None
            if last is not None:
                replayed[...] = last
            if last is None or replayed.tobytes() != obs[i].tobytes() or env.total != state["return"][i]:
                why = "could not be brought back" if kept else f"had played more than the {LONGEST:,} that are kept"
                lines.append(
                    f"not exact: {length} steps into episode {episode}, environment {i} {why}; "
                    f"episode {episode + 1} begins instead"
                )
                obs[i] = env.reset(episode + 1)
        self._history.restore(history)
        self._begin(obs)
        return lines

    def _begin(self, obs: np.ndarray) -> None:
        self.obs = torch.from_numpy(obs)
        self.first = torch.tensor([env.length == 0 for env in self._seeded])
        self.active = torch.ones(self.num_envs, dtype=torch.bool)
        self._history.keep(self._replayable())

    def _replayable(self) -> int:
        """How many of the last steps the running episodes need to be played again, but for those that are too long."""
        return max((env.length for env in self._seeded if env.length <= LONGEST), default=0)

    def _let_go(self) -> None:
        """Forget the actions of episodes that have become too long, and say it."""
        for env in self._seeded:
            if env.length == LONGEST + 1 and self._auto_reset:  # others are never saved
                print(
                    f"{env}: a longer episode cannot be played again, so a run resumed in it begins the next episode",
                    file=sys.stderr,
                )
        self._history.keep(self._replayable())

    def _after(self, ended: list[int]) -> None:
        """Start the next episode where one has ended, or let the environment rest."""
        if not self._auto_reset:
            self.active = torch.tensor([env.playing for env in self._seeded])
            for i in ended:
                self._seeded[i].look()
            return
        obs = self.obs.numpy().copy()
        for i in ended:
            obs[i] = self._seeded[i].reset(self._seeded[i].episode + 1)
        self._begin(obs)
