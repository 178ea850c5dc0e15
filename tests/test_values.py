"""Value heads: every loss against numbers worked out by hand, and what agents with them learn of a random chain."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from rl_runner import losses
from rl_runner.envs import Spec
from rl_runner.errors import UserError
from rl_runner.networks import MLP
from rl_runner.replay import Batch
from rl_runner.values import Categorical, Quantile, critic_report

pytestmark = pytest.mark.usefixtures("float64")


def near(got: Tensor, want: Any, tolerance: float = 1e-6) -> bool:
    want = torch.as_tensor(want, dtype=got.dtype)
    return got.shape == want.shape and torch.allclose(got, want, rtol=0, atol=tolerance)


def ones(n: int) -> Tensor:
    return torch.ones(n)


# The arithmetic


def test_projection_keeps_mass_and_mean() -> None:
    prob, z = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([-1.0, 0.0, 1.0])
    m = losses.project(prob, torch.tensor([0.25]), torch.tensor([0.5]), z)  # T z = -.25, .25, .75
    assert near(m, [[0.05, 0.5, 0.45]])
    assert near(m @ z, [0.4])  # .25 + .5 · .3


@pytest.mark.parametrize(("reward", "want"), [(1.0, [0, 0, 1]), (5.0, [0, 0, 1]), (0.0, [0, 1, 0]), (-9.0, [1, 0, 0])])
def test_projection_of_a_terminal_reward_on_an_atom_or_beyond_the_ends(reward: float, want: list[float]) -> None:
    prob = torch.tensor([[0.2, 0.3, 0.5]])
    m = losses.project(prob, torch.tensor([reward]), torch.tensor([0.0]), torch.tensor([-1.0, 0.0, 1.0]))
    assert near(m, [want])


@pytest.mark.parametrize("atoms", [2, 51, 101])
def test_projection_loses_no_mass_in_single_precision(atoms: int) -> None:
    stream = torch.Generator().manual_seed(0)
    prob = torch.rand(64, atoms, generator=stream, dtype=torch.float32).softmax(-1)
    reward = torch.randint(-10, 11, (64,), generator=stream).float()  # many fall on atoms
    m = losses.project(prob, reward, torch.full((64,), 0.99).float(), torch.linspace(-10, 10, atoms).float())
    assert near(m.double().sum(-1), ones(64), 1e-5)
    assert m.min() >= 0


def test_the_bonus_is_discounted() -> None:
    value = Categorical(atoms=3, v_min=-1, v_max=1)
    sure_of_one = torch.tensor([[-1e3, -1e3, 0.0]])
    m = value.target(torch.zeros(1), torch.tensor([0.5]), sure_of_one, bonus=torch.tensor([-0.5]))  # T z = .25
    assert near(m, [[0.0, 0.75, 0.25]])
    y = Quantile(quantiles=2, kappa=1, drop=None).target(
        torch.ones(1), torch.tensor([0.5]), torch.tensor([[1.0, 3.0]]), bonus=torch.tensor([-0.5])
    )
    assert near(y, [[1.25, 2.25]])


def test_cross_entropy_of_equal_logits_is_ln_k_and_its_kl_lacks_the_entropy() -> None:
    m = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    assert near(losses.categorical_loss(torch.full((2, 3), 7.0), m, ones(2)), math.log(3))
    entropy = -(0.2 * math.log(0.2) + 0.3 * math.log(0.3) + 0.5 * math.log(0.5))
    assert near(losses.categorical_error(torch.full((2, 3), 7.0), m), [math.log(3) - entropy, math.log(3)])
    assert near(losses.categorical_error(m[:1].log(), m[:1]), [0.0])


def test_losses_weigh_rows_and_sum_over_critics() -> None:
    weight, m = torch.tensor([2.0, 0.5]), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    logits = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [[0.0, 0.0, 3.0], [1.0, 1.0, 0.0]]])
    alone = [[losses.categorical_loss(logits[e, b : b + 1], m[b : b + 1], ones(1)) for b in (0, 1)] for e in (0, 1)]
    want = sum((2.0 * first + 0.5 * second) / 2 for first, second in alone)
    assert near(losses.categorical_loss(logits, m, weight), want)
    alone = [[losses.quantile_loss(logits[e, b : b + 1], m[b : b + 1], ones(1), 0.7) for b in (0, 1)] for e in (0, 1)]
    want = sum((2.0 * first + 0.5 * second) / 2 for first, second in alone)
    assert near(losses.quantile_loss(logits, m, weight, 0.7), want)


def test_quantile_loss_sums_over_estimates_and_averages_over_targets() -> None:
    theta, y = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 2.0]])
    # δ: .5, 2 | -.5, 1; Huber .125, 1.5 | .125, .5; |τ - 1{δ < 0}|: .25, .25 | .25, .75
    assert near(losses.quantile_loss(theta, y, ones(1), 1.0), 0.40625)
    assert near(losses.quantile_error(theta, y), [1.0])
    three = torch.tensor([[0.5, 2.0, 2.0]])  # targets need not be as many as estimates
    assert near(losses.quantile_loss(theta, three, ones(1), 1.0), (0.03125 + 0.375 + 0.375 + 0.03125 + 2 * 0.375) / 3)


def test_truncation_cuts_the_pool() -> None:
    pool = torch.tensor([[[1.0, 4.0, 2.0]], [[0.0, 5.0, 3.0]]])
    assert near(losses.truncate(pool, 1), [[0.0, 1.0, 2.0, 3.0]])
    assert near(losses.truncate(pool, 0), [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    one_is_higher = torch.tensor([[[0.0, 1.0, 2.0]], [[7.0, 8.0, 9.0]]])
    assert near(losses.truncate(one_is_higher, 1), [[0.0, 1.0, 2.0, 7.0]])  # two of the second's, none of the first's


def test_pessimism_takes_rows_and_not_atoms() -> None:
    out = torch.tensor([[[0.0, 2.0], [3.0, 1.0]], [[1.0, 3.0], [-1.0, 3.0]]])  # means 1, 2 and 2, 1
    assert near(losses.min_by_mean(out, out.mean(-1)), [[0.0, 2.0], [-1.0, 3.0]])
    assert near(Quantile(quantiles=2, kappa=1, drop=None).pessimistic(out), [[0.0, 2.0], [-1.0, 3.0]])
    value = Categorical(atoms=2, v_min=0, v_max=1)  # means σ(2), σ(-2) and σ(2), σ(4)
    assert near(value.pessimistic(out), [[0.0, 2.0], [3.0, 1.0]])
    population = torch.stack([out, -out])  # a leading axis of its own
    lowest = losses.min_by_mean(population, population.mean(-1))
    assert near(lowest[0], [[0.0, 2.0], [-1.0, 3.0]])
    assert near(lowest[1], [[-1.0, -3.0], [-3.0, -1.0]])
    assert near(losses.truncate(population, 1)[1], [[-3.0, -2.0], [-3.0, -3.0]])


def test_what_is_logged_is_in_the_units_of_returns() -> None:
    value = Categorical(atoms=3, v_min=-10, v_max=10)
    logits, target = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]])  # means -2.5 and 2.5
    metrics, error = critic_report(value, logits, target)
    assert metrics["losses/td_loss"].item() == pytest.approx(25.0)
    assert metrics["values/target_mean"].item() == pytest.approx(2.5)
    assert metrics["values/q_mean"].item() == pytest.approx(-2.5)
    assert metrics["values/target_at_bounds"].item() == pytest.approx(0.75)
    assert error.item() == pytest.approx(0.25 * math.log(2))  # Σ m log(m/p) = (-.25 + 0 + .5) ln 2
    metrics, error = critic_report(Quantile(quantiles=2, kappa=1, drop=None), target[:, :2], torch.tensor([[1.0, 2.0]]))
    assert metrics["losses/td_loss"].item() == pytest.approx(1.25**2)
    assert error.item() == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (functools.partial(Categorical, atoms=5, v_min=None, v_max=1), "value.v_min=-100 value.v_max=100"),
        (functools.partial(Categorical, atoms=5, v_min=2, v_max=2), "value.v_min=2: must be less than value.v_max=2"),
        (
            functools.partial(Quantile, quantiles=3, kappa=1, drop=3),
            "value.drop=3: must be less than value.quantiles",
        ),
    ],
)
def test_a_head_that_cannot_be_is_refused(head: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        head()


# What is learned: a chain of two states, s' by P(s'|s), r by s and s', γ = 1/2, as one weighted batch of all there is

P = [[0.5, 0.5], [0.25, 0.75]]
R = [[0.0, 4.0], [2.0, -2.0]]
GAMMA = 0.5
CHAIN = Batch(
    obs=torch.eye(2)[[0, 0, 1, 1]].double(),
    action=torch.zeros(4, dtype=torch.int64),
    reward=torch.tensor(R).flatten().double(),
    discount=torch.full((4,), GAMMA).double(),
    next_obs=torch.eye(2)[[0, 1, 0, 1]].double(),
    weight=torch.tensor(P).flatten().double(),
    index=torch.arange(4),
)
# V = R̄ + γ P V with R̄ = (2, -1): (.75 V₀ - .25 V₁, -.125 V₀ + .625 V₁) = (2, -1)
V = (2 * 0.625 - 0.25) / 0.4375, (2 * 0.125 - 0.75) / 0.4375


def learned(make_agent: Any, head: Any, lr: float = 0.1) -> Tensor:
    """The outputs [2, K] of a table behind DQN, target copies every 40 updates, rates falling to 0."""
    spec = Spec((2,), torch.float64, None, 1, None, 1, None)
    table = functools.partial(MLP, hidden=[], activation="relu", norm="none")
    adam = functools.partial(torch.optim.Adam, lr=lr)
    agent = make_agent(
        "dqn", spec=spec, network=table, optimizer=adam, value=head, gamma=GAMMA, batch_size=4, target_every=40
    )
    for step in range(800):
        agent.optimizer.param_groups[0]["lr"] = lr * (1 - step / 800) ** 2
        agent.update(CHAIN, step)
    return agent.q(torch.eye(2))[:, 0].detach()


def test_categorical_means_of_a_chain_are_exact(make_agent: Any) -> None:
    head = functools.partial(Categorical, atoms=13, v_min=-4, v_max=8)  # all returns there can be
    out = learned(make_agent, head, lr=1.0)
    assert near(head().mean(out), V, 1e-3)


def chain_fixed_point(quantiles: int, kappa: float) -> Tensor:
    """θ = argmin E ρ(r + γ θ' - θ), each θ_i by numerical minimisation, until nothing moves."""
    theta = [[0.0] * quantiles for _ in P]
    for _ in range(25):
        old = [list(row) for row in theta]
        for s in range(2):
            y = [(P[s][n] / quantiles, R[s][n] + GAMMA * old[n][j]) for n in range(2) for j in range(quantiles)]
            theta[s] = [minimiser(y, (i + 0.5) / quantiles, kappa) for i in range(quantiles)]
    return torch.tensor(theta)


def minimiser(y: list[tuple[float, float]], tau: float, kappa: float) -> float:
    def rho(theta: float) -> float:
        total = 0.0
        for weight, value in y:
            size = abs(value - theta)
            huber = 0.5 * size**2 if size <= kappa else kappa * (size - 0.5 * kappa)
            total += weight * abs(tau - (value < theta)) * huber
        return total

    return minimize_scalar(rho, bounds=(-10, 10), method="bounded", options={"xatol": 1e-6}).x


def test_quantiles_of_a_chain_with_a_large_kappa_are_their_own_fixed_point(make_agent: Any) -> None:
    out = learned(make_agent, functools.partial(Quantile, quantiles=4, kappa=1.0, drop=None))
    assert near(out, chain_fixed_point(4, 1.0), 1e-2)


def test_quantile_means_of_a_chain_are_right_with_a_small_kappa(make_agent: Any) -> None:
    out = learned(make_agent, functools.partial(Quantile, quantiles=40, kappa=0.01, drop=None))
    assert out.mean(-1).tolist() == pytest.approx(V, rel=0.02)


def fitted(sample: Tensor, quantiles: int, kappa: float) -> Tensor:
    theta = torch.zeros(1, quantiles, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    for step in range(800):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 800) ** 2
        optimizer.zero_grad()
        losses.quantile_loss(theta, sample.unsqueeze(0), ones(1), kappa).backward()
        optimizer.step()
    return theta.detach()[0]


def test_quantiles_of_a_sample() -> None:
    sample = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0])  # five values of probability 1/5: their midpoints are themselves
    assert fitted(sample, 5, 0.01).tolist() == pytest.approx(sample.tolist(), rel=0.02)
    coin = torch.tensor([0.0, 1.0])
    assert near(fitted(coin, 2, 1.0), [0.25, 0.75], 1e-3)  # with κ as large as the spread an expectile
