"""No replay: what was just seen is learnt from at once, as tabular Q-learning does."""

from typing import Any

import torch
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.replay.ring import Batch


class LastReplay:
    """The newest step of each environment, drawn in turn: with as many updates as rows, each row is learnt once.

    The rows stay on the CPU, where tables are.
    """

    def __init__(self, *, gamma: float):
        self._gamma = gamma
        self._newest: tuple[Tensor, ...] = ()
        self._drawn = 0

    @staticmethod
    def nbytes(spec: Spec, num_envs: int, **_: Any) -> int:
        """Nothing worth counting."""
        return 0

    @property
    def size(self) -> int:
        """How many transitions can be drawn."""
        return len(self._newest[0]) if self._newest else 0

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Keep one step of each environment, [N, ...], in place of the step before."""
        self._newest = (obs, action, reward, terminated, next_obs)
        self._drawn = 0

    def cut(self) -> None:
        """Nothing: no episode reaches over more than one step."""

    def draw(self, batch_size: int, step: int) -> tuple[Tensor, ...]:
        """The next rows of the newest step, [B, ...], fewer at its end, then again from its start; nothing random."""
        start = self._drawn % self.size
        self._drawn = min(start + batch_size, self.size)
        return tuple(values[start : self._drawn] for values in self._newest)

    def gather(self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor) -> Batch:
        """The batch of what `draw` gave; traceable."""
        index = torch.arange(reward.shape[0], device=reward.device)
        discount = torch.where(terminated, 0.0, self._gamma)
        return Batch(obs, action, reward, discount, next_obs, torch.ones_like(reward), index)

    def prioritize(self, index: Tensor, td_error: Tensor) -> None:
        """Nothing: all transitions are equal."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: a new step comes before the next update."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
