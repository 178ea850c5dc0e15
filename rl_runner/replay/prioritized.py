"""Prioritized experience replay (Schaul et al. 2016), the proportional variant, without a loop over the batch."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.replay.ring import Batch, Ring, Storage
from rl_runner.replay.uniform import UniformReplay
from rl_runner.wiring import Fraction

BLOCK = 64
BELOW_ONE = 1 - torch.finfo(torch.float64).eps
LEAST = torch.finfo(torch.float32).tiny


class PrioritizedReplay(UniformReplay):
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
        super().__init__(
            spec=spec, num_envs=num_envs, gamma=gamma, total_steps=total_steps, seed=seed, device=device,
            directory=directory, capacity=capacity, n_step=n_step, deduplicate=deduplicate, storage=storage,
        )  # fmt: skip
        self._priorities = Priorities(self.ring.rows, self._device)
        self._alpha, self._beta, self._beta_end, self._epsilon = alpha, beta, beta_end, epsilon
        self._total_steps = total_steps

    @staticmethod
    def nbytes(spec: Spec, num_envs: int, *, capacity: int, deduplicate: bool = False, **_: Any) -> int:
        """Bytes that a replay with these keys takes when it is made."""
        ring = Ring(spec, num_envs, capacity, deduplicate)
        return ring.nbytes + sum(part.nbytes for part in Priorities(ring.rows).state_dict().values())

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Store one step of each environment, [N, ...], to be drawn with the largest priority."""
        ring, new = self.ring, self.ring.head
        ring.add(obs, action, reward, terminated, truncated, next_obs)
        self._priorities.assign((new - ring.window) % ring.rows, ring.num_envs, 0.0)  # can no longer be drawn
        self._priorities.assign(new % ring.rows, ring.num_envs)

    def draw(self, batch_size: int, step: int) -> tuple[Tensor, ...]:
        """What is random or changes with the step in a batch: uniform numbers [B] and β."""
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self._generator, device=self._device)
        beta = self._beta + min(1.0, step / self._total_steps) * (self._beta_end - self._beta)
        return uniform, torch.tensor(beta, device=self._device)

    def gather(self, uniform: Tensor, beta: Tensor) -> Batch:  # type: ignore[override]  # it takes what `draw` gives
        """The transitions that `draw` chose; traceable."""
        position, relative_leaf = self._priorities.draw(uniform)
        return self.ring.batch(position, relative_leaf**-beta)

    def prioritize(self, index: Tensor, td_error: Tensor) -> None:
        """Set the priorities of the drawn transitions, index and δ [B]; traceable."""
        leaf = (td_error.abs() + self._epsilon) ** self._alpha
        self._priorities.update(index, leaf.float().clamp(min=LEAST))

    def state_dict(self) -> dict[str, Any]:
        """All but the ring's columns; see `Ring` for what an exact restoration needs."""
        state = super().state_dict()
        return {"ring": state["ring"], "priorities": self._priorities.state_dict(), "generator": state["generator"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._priorities.load_state_dict(state["priorities"])


class Priorities:
    """A leaf per row, p^α or 0 for a row that must not be drawn, in blocks with their sums and least positive leaves.

    Two levels in place of a binary tree: the cumulative sum over all blocks of a million rows takes microseconds, and
    a block that changed is summed anew, so rounding errors never build up and duplicates in a batch do no harm.
    """

    def __init__(self, rows: int, device: torch.device | str = "meta"):
        blocks = -(-rows // BLOCK)
        self._leaves = torch.zeros(blocks, BLOCK, device=device)
        self._sums = torch.zeros(blocks, dtype=torch.float64, device=device)
        self._minima = torch.full((blocks,), torch.inf, device=device)
        self._largest = torch.ones((), device=device)  # of all leaves ever written
        # For a few rows numpy takes a third of a tensor's time.
        parts = (self._leaves, self._sums, self._minima)
        self._arrays = tuple(part.numpy() for part in parts) if self._leaves.device.type == "cpu" else ()

    def assign(self, first: int, count: int, leaf: float | None = None) -> None:
        """Give rows [first, first + count) one leaf, by default the largest so far."""
        given = self._largest if leaf is None else leaf
        rows, blocks = slice(first, first + count), slice(first // BLOCK, (first + count - 1) // BLOCK + 1)
        if self._arrays:
            leaves, sums, minima = self._arrays
            leaves.reshape(-1)[rows] = float(given)
            sums[blocks] = leaves[blocks].sum(1, dtype=np.float64)
            minima[blocks] = leaves[blocks].min(1, where=leaves[blocks] > 0, initial=np.inf)
        else:
            self._leaves.view(-1)[rows] = given
            self._refresh(torch.arange(blocks.start, blocks.stop, device=self._leaves.device))

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [B] for uniform numbers [B] float64 in [0, 1), one in each of B equal parts of the total, and their
        leaves relative to the least positive one, [B] >= 1; traceable."""
        cumulative = self._sums.cumsum(0)
        strata = torch.arange(uniform.shape[0], device=uniform.device)
        target = (strata + uniform) / uniform.shape[0] * cumulative[-1]
        # Rounding must not lead past the last positive leaf, or before the first: neither could be drawn.
        block = torch.searchsorted(cumulative, target.minimum(cumulative[-1] * BELOW_ONE), right=True)
        leaves = self._leaves.index_select(0, block)
        within = leaves.cumsum(1, dtype=torch.float64)
        rest = (target - (cumulative[block] - self._sums[block])).clamp(min=0).minimum(within[:, -1] * BELOW_ONE)
        place = torch.searchsorted(within, rest.unsqueeze(1), right=True)
        return block * BLOCK + place.squeeze(1), leaves.gather(1, place).squeeze(1) / self._minima.min()

    def update(self, row: Tensor, leaf: Tensor) -> None:
        """Give rows [B] new leaves [B]; of a row that occurs twice either one counts, on a CPU the later. Traceable."""
        block = row // BLOCK
        self._leaves[block, row % BLOCK] = leaf  # a compiled scatter_reduce_ would copy all leaves
        self._largest.copy_(self._largest.maximum(leaf.max()))
        self._refresh(block)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, not copied; the sums too, since compiled and eager code may round them differently."""
        return {"leaves": self._leaves, "sums": self._sums, "minima": self._minima, "largest": self._largest}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def _refresh(self, block: Tensor) -> None:
        leaves = self._leaves.index_select(0, block)
        self._sums[block] = leaves.sum(1, dtype=torch.float64)
        self._minima[block] = torch.where(leaves > 0, leaves, torch.inf).amin(1)
