"""The arithmetic of every algorithm: pure functions of tensors.

Values, rewards and log-probabilities are `[B]`; critic ensembles `[E, B]`. A loss is the mean over the last axis and
the sum over the leading ones, so that a stack of networks trains as separate ones would.
Targets are to be computed under `torch.no_grad`. Several algorithms share these: to change one, see its `learn`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """y = r + γ(1-d) V(s'); all `[B]`, discount = γ^k (1-d) comes with the batch (Sutton & Barto 2018, eq. 6.1)."""
    assert reward.shape == discount.shape == next_value.shape
    return reward + discount * next_value


def max_value(next_q: Tensor) -> Tensor:
    """V(s') = max_a Q(s', a) of a table; `[B, A]` to `[B]` (Watkins 1989)."""
    return next_q.amax(dim=-1)


def clipped_double_value(next_q: Tensor) -> Tensor:
    """V(s') = min_i Q⁻_i(s', ã'); `[E, B]` to `[B]` (TD3, Fujimoto et al. 2018, eq. 10)."""
    return next_q.amin(dim=-2)


def select(out: Tensor, action: Tensor) -> Tensor:
    """What a network says of the actions taken; `[B, A, K]`, or of an ensemble `[E, B, A, K]`, and int64 `[B]`, to
    `[B, K]` or `[E, B, K]`."""
    return out.gather(-2, action[..., None, None].expand(*out.shape[:-2], 1, out.shape[-1])).squeeze(-2)


def critic_loss(q: Tensor, target: Tensor, weight: Tensor, huber: bool = False) -> Tensor:
    """Σ_E mean_B w · (y - Q)² (or smooth L1 with β = 1); q `[B]` or `[E, B]`, target and weight `[B]`."""
    assert q.shape[-1:] == target.shape == weight.shape
    target = target.expand_as(q)
    loss = F.smooth_l1_loss(q, target, reduction="none") if huber else (target - q).square()
    return (weight * loss).mean(dim=-1).sum()


def deterministic_actor_loss(q: Tensor) -> Tensor:
    """-mean Q(s, μ(s)); `[B]` to a scalar (DDPG, Lillicrap et al. 2016, eq. 6)."""
    return -q.mean(dim=-1).sum()


def soft_actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor | float, reduce: str = "min") -> Tensor:
    """mean[α log π(ã|s) - min_i Q_i(s, ã)]; `[E, B]` and `[B]` to a scalar (Haarnoja et al. 2018, eq. 9).

    `reduce`: `mean` takes mean_i Q_i in place of the minimum (TQC, REDQ), `first` Q_1 (TD3).
    """
    assert q.shape[-1:] == log_prob.shape[-1:]
    value = clipped_double_value(q) if reduce == "min" else q.mean(dim=-2) if reduce == "mean" else q.select(-2, 0)
    return (alpha * log_prob - value).mean(dim=-1).sum()


def discrete_soft_value(q: Tensor, log_prob: Tensor, alpha: Tensor | float, reduce: str = "min") -> Tensor:
    """V(s) = Σ_a π(a|s) [min_i Q_i(s, a) - α log π(a|s)], without sampling; `[E, B, A]` and `[B, A]` to `[B]`.

    `reduce`: `mean` takes mean_i Q_i in place of the minimum (SAC-Discrete, Christodoulou 2019, eq. 10).
    """
    assert q.shape[-2:] == log_prob.shape[-2:]
    value = q.mean(dim=-3) if reduce == "mean" else q.amin(dim=-3)
    return (log_prob.exp() * (value - alpha * log_prob)).sum(dim=-1)


def munchausen_bonus(log_prob: Tensor, action: Tensor, temperature: float, minimum: float) -> Tensor:
    """clip(τ log π(a|s), l₀, 0) of the actions taken; `[B, A]` and int64 `[B]` to `[B]` (Vieillard et al. 2020)."""
    return (temperature * log_prob.gather(-1, action.unsqueeze(-1)).squeeze(-1)).clamp(minimum, 0.0)


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """J(α) = mean[-α (log π + H₀)], α = exp(log_alpha); log_prob `[B]` (Haarnoja et al. 2018b, eq. 18).

    α rises when the policy's entropy -E[log π] is below H₀.
    """
    return (-log_alpha.exp() * (log_prob + target_entropy)).mean(dim=-1).sum()


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(μ + σε) and log π(a|s) = Σ_i [log N(u_i; μ_i, σ_i) - log(1 - tanh²u_i)].

    `[B, act]` each to actions `[B, act]` and log-probabilities `[B]` (Haarnoja et al. 2018, eq. 21, with the stable
    form log(1 - tanh²u) = 2(log 2 - u - softplus(-2u))).
    """
    assert mean.shape == log_std.shape == noise.shape
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_jacobian = 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), (log_normal - log_jacobian).sum(dim=-1)


def smoothed_action(action: Tensor, noise: Tensor, policy_noise: float, noise_clip: float) -> Tensor:
    """ã' = clip(μ'(s') + clip(σ ε, -c, c), -1, 1); `[B, act]` (TD3, Fujimoto et al. 2018, eq. 14)."""
    assert action.shape == noise.shape
    return (action + (policy_noise * noise).clamp(-noise_clip, noise_clip)).clamp(-1, 1)


def project(prob: Tensor, reward: Tensor, discount: Tensor, support: Tensor) -> Tensor:
    """The law of r + γ(1-d) Z(s') on the support: m_i = Σ_j [1 - |clip(r + γ(1-d) z_j) - z_i| / Δz]⁺ p_j.

    prob `[B, K]`, reward and discount `[B]`, support `[K]` evenly spaced, to `[B, K]`. The triangular form has no case
    apart for what falls on an atom (C51, Bellemare et al. 2017, eq. 7).
    """
    assert reward.shape == discount.shape == prob.shape[:-1]
    moved = (reward.unsqueeze(-1) + discount.unsqueeze(-1) * support).clamp(support[0], support[-1])
    distance = (moved.unsqueeze(-2) - support.unsqueeze(-1)).abs() / (support[1] - support[0])
    return ((1 - distance).clamp(min=0) * prob.unsqueeze(-2)).sum(dim=-1)


def categorical_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Σ_E mean_B w · -Σ_i m_i log p_i; logits `[B, K]` or `[E, B, K]`, target m `[B, K]`, weight `[B]` (C51)."""
    assert logits.shape[-2:] == target.shape == (*weight.shape, logits.shape[-1])
    return (weight * -(target * logits.log_softmax(dim=-1)).sum(dim=-1)).mean(dim=-1).sum()


def categorical_error(logits: Tensor, target: Tensor) -> Tensor:
    """KL(m ‖ p) of each estimate, `[E, B]`: unlike the cross-entropy, 0 once p = m, however noisy the target is.

    Rainbow's priority (Hessel et al. 2018).
    """
    cross_entropy = -(target * logits.log_softmax(dim=-1)).sum(dim=-1)
    return (cross_entropy + torch.xlogy(target, target).sum(dim=-1)).clamp(min=0)  # rounding could go below


def quantile_loss(quantiles: Tensor, target: Tensor, weight: Tensor, kappa: float) -> Tensor:
    """Σ_E mean_B w · Σ_i mean_j |τ_i - 1{δ_ij < 0}| L_κ(δ_ij), with δ_ij = y_j - θ_i, τ_i = (i + ½)/N, Huber's L_κ.

    quantiles θ `[B, N]` or `[E, B, N]`, target y `[B, M]`, weight `[B]` (QR-DQN, Dabney et al. 2018, eq. 10).
    """
    assert quantiles.shape[-2:-1] == target.shape[:-1] == weight.shape
    delta = target.unsqueeze(-2) - quantiles.unsqueeze(-1)
    size = delta.abs()
    bent = size.clamp(max=kappa)
    tau = (torch.arange(quantiles.shape[-1], device=delta.device, dtype=delta.dtype) + 0.5) / quantiles.shape[-1]
    loss = (tau.unsqueeze(-1) - (delta < 0).to(delta.dtype)).abs() * bent * (size - 0.5 * bent)
    return (weight * loss.mean(dim=-1).sum(dim=-1)).mean(dim=-1).sum()


def quantile_error(quantiles: Tensor, target: Tensor) -> Tensor:
    """mean_i mean_j |y_j - θ_i| of each estimate, `[E, B]`."""
    return (target.unsqueeze(-2) - quantiles.unsqueeze(-1)).abs().mean(dim=(-2, -1))


def min_by_mean(out: Tensor, mean: Tensor) -> Tensor:
    """The whole distribution of the critic with the smallest mean, never a mixture; `[E, B, K]`, `[E, B]` to `[B, K]`.

    Elementwise minima of distributions would be none (SimbaV2, Lee et al. 2025).
    """
    lowest = mean.argmin(dim=-2, keepdim=True).unsqueeze(-1)
    return out.gather(-3, lowest.expand(*lowest.shape[:-1], out.shape[-1])).squeeze(-3)


def truncate(quantiles: Tensor, drop: int) -> Tensor:
    """The E(N - drop) lowest of all critics' quantiles together, in order; `[E, B, N]` to `[B, E(N - drop)]`.

    `drop` counts per critic, the cut is made in the pool (TQC, Kuznetsov et al. 2020, eq. 9 and 10).
    Discrete SAC mixes the laws of its actions level by level, which takes the order.
    """
    pool = quantiles.movedim(-3, -2).flatten(-2).sort(dim=-1).values
    return pool[..., : pool.shape[-1] - drop * quantiles.shape[-3]]


def critic_metrics(q: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What every run logs of its critics: the unweighted squared TD error and the range of the estimates."""
    q = q.detach()
    return {
        "losses/td_loss": (target - q).square().mean(),
        "values/q_mean": q.mean(),
        "values/q_min": q.amin(),
        "values/q_max": q.amax(),
        "values/target_mean": target.mean(),
    }
