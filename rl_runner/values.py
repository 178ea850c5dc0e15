"""What a critic predicts of the return: the meaning of its K outputs, the target they learn, and their loss."""

from typing import Protocol

import torch
from pydantic import FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.errors import UserError
from rl_runner.wiring import AtLeastTwo


class Value(Protocol):
    """A value head: `out` is `[..., K]`, with K = `outputs`."""

    outputs: int

    def mean(self, out: Tensor) -> Tensor:
        """The expected return, `[..., K]` to `[...]`."""

    def pessimistic(self, out: Tensor) -> Tensor:
        """The lowest of an ensemble's opinions, `[E, B, K]` to `[B, ...]`, for `target`."""

    def average(self, out: Tensor) -> Tensor:
        """The mean of an ensemble's opinions, of distributions their mixture, `[E, B, K]` to `[B, ...]`."""

    def target(self, reward: Tensor, discount: Tensor, next_out: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        """What r + discount (V(s') + bonus) is to this head; reward and discount `[B]`, next_out `[B, ...]`."""

    def target_mean(self, target: Tensor) -> Tensor:
        """The expected return of a target, `[B]`."""

    def loss(self, out: Tensor, target: Tensor, weight: Tensor, huber: bool = False) -> Tensor:
        """The loss of `out` `[B, K]` or `[E, B, K]`: weighted mean over B, sum over E."""

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        """How far each estimate is from its target, of which priorities are made: `[B]` or `[E, B]`."""

    def target_metrics(self, target: Tensor) -> dict[str, Tensor]:
        """What this head alone logs of a target."""


class Scalar:
    """One output: the expected return itself."""

    outputs = 1

    def mean(self, out: Tensor) -> Tensor:
        return out.squeeze(-1)

    def pessimistic(self, out: Tensor) -> Tensor:
        return losses.clipped_double_value(self.mean(out)).unsqueeze(-1)

    def average(self, out: Tensor) -> Tensor:
        return out.mean(dim=-3)

    def target(self, reward: Tensor, discount: Tensor, next_out: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        return losses.td_target(reward, discount, self.mean(next_out) + bonus)

    def target_mean(self, target: Tensor) -> Tensor:
        return target

    def loss(self, out: Tensor, target: Tensor, weight: Tensor, huber: bool = False) -> Tensor:
        return losses.critic_loss(self.mean(out), target, weight, huber)

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        return (target - self.mean(out)).abs()

    def target_metrics(self, target: Tensor) -> dict[str, Tensor]:
        return {}


class Categorical:
    """The return's distribution over `atoms` evenly spaced values from `v_min` to `v_max`, by logits (C51).

    Returns beyond the bounds are clipped to them: `values/target_at_bounds` shows the share of targets at either end.
    """

    def __init__(self, *, atoms: AtLeastTwo, v_min: FiniteFloat | None, v_max: FiniteFloat | None):
        if v_min is None or v_max is None:
            raise UserError(
                "value.v_min, value.v_max: a categorical value needs the lowest and the highest discounted return that "
                "can be: value.v_min=-100 value.v_max=100 for rewards in [-1, 1] and algo.gamma=0.99; or, whatever "
                "rewards there are, value.v_min=-5 value.v_max=5 normalize_rewards=5"
            )
        if v_min >= v_max:
            raise UserError(f"value.v_min={v_min:g}: must be less than value.v_max={v_max:g}; give them the other way")
        self.outputs, self.v_min, self.v_max = atoms, v_min, v_max

    def support(self, like: Tensor) -> Tensor:
        """The atoms' values `[K]`."""
        return torch.linspace(self.v_min, self.v_max, self.outputs, device=like.device, dtype=like.dtype)

    def mean(self, out: Tensor) -> Tensor:
        return self.target_mean(out.softmax(dim=-1))

    def pessimistic(self, out: Tensor) -> Tensor:
        return losses.min_by_mean(out, self.mean(out))

    def average(self, out: Tensor) -> Tensor:
        return out.log_softmax(dim=-1).logsumexp(dim=-3)

    def target(self, reward: Tensor, discount: Tensor, next_out: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        return losses.project(next_out.softmax(dim=-1), reward + discount * bonus, discount, self.support(next_out))

    def target_mean(self, target: Tensor) -> Tensor:
        return (target * self.support(target)).sum(dim=-1)  # a sum: products may be of lower precision

    def loss(self, out: Tensor, target: Tensor, weight: Tensor, huber: bool = False) -> Tensor:
        return losses.categorical_loss(out, target, weight)

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        return losses.categorical_error(out, target)

    def target_metrics(self, target: Tensor) -> dict[str, Tensor]:
        return {"values/target_at_bounds": (target[..., 0] + target[..., -1]).mean()}


class Quantile:
    """The return's distribution by `quantiles` quantiles at the midpoints (i + ½)/N (QR-DQN).

    `kappa`: where Huber's loss turns linear; small ones estimate quantiles, large ones lean to the mean. `drop`: an
    ensemble's target leaves out so many of the highest per critic, of all together (TQC); null: it is the distribution
    with the lowest mean.
    """

    def __init__(self, *, quantiles: PositiveInt, kappa: PositiveFloat, drop: NonNegativeInt | None):
        if drop is not None and drop >= quantiles:
            raise UserError(f"value.drop={drop}: must be less than value.quantiles={quantiles}")
        self.outputs, self.kappa, self.drop = quantiles, kappa, drop

    def mean(self, out: Tensor) -> Tensor:
        return out.mean(dim=-1)

    def pessimistic(self, out: Tensor) -> Tensor:
        return losses.min_by_mean(out, self.mean(out)) if self.drop is None else losses.truncate(out, self.drop)

    def average(self, out: Tensor) -> Tensor:
        return losses.truncate(out, 0)

    def target(self, reward: Tensor, discount: Tensor, next_out: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        return (reward + discount * bonus).unsqueeze(-1) + discount.unsqueeze(-1) * next_out

    def target_mean(self, target: Tensor) -> Tensor:
        return target.mean(dim=-1)

    def loss(self, out: Tensor, target: Tensor, weight: Tensor, huber: bool = False) -> Tensor:
        return losses.quantile_loss(out, target, weight, self.kappa)

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        return losses.quantile_error(out, target)

    def target_metrics(self, target: Tensor) -> dict[str, Tensor]:
        return {}


def soft_target(
    value: Value, reward: Tensor, discount: Tensor, next_out: Tensor, log_prob: Tensor, temperature: Tensor | float
) -> Tensor:
    """The target of acting by π from s' on: that of each action with its bonus -τ log π(a|s'), mixed by π(a|s').

    reward and discount `[B]`, next_out `[A, B, ...]` of the actions apart, log_prob `[B, A]`. To a scalar head it is
    r + discount Σ_a π(a|s') [Q(s', a) - τ log π(a|s')]. Categorical laws are mixed as they are; quantiles are averaged
    level by level (as in M-IQN, Vieillard et al. 2020), which gives the mixture's mean but less than its spread.
    """
    log_prob = log_prob.mT
    reward, discount = (x.unsqueeze(-2).expand_as(log_prob) for x in (reward, discount))
    each = value.target(reward, discount, next_out, bonus=-temperature * log_prob)
    prob = log_prob.exp() if each.shape == log_prob.shape else log_prob.exp().unsqueeze(-1)
    return (prob * each).sum(dim=log_prob.dim() - 2)


def critic_report(value: Value, out: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What every run logs of its critics, in the units of returns, and each estimate's error, `[B]` or `[E, B]`."""
    out = out.detach()
    metrics = losses.critic_metrics(value.mean(out), value.target_mean(target))
    return metrics | value.target_metrics(target), value.error(out, target)
