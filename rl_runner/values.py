"""What a critic predicts of the return: the meaning of its K outputs, the target they learn, and their loss."""

from typing import Protocol

from torch import Tensor

from rl_runner import losses


class Value(Protocol):
    """A value head: `out` is `[..., K]`, with K = `outputs`."""

    outputs: int

    def mean(self, out: Tensor) -> Tensor:
        """The expected return, `[..., K]` to `[...]`."""

    def pessimistic(self, out: Tensor) -> Tensor:
        """The lowest of an ensemble's opinions, `[E, B, K]` to `[B, ...]`, for `target`."""

    def target(self, reward: Tensor, discount: Tensor, next_out: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        """What r + discount (V(s') + bonus) is to this head; reward and discount `[B]`, next_out `[B, ...]`."""

    def target_mean(self, target: Tensor) -> Tensor:
        """The expected return of a target, `[B]`."""

    def loss(self, out: Tensor, target: Tensor, weight: Tensor, huber: bool = False) -> Tensor:
        """The loss of `out` `[B, K]` or `[E, B, K]`: weighted mean over B, sum over E."""


class Scalar:
    """One output: the expected return itself."""

    outputs = 1

    def mean(self, out: Tensor) -> Tensor:
        return out.squeeze(-1)

    def pessimistic(self, out: Tensor) -> Tensor:
        return losses.clipped_double_value(self.mean(out)).unsqueeze(-1)

    def target(self, reward: Tensor, discount: Tensor, next_out: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        return losses.td_target(reward, discount, self.mean(next_out) + bonus)

    def target_mean(self, target: Tensor) -> Tensor:
        return target

    def loss(self, out: Tensor, target: Tensor, weight: Tensor, huber: bool = False) -> Tensor:
        return losses.critic_loss(self.mean(out), target, weight, huber)


def critic_report(value: Value, out: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What every run logs of its critics, and |δ| of each estimate, `[B]` or `[E, B]`."""
    q, expected = value.mean(out).detach(), value.target_mean(target)
    return losses.critic_metrics(q, expected), (expected - q).abs()
