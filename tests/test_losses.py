"""Every loss against numbers worked out by hand, on data where no two arguments could be swapped unnoticed."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from rl_runner import losses
from rl_runner.values import Scalar, critic_report


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


REWARD = tensor(1.0, -2.0, 0.5)
DISCOUNT = tensor(0.9, 0.0, 0.81)  # γ = 0.9: one step, a terminal row, two steps
NEXT_Q = tensor([1.0, 5.0, 2.0, 0.0], [3.0, 2.0, 4.0, 9.0], [-1.0, -3.0, -2.0, -4.0])  # [B=3, A=4]
ONLINE = tensor([7.0, 1.0, 2.0, 0.0], [0.0, 2.0, 8.0, 1.0], [-5.0, -4.0, -3.0, -2.0])  # argmax 0, 2, 3
ENSEMBLE = tensor([1.0, 4.0, -2.0], [3.0, 2.0, -5.0])  # [E=2, B=3]
LOG_PROB = tensor(-1.0, 0.5, 2.0)


def same(got: torch.Tensor, want: torch.Tensor | float) -> bool:
    want = torch.as_tensor(want, dtype=got.dtype)
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_td_target() -> None:
    next_value = tensor(10.0, 20.0, 30.0)
    assert same(losses.td_target(REWARD, DISCOUNT, next_value), tensor(1 + 0.9 * 10, -2.0, 0.5 + 0.81 * 30))


@pytest.mark.parametrize("shape", [(3, 1), (2, 3), (1,)])
def test_td_target_refuses_to_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        losses.td_target(REWARD, DISCOUNT, torch.zeros(shape))


def test_dqn_takes_the_largest_target_value() -> None:
    assert same(losses.max_value(NEXT_Q), tensor(5.0, 9.0, -1.0))


def test_select_takes_the_outputs_of_the_action_of_each_row() -> None:
    outputs = torch.stack([NEXT_Q, ONLINE], dim=-1)  # K = 2
    assert same(losses.select(outputs, torch.tensor([2, 0, 3])), tensor([2.0, 2.0], [3.0, 0.0], [-4.0, -2.0]))


def test_clipped_double_value_is_the_minimum_per_row() -> None:
    assert same(losses.clipped_double_value(ENSEMBLE), tensor(1.0, 2.0, -5.0))


def test_a_scalar_head_regresses_on_the_lower_critic_with_the_entropy_bonus() -> None:
    value = Scalar()
    lower = value.pessimistic(ENSEMBLE.unsqueeze(-1))
    assert same(lower, tensor([1.0], [2.0], [-5.0]))
    target = value.target(REWARD, DISCOUNT, lower, bonus=-0.2 * LOG_PROB)
    assert same(target, tensor(1 + 0.9 * (1 + 0.2), -2.0, 0.5 + 0.81 * (-5 - 0.4)))
    assert same(value.target_mean(target), target)
    with pytest.raises(AssertionError):
        value.target(REWARD, DISCOUNT, lower, bonus=LOG_PROB.unsqueeze(-1))
    weight = tensor(1.0, 0.5, 2.0)
    assert same(value.loss(ENSEMBLE.unsqueeze(-1), target, weight), losses.critic_loss(ENSEMBLE, target, weight))
    metrics, td_error = critic_report(value, ENSEMBLE.unsqueeze(-1), target)
    assert same(metrics["values/q_mean"], ENSEMBLE.mean())
    assert same(td_error, (target - ENSEMBLE).abs())


def test_critic_loss_is_a_weighted_mean_over_the_batch() -> None:
    q, target, weight = tensor(1.0, 2.0, 3.0), tensor(1.5, 5.0, 3.5), tensor(1.0, 0.5, 2.0)
    assert same(losses.critic_loss(q, target, weight), (0.25 + 0.5 * 9 + 2 * 0.25) / 3)
    assert same(losses.critic_loss(q, target, weight, huber=True), (0.125 + 0.5 * 2.5 + 2 * 0.125) / 3)


def test_critic_loss_sums_over_the_ensemble() -> None:
    target, weight = tensor(2.0, 2.0, 1.0), tensor(1.0, 2.0, 3.0)
    first, second = (1 + 2 * 4 + 3 * 9) / 3, (1 + 2 * 0 + 3 * 36) / 3
    assert same(losses.critic_loss(ENSEMBLE, target, weight), first + second)
    huber_first, huber_second = (0.5 + 2 * 1.5 + 3 * 2.5) / 3, (0.5 + 0 + 3 * 5.5) / 3
    assert same(losses.critic_loss(ENSEMBLE, target, weight, huber=True), huber_first + huber_second)


def test_critic_loss_descends_towards_the_target() -> None:
    q, target = tensor(1.0, 4.0).requires_grad_(), tensor(3.0, 3.0)
    (gradient,) = torch.autograd.grad(losses.critic_loss(q, target, tensor(1.0, 0.5)), q)
    assert same(gradient, tensor(2 * (1 - 3) / 2, 0.5 * 2 * (4 - 3) / 2))


@pytest.mark.parametrize("shape", [(3, 1), (1,), (2, 3)])
def test_critic_loss_refuses_to_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        losses.critic_loss(ENSEMBLE, torch.zeros(shape), torch.ones(shape))
    with pytest.raises(AssertionError):
        losses.critic_loss(ENSEMBLE, torch.zeros(3), torch.ones(shape))


def test_deterministic_actor_loss_is_minus_the_mean_value() -> None:
    assert same(losses.deterministic_actor_loss(tensor(1.0, 2.0, 6.0)), -3.0)


def test_soft_actor_loss_weighs_entropy_against_the_smaller_value() -> None:
    want = ((0.2 * -1 - 1) + (0.2 * 0.5 - 2) + (0.2 * 2 + 5)) / 3
    assert same(losses.soft_actor_loss(ENSEMBLE, LOG_PROB, 0.2), want)


def test_alpha_loss() -> None:
    want = -0.3 * ((-1 - 2) + (0.5 - 2) + (2 - 2)) / 3
    assert same(losses.alpha_loss(tensor(0.3).log().squeeze(), LOG_PROB, -2.0), want)


@pytest.mark.parametrize(("log_prob", "rises"), [([3.0, 2.5], True), ([1.0, 1.5], False)])
def test_alpha_rises_exactly_when_entropy_is_below_its_target(log_prob: list[float], rises: bool) -> None:
    """The entropy is -mean log π: -2.75, below H₀ = -2, and -1.25, above it."""
    log_alpha = tensor(0.3).log().squeeze().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.alpha_loss(log_alpha, tensor(*log_prob), -2.0), log_alpha)
    stepped = (log_alpha - 0.1 * gradient).exp()
    assert (stepped > log_alpha.exp()) == rises
    assert same(gradient, -0.3 * (sum(log_prob) / 2 - 2.0))


def torch_log_prob(mean: torch.Tensor, log_std: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """What torch.distributions says of tanh(u); the cache of its transform keeps atanh(tanh(u)) exact."""
    base = Independent(Normal(mean, log_std.exp()), 1)
    tanh = TanhTransform(cache_size=1)
    return TransformedDistribution(base, [tanh]).log_prob(tanh(u))


def test_squashed_gaussian_is_that_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 50, 3, generator=generator, dtype=torch.float64)
    action, log_prob = losses.squashed_gaussian(mean, log_std, noise)
    u = mean + log_std.exp() * noise
    assert same(action, u.tanh())
    assert log_prob.shape == (50,)
    assert torch.allclose(log_prob, torch_log_prob(mean, log_std, u), rtol=1e-9, atol=1e-9)


def test_squashed_gaussian_by_hand() -> None:
    """One row, two dimensions: each density is divided by da/du = 1 - a²."""
    mean, log_std, noise = tensor([0.5, -1.0]), tensor([math.log(2), math.log(0.5)]), tensor([0.25, 2.0])
    action, log_prob = losses.squashed_gaussian(mean, log_std, noise)
    density = 1.0
    for u, std, standard in ((1.0, 2.0, 0.25), (0.0, 0.5, 2.0)):
        density *= math.exp(-(standard**2) / 2) / (std * math.sqrt(2 * math.pi)) / (1 - math.tanh(u) ** 2)
    assert same(action, tensor([math.tanh(1.0), 0.0]))
    assert same(log_prob, tensor(math.log(density)))


def test_squashed_gaussian_stays_exact_where_tanh_saturates() -> None:
    """At |u| = 40, 1 - tanh²u rounds to 0; its logarithm is 2 log 2 - 2|u| to within e^-80."""
    mean = tensor([40.0, -40.0, 0.0], [-15.0, 15.0, 100.0])
    log_std, noise = torch.zeros_like(mean), torch.zeros_like(mean)
    _, log_prob = losses.squashed_gaussian(mean, log_std, noise)
    normal = -1.5 * math.log(2 * math.pi)
    far = sum(2 * math.log(2) - 2 * abs(u) for u in (15, 15, 100))
    assert same(log_prob, tensor(normal - 2 * (2 * math.log(2) - 80), normal - far))
    assert torch.allclose(log_prob, torch_log_prob(mean, log_std, mean), rtol=1e-9)


def test_squashed_gaussian_has_finite_gradients_everywhere() -> None:
    mean = torch.tensor([[-1e4, -20.0, 0.0, 20.0, 1e4]], requires_grad=True)
    _, log_prob = losses.squashed_gaussian(mean, torch.zeros_like(mean), torch.zeros_like(mean))
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    # d/du of -log(1 - tanh²u) is 2 tanh u.
    assert torch.allclose(gradient, 2 * mean.detach().tanh())


def test_smoothed_action_clips_the_noise_and_then_the_action() -> None:
    action, noise = tensor([0.1, -0.2], [0.9, -0.9]), tensor([0.5, -9.0], [9.0, 1.0])
    want = tensor([0.1 + 0.1, -0.2 - 0.5], [1.0, -0.9 + 0.2])
    assert same(losses.smoothed_action(action, noise, policy_noise=0.2, noise_clip=0.5), want)


def test_critic_metrics() -> None:
    metrics = losses.critic_metrics(ENSEMBLE.requires_grad_(), tensor(2.0, 2.0, 1.0))
    assert {tag: value.item() for tag, value in metrics.items()} == pytest.approx(
        {
            "losses/td_loss": (1 + 4 + 9 + 1 + 0 + 36) / 6,
            "values/q_mean": 0.5,
            "values/q_min": -5.0,
            "values/q_max": 4.0,
            "values/target_mean": 5 / 3,
        }
    )
    assert not any(value.requires_grad for value in metrics.values())
