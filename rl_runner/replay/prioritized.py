"""Prioritized experience replay (Schaul et al. 2016), the proportional variant."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.ranges import Fraction
from rl_runner.replay.batch import Batch
from rl_runner.replay.columns import Storage
from rl_runner.replay.layout import Layout
from rl_runner.replay.priorities import Priorities
from rl_runner.replay.ring import Ring
from rl_runner.seeding import generator

LEAST = torch.finfo(torch.float32).tiny


class PrioritizedReplay:
    """The newest `capacity` transitions, drawn with probability P(i) = p_i^α / Σ p^α, p = |δ| + ε.

    A new transition has the largest priority so far. Its weight (size * P(i))^-β is divided by the largest weight in
    the replay; β goes linearly from `beta` to `beta_end` over the run.
    `alpha`: 0 is uniform, 1 fully proportional. `epsilon`: keeps transitions without error in the draw.
    `n_step`, `deduplicate`, `storage`: as in `UniformReplay`.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        num_envs: int,
        gamma: float,
        total_steps: int,
        seed: int,
        device: torch.device | str,
        directory: Path | None,
        capacity: PositiveInt,
        alpha: Fraction,
        beta: Fraction,
        beta_end: Fraction,
        epsilon: Annotated[float, Field(gt=0)],
        n_step: PositiveInt = 1,
        deduplicate: bool = False,
        storage: Storage = "memory",
    ):
        self._device = torch.device(device)
        layout = Layout(spec, num_envs, capacity, deduplicate)
        self.grows = deduplicate  # the table of final observations is moved when it is full
        self.ring = Ring(layout, gamma, n_step, storage, self._device, directory)
        self._priorities = Priorities(layout.rows, self._device)
        self._alpha, self._beta, self._beta_end, self._epsilon = alpha, beta, beta_end, epsilon
        self._num_envs, self._total_steps = num_envs, total_steps
        self._generator = generator(seed, "replay", self._device)

    @staticmethod
    def nbytes(spec: Spec, num_envs: int, *, capacity: int, deduplicate: bool = False, **_: Any) -> int:
        """Bytes that a replay with these keys takes when it is made."""
        layout = Layout(spec, num_envs, capacity, deduplicate)
        return layout.nbytes + Priorities.nbytes(layout.rows)

    @property
    def size(self) -> int:
        """How many transitions can be drawn."""
        return self.ring.size

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Store one step of each environment, [N, ...]; `next_obs` is the true successor at an episode's end too."""
        head, layout = self.ring.head, self.ring.layout
        self.ring.add(obs, action, reward, terminated, truncated, next_obs)
        self._priorities.replace((head - layout.window) % layout.rows, head % layout.rows, self._num_envs)

    def cut(self) -> None:
        """Truncate the running episodes: the environments were reset in the middle of them."""
        self.ring.cut()

    def draw(self, batch_size: int, step: int) -> tuple[Tensor, Tensor]:
        """What is random or changes with the step in a batch: uniform numbers [B] and β."""
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self._generator, device=self._device)
        beta = self._beta + min(1.0, step / self._total_steps) * (self._beta_end - self._beta)
        return uniform, torch.tensor(beta, device=self._device)

    def gather(self, uniform: Tensor, beta: Tensor) -> Batch:
        """The transitions that `draw` chose; traceable."""
        position, relative_leaf = self._priorities.draw(uniform)
        return self.ring.batch(position, relative_leaf**-beta)

    def prioritize(self, index: Tensor, td_error: Tensor) -> None:
        """Set the priorities of the drawn transitions, index and δ [B]; traceable."""
        leaf = (td_error.abs() + self._epsilon) ** self._alpha
        self._priorities.update(index, leaf.float().clamp(min=LEAST))

    def state_dict(self) -> dict[str, Any]:
        """All but the ring's columns; see `Ring` for what an exact restoration needs."""
        return {
            "ring": self.ring.state_dict(),
            "priorities": self._priorities.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ring.load_state_dict(state["ring"])
        self._priorities.load_state_dict(state["priorities"])
        self._generator.set_state(state["generator"])
