"""What every algorithm learns from, whatever replay it comes from."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B transitions on the learner's device; with n-step returns a transition spans k <= n steps."""

    obs: Tensor  # [B, *obs] float32, uint8, or int64 for Discrete observations
    action: Tensor  # [B] int64, or [B, act] float32 in [-1, 1]
    reward: Tensor  # [B] float32; r_0 + γ r_1 + ... + γ^(k-1) r_(k-1)
    discount: Tensor  # [B] float32; γ^k (1 - terminated after the k-th step)
    next_obs: Tensor  # [B, *obs]; the true successor of the k-th step, also at termination and truncation
    weight: Tensor  # [B] float32; importance weight, 1 unless prioritized
    index: Tensor  # type: ignore[assignment]  # [B] int64; the ring row of the first step
