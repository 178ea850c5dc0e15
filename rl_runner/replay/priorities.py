"""Sampling in proportion to priorities, without a loop over the batch."""

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
BELOW_ONE = 1 - torch.finfo(torch.float64).eps


class Priorities:
    """A leaf per row, p^α or 0 for a row that must not be drawn, in blocks with their sums and least positive leaves.

    Two levels in place of a binary tree: the cumulative sum over all blocks of a million rows takes microseconds, and
    a block that changed is summed anew, so rounding errors never build up and duplicates in a batch do no harm.
    """

    def __init__(self, rows: int, device: torch.device):
        blocks = -(-rows // BLOCK)
        self._leaves = torch.zeros(blocks, BLOCK, device=device)
        self._sums = torch.zeros(blocks, dtype=torch.float64, device=device)
        self._minima = torch.full((blocks,), torch.inf, device=device)
        self._largest = torch.ones((), device=device)  # of all leaves ever written
        # For a few rows numpy takes a third of a tensor's time.
        parts = (self._leaves, self._sums, self._minima)
        self._arrays = tuple(part.numpy() for part in parts) if device.type == "cpu" else ()

    @staticmethod
    def nbytes(rows: int) -> int:
        return -(-rows // BLOCK) * (BLOCK * 4 + 8 + 4)

    def replace(self, old: int, new: int, count: int) -> None:
        """Rows [old, old + count) can no longer be drawn; rows [new, new + count) can, with the largest leaf so far."""
        self._assign(old, count, 0.0)
        self._assign(new, count, self._largest)

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

    def _assign(self, first: int, count: int, leaf: float | Tensor) -> None:
        rows, blocks = slice(first, first + count), slice(first // BLOCK, (first + count - 1) // BLOCK + 1)
        if self._arrays:
            leaves, sums, minima = self._arrays
            leaves.reshape(-1)[rows] = float(leaf)
            sums[blocks] = leaves[blocks].sum(1, dtype=np.float64)
            minima[blocks] = leaves[blocks].min(1, where=leaves[blocks] > 0, initial=np.inf)
        else:
            self._leaves.view(-1)[rows] = leaf
            self._refresh(torch.arange(blocks.start, blocks.stop, device=self._leaves.device))

    def _refresh(self, block: Tensor) -> None:
        leaves = self._leaves.index_select(0, block)
        self._sums[block] = leaves.sum(1, dtype=torch.float64)
        self._minima[block] = torch.where(leaves > 0, leaves, torch.inf).amin(1)
