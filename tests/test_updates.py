"""One update of each algorithm against a literal transcription of its paper: sample by sample, plain gradient descent.

The transcriptions share nothing with the code under test but the parameters to start from and the noise.
"""

import functools
import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl_runner.algos.q_learning import QLearning
from rl_runner.envs import Spec
from rl_runner.networks import MLP
from rl_runner.persistence.checkpoint import load_state, state_of
from rl_runner.replay import Batch

Params = dict[str, Tensor]
LAYERS = ("net.hidden.0", "net.hidden.1", "net.output")
LR = 0.1

pytestmark = pytest.mark.usefixtures("float64")


# The agents under test


def scramble(agent: Any) -> dict[str, Params]:
    """Give every network of an agent, targets too, parameters of its own, and return copies of them."""
    stream = torch.Generator().manual_seed(0)
    for module in vars(agent).values():
        for p in module.parameters() if isinstance(module, nn.Module) else ():
            p.data.normal_(0, 0.8, generator=stream)
    return parameters_of(agent)


def parameters_of(agent: Any) -> dict[str, Params]:
    modules = {name: value for name, value in vars(agent).items() if isinstance(value, nn.Module)}
    return {
        name: {key: p.detach().clone().requires_grad_() for key, p in module.named_parameters()}
        for name, module in modules.items()
    }


def batch_of(seed: int, discrete: bool) -> Batch:
    """Five transitions: one-step and n-step discounts, a terminal row, and weights that are not 1."""
    stream = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, 5, 3, generator=stream)
    action = torch.randint(4, (5,), generator=stream) if discrete else torch.rand(5, 2, generator=stream) * 2 - 1
    return Batch(
        obs=obs,
        action=action,
        reward=3 * torch.randn(5, generator=stream),
        discount=torch.tensor([0.9, 0.0, 0.81, 0.9, 0.729]),
        next_obs=next_obs,
        weight=torch.tensor([1.0, 0.5, 2.0, 0.25, 1.5]),
        index=torch.arange(5),
    )


def record_noise(agent: Any) -> list[tuple[Any, ...]]:
    """A list to which every update adds the noise that it passes to `learn`."""
    recorded, learn = [], agent.learn

    def spy(batch: Batch, *noise: Any) -> Any:
        recorded.append(noise)
        return learn(batch, *noise)

    agent.learn = spy
    return recorded


def assert_same(agent: Any, networks: dict[str, Params]) -> None:
    for name, params in networks.items():
        for parameter, value in getattr(agent, name).named_parameters():
            assert torch.allclose(value, params[parameter], rtol=1e-8, atol=1e-9), f"{name}.{parameter}"


def assert_metrics(metrics: dict[str, Tensor], wanted: dict[str, float]) -> None:
    assert {tag: value.item() for tag, value in metrics.items()} == pytest.approx(wanted, rel=1e-9)
    assert not any(value.requires_grad or value.dim() for value in metrics.values())


# What the transcriptions are made of


def net(params: Params, x: Tensor, member: int | None = None) -> Tensor:
    """The multilayer perceptron of one input [n], or one member of an ensemble of them."""
    for layer in LAYERS:
        weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
        if member is not None:
            weight, bias = weight[member], bias[member]
        x = x @ weight + bias[0]
        if layer != LAYERS[-1]:
            x = torch.stack([unit if unit > 0 else 0 * unit for unit in x])
    return x


def critic(params: Params, obs: Tensor, action: Tensor, member: int) -> Tensor:
    return net(params, torch.cat([obs, action]), member)[0]


def policy(params: Params, obs: Tensor) -> Tensor:
    return torch.stack([torch.tanh(component) for component in net(params, obs)])


def descend(loss: Tensor, params: Params, max_norm: float | None = None, lr: float = LR) -> tuple[Params, float]:
    """θ ← θ - lr ∇L, the gradient shortened to `max_norm`; new parameters and the norm before."""
    gradients = torch.autograd.grad(loss, list(params.values()))
    norm = math.sqrt(sum(float(component) ** 2 for gradient in gradients for component in gradient.flatten()))
    factor = 1.0 if max_norm is None or norm < max_norm else max_norm / (norm + 1e-6)
    stepped = {
        name: (p - lr * factor * gradient).detach().requires_grad_()
        for (name, p), gradient in zip(params.items(), gradients, strict=True)
    }
    return stepped, norm


def follow(target: Params, online: Params, tau: float) -> Params:
    return {name: tau * online[name].detach() + (1 - tau) * target[name] for name in target}


def square(x: Tensor) -> Tensor:
    return x * x


def smooth_l1(x: Tensor) -> Tensor:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def average(values: list[Any]) -> Any:
    return sum(values) / len(values)


def value_metrics(q: list[Tensor], targets: list[Tensor]) -> dict[str, float]:
    """Of all estimates (those of further ensemble members behind the first one's), and their targets."""
    estimates, y = [estimate.item() for estimate in q], [target.item() for target in targets]
    return {
        "losses/td_loss": average([(y[i % len(y)] - estimate) ** 2 for i, estimate in enumerate(estimates)]),
        "values/q_mean": average(estimates),
        "values/q_min": min(estimates),
        "values/q_max": max(estimates),
        "values/target_mean": average(y),
    }


def twin_critics_step(
    p: dict[str, Params], batch: Batch, y: list[Tensor], members: int, max_norm: float | None
) -> tuple[dict[str, float], list[float]]:
    """Every critic regresses on the same y; metrics and the mean |δ| of each row."""
    B = len(y)
    q = [critic(p["critics"], batch.obs[b], batch.action[b], e) for e in range(members) for b in range(B)]
    losses = [average([batch.weight[b] * square(y[b] - q[e * B + b]) for b in range(B)]) for e in range(members)]
    p["critics"], norm = descend(sum(losses), p["critics"], max_norm)
    td_error = [average([abs(y[b] - q[e * B + b]).item() for e in range(members)]) for b in range(B)]
    return value_metrics(q, y) | {"grads/critic_norm": norm}, td_error


# Tabular Q-learning


def tabular(**keys: Any) -> QLearning:
    defaults = {
        "spec": Spec((), torch.int64, 6, 3, None, 1, None), "seed": 0, "total_steps": 100, "gamma": 0.9,
        "learning_rate": 0.5, "learning_rate_decay": 0.6, "initial_q": 0.25, "epsilon_schedule": "linear",
        "epsilon_min": 0.1, "epsilon_fraction": 0.5, "epsilon_decay": 0.9,
    }  # fmt: skip
    return QLearning(**defaults | keys)


@pytest.mark.parametrize(("decay", "initial_q"), [(0.0, 0.0), (0.6, 0.25)])
def test_q_learning(decay: float, initial_q: float) -> None:
    agent = tabular(learning_rate_decay=decay, initial_q=initial_q)
    Q = [[initial_q] * 3 for _ in range(6)]
    N = [[0] * 3 for _ in range(6)]
    stream = torch.Generator().manual_seed(0)
    for step in range(300):
        s, next_s = torch.randint(6, (2, 1), generator=stream)
        a = torch.randint(3, (1,), generator=stream)
        r, discount = torch.randn(1, generator=stream), torch.tensor([0.9 * (step % 4 != 0)])
        batch = Batch(s, a, r.float(), discount, next_s, torch.ones(1), torch.zeros(1, dtype=torch.int64))
        metrics, td_error = agent.update(batch, step)

        i, j = int(s), int(a)
        N[i][j] += 1
        y = float(r.float()) + float(discount) * max(Q[int(next_s)])
        delta = y - Q[i][j]
        wanted = {"losses/td_loss": delta**2, "values/target_mean": y}
        wanted |= dict.fromkeys(("values/q_mean", "values/q_min", "values/q_max"), Q[i][j])
        Q[i][j] += 0.5 * N[i][j] ** -decay * delta
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx([abs(delta)])
    assert torch.allclose(agent.table, torch.tensor(Q), rtol=1e-9)
    assert agent.visits.tolist() == N


def test_q_learning_of_several_rows_at_once_is_synchronous() -> None:
    """Two environments in different states: both look at the table as it was."""
    agent = tabular(learning_rate_decay=0.0, initial_q=0.0)
    agent.table[1] = torch.tensor([1.0, 2.0, 3.0])
    pair = {"obs": torch.tensor([0, 1]), "action": torch.tensor([0, 2]), "next_obs": torch.tensor([1, 2])}
    rest = {"discount": torch.tensor([0.9, 0.9]), "weight": torch.ones(2), "index": torch.arange(2)}
    agent.update(Batch(reward=torch.tensor([1.0, -1.0]), **pair, **rest), 0)
    assert agent.table[0, 0].item() == pytest.approx(0.5 * (1 + 0.9 * 3))
    assert agent.table[1, 2].item() == pytest.approx(3 + 0.5 * (-1 - 3))


# DQN and Double DQN


@pytest.mark.parametrize(
    ("double", "target_update", "huber", "max_norm"),
    product([False, True], ["hard", "polyak"], [False, True], [None, 0.5]),
)
def test_dqn(make_agent: Any, double: bool, target_update: str, huber: bool, max_norm: float | None) -> None:
    keys = {"double": double, "target_update": target_update, "huber": huber, "max_grad_norm": max_norm}
    agent = make_agent("dqn", **keys)  # C = 10 steps, τ = 0.3
    p = scramble(agent)
    previous = 0
    for step in (7, 12, 12, 19, 41):
        batch = batch_of(step, discrete=True)
        metrics, td_error = agent.update(batch, step)

        if target_update == "hard" and any(t % 10 == 0 for t in range(previous + 1, step + 1)):
            p["target_q"] = dict(p["q"])
        previous = step
        y, q = [], []
        for b in range(5):
            online, target = net(p["q"], batch.next_obs[b]).tolist(), net(p["target_q"], batch.next_obs[b]).tolist()
            value = target[online.index(max(online))] if double else max(target)
            y.append(batch.reward[b] + batch.discount[b] * value)
            q.append(net(p["q"], batch.obs[b])[batch.action[b]])
        penalty = smooth_l1 if huber else square
        loss = average([batch.weight[b] * penalty(y[b] - q[b]) for b in range(5)])
        p["q"], norm = descend(loss, p["q"], max_norm)
        if target_update == "polyak":
            p["target_q"] = follow(p["target_q"], p["q"], 0.3)

        assert_same(agent, p)
        assert_metrics(metrics, value_metrics(q, y) | {"grads/q_norm": norm})
        assert td_error.tolist() == pytest.approx([abs(y[b] - q[b]).item() for b in range(5)])


# DDPG


@pytest.mark.parametrize(("max_norm", "actor_lr"), product([None, 0.1], [None, 0.03]))
def test_ddpg(make_agent: Any, max_norm: float | None, actor_lr: float | None) -> None:
    agent = make_agent("ddpg", max_grad_norm=max_norm, actor_lr=actor_lr)
    p = scramble(agent)
    for step in range(3):
        batch = batch_of(step, discrete=False)
        metrics, td_error = agent.update(batch, step)

        y = []
        for b in range(5):
            s = batch.next_obs[b]
            value = critic(p["target_critics"], s, policy(p["target_actor"], s), 0).detach()
            y.append(batch.reward[b] + batch.discount[b] * value)
        wanted, errors = twin_critics_step(p, batch, y, 1, max_norm)
        values = [critic(p["critics"], batch.obs[b], policy(p["actor"], batch.obs[b]), 0) for b in range(5)]
        wanted["losses/actor_loss"] = -average(values).item()
        p["actor"], wanted["grads/actor_norm"] = descend(-average(values), p["actor"], max_norm, actor_lr or LR)
        p["target_critics"] = follow(p["target_critics"], p["critics"], 0.3)
        p["target_actor"] = follow(p["target_actor"], p["actor"], 0.3)

        assert_same(agent, p)
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx(errors)


# TD3


@pytest.mark.parametrize(
    ("objective", "delay", "max_norm", "actor_lr"),
    [("q1", 2, None, None), ("min", 2, 0.1, None), ("q1", 1, 0.1, 0.03), ("min", 3, None, 0.03)],
)
def test_td3(make_agent: Any, objective: str, delay: int, max_norm: float | None, actor_lr: float | None) -> None:
    keys = {"actor_objective": objective, "policy_delay": delay, "max_grad_norm": max_norm, "actor_lr": actor_lr}
    agent = make_agent("td3", **keys)  # σ = 0.7, c = 0.5: much of the noise is clipped
    p = scramble(agent)
    recorded = record_noise(agent)
    clipped = 0
    for update in range(1, 5):
        batch = batch_of(update, discrete=False)
        metrics, td_error = agent.update(batch, update)
        noise, _ = recorded[-1]

        y = []
        for b in range(5):
            s, smoothed = batch.next_obs[b], []
            for mean, epsilon in zip(policy(p["target_actor"], s).tolist(), noise[b].tolist(), strict=True):
                smoothed.append(max(-1.0, min(1.0, mean + max(-0.5, min(0.5, 0.7 * epsilon)))))
                clipped += abs(smoothed[-1]) == 1.0
            both = [critic(p["target_critics"], s, torch.tensor(smoothed), e).detach() for e in range(2)]
            y.append(batch.reward[b] + batch.discount[b] * min(both))
        wanted, errors = twin_critics_step(p, batch, y, 2, max_norm)
        if update % delay == 0:
            values = []
            for s in batch.obs:
                both = [critic(p["critics"], s, policy(p["actor"], s), e) for e in range(2)]
                values.append(both[0] if objective == "q1" else min(both))
            wanted["losses/actor_loss"] = -average(values).item()
            p["actor"], wanted["grads/actor_norm"] = descend(-average(values), p["actor"], max_norm, actor_lr or LR)
            p["target_critics"] = follow(p["target_critics"], p["critics"], 0.3)
            p["target_actor"] = follow(p["target_actor"], p["actor"], 0.3)

        assert_same(agent, p)
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx(errors)
    assert clipped, "the data must exercise the clip to [-1, 1]"


def test_td3_draws_new_standard_normal_smoothing_noise_for_each_update(make_agent: Any) -> None:
    agent = make_agent("td3")
    recorded = record_noise(agent)
    for update in range(200):
        agent.update(batch_of(0, discrete=False), update)
    noise = torch.stack([row[0] for row in recorded])
    assert noise.shape == (200, 5, 2)
    assert len(noise.unique()) == noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


# SAC

SAC_OPTIONS: list[dict[str, Any]] = [
    {},
    {"target_entropy": 1.5, "alpha_lr": 0.01, "actor_lr": 0.03},
    {"alpha": 0.2},
    {"max_grad_norm": 0.1},
    {"log_std_min": -0.3, "log_std_max": 0.2},
    {"alpha": 0.7, "log_std_min": -0.3, "log_std_max": 0.2, "max_grad_norm": 0.1, "actor_lr": 0.03},
]


def sample(params: Params, obs: Tensor, noise: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    return squashed(net(params, obs), noise, low, high)


def squashed(out: Tensor, noise: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """a = tanh(u) and log π(a|s), from the density of u by the change of variables: da/du = 1 - tanh²u = 1 / cosh²u."""
    action, log_prob = [], 0.0
    for i in range(2):
        mean, log_std = out[i], out[2 + i]
        log_std = torch.tensor(low) if log_std < low else torch.tensor(high) if log_std > high else log_std
        std = log_std.exp()
        u = mean + std * noise[i]
        density = torch.exp(-square((u - mean) / std) / 2) / (std * math.sqrt(2 * math.pi))
        action.append(torch.tanh(u))
        log_prob = log_prob + torch.log(density * square(torch.cosh(u)))
    return torch.stack(action), log_prob


@pytest.mark.parametrize("options", SAC_OPTIONS, ids=lambda options: ",".join(options) or "defaults")
def test_sac(make_agent: Any, options: dict[str, Any]) -> None:
    agent = make_agent("sac", **options)
    p = scramble(agent)
    bounds = options.get("log_std_min", -5.0), options.get("log_std_max", 2.0)
    max_norm, actor_lr = options.get("max_grad_norm"), options.get("actor_lr", LR)
    learned = "alpha" not in options
    alpha = options.get("alpha", 0.4)
    H0 = options.get("target_entropy", -2.0)
    recorded = record_noise(agent)
    for step in range(3):
        batch = batch_of(step, discrete=False)
        metrics, td_error = agent.update(batch, step)
        next_noise, noise, *_ = recorded[-1]

        y = []
        for b in range(5):
            s = batch.next_obs[b]
            action, log_prob = sample(p["actor"], s, next_noise[b], *bounds)
            value = min(critic(p["target_critics"], s, action, e) for e in range(2)) - alpha * log_prob
            y.append((batch.reward[b] + batch.discount[b] * value).detach())
        wanted, errors = twin_critics_step(p, batch, y, 2, max_norm)
        terms, log_probs = [], []
        for b in range(5):
            s = batch.obs[b]
            action, log_prob = sample(p["actor"], s, noise[b], *bounds)
            terms.append(alpha * log_prob - min(critic(p["critics"], s, action, e) for e in range(2)))
            log_probs.append(log_prob.item())
        wanted |= {"losses/actor_loss": average(terms).item(), "policy/entropy": -average(log_probs)}
        p["actor"], wanted["grads/actor_norm"] = descend(average(terms), p["actor"], max_norm, actor_lr)
        wanted["policy/alpha"] = alpha
        if learned:
            J = average([-alpha * (log_prob + H0) for log_prob in log_probs])  # dJ/d log α = J
            wanted["losses/alpha_loss"] = J
            alpha = math.exp(math.log(alpha) - options.get("alpha_lr", LR) * J)
        p["target_critics"] = follow(p["target_critics"], p["critics"], 0.3)

        assert_same(agent, p)
        assert agent.log_alpha.exp().item() == pytest.approx(alpha, rel=1e-9)
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx(errors)


def test_sac_draws_new_standard_normal_noise_for_target_and_actor(make_agent: Any) -> None:
    agent = make_agent("sac")
    recorded = record_noise(agent)
    for step in range(200):
        agent.update(batch_of(0, discrete=False), step)
    noise = torch.stack([torch.stack(row[:2]) for row in recorded])
    assert noise.shape == (200, 2, 5, 2)
    assert len(noise.unique()) == noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("log_std", "rises"), [(-4.0, True), (0.0, False)])
def test_sac_raises_alpha_exactly_when_entropy_is_below_its_target(
    make_agent: Any, log_std: float, rises: bool
) -> None:
    """With nearly fixed σ the entropy is about 2 (log σ + 1.42), less a little for the tanh: -5.2 or 2.3; H₀ = -2."""
    agent = make_agent("sac", log_std_min=log_std, log_std_max=log_std + 1e-3)
    for p in agent.actor.parameters():
        p.data.mul_(0.1)
    before = agent.log_alpha.item()
    metrics, _ = agent.update(batch_of(0, discrete=False), 0)
    assert (metrics["policy/entropy"] < -2) == rises
    assert (agent.log_alpha.item() > before) == rises


# All of them


@pytest.mark.parametrize("name", ["dqn", "ddpg", "td3", "sac"])
def test_critique_is_the_estimate_of_the_action_that_it_returns(make_agent: Any, name: str) -> None:
    agent = make_agent(name)
    obs = batch_of(0, discrete=False).obs
    action, q, bonus = agent.critique(obs, torch.Generator().manual_seed(3))
    assert q.shape == bonus.shape == (5,)
    p = parameters_of(agent)
    for b in range(5):
        if name == "dqn":
            values = net(p["q"], obs[b]).tolist()
            assert (action[b].item(), q[b].item()) == (values.index(max(values)), pytest.approx(max(values)))
        else:
            members = range(1 if name == "ddpg" else 2)
            assert q[b].item() == pytest.approx(
                average([critic(p["critics"], obs[b], action[b], e).item() for e in members])
            )
    if name == "sac":
        noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
        for b in range(5):
            wanted, log_prob = sample(p["actor"], obs[b], noise[b], -5.0, 2.0)
            assert torch.allclose(action[b], wanted)
            assert bonus[b].item() == pytest.approx(-0.4 * log_prob.item())
    else:
        assert torch.equal(action, agent.act(obs))
        assert not bonus.any()


@pytest.mark.parametrize("name", ["dqn", "noisy", "discrete_sac", "ddpg", "td3", "sac"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad])
def test_an_agent_goes_on_exactly_from_its_saved_state(
    make_agent: Any, name: str, optimizer: Any, tmp_path: Any
) -> None:
    """Saved and loaded without pickle; with an optimizer whose state is ours, and with one from outside."""
    factory = functools.partial(optimizer, lr=0.05)
    layers = functools.partial(MLP, hidden=[7, 6], activation="relu", norm="none", noisy=0.5)
    keys = {"ddpg": {"noise": "ou"}, "noisy": {"network": layers, "double": True}}.get(name, {})
    kind = "dqn" if name == "noisy" else name
    agent, other = (make_agent(kind, seed=seed, optimizer=factory, **keys) for seed in (1, 2))
    discrete, obs = kind in ("dqn", "discrete_sac"), torch.randn(2, 3)
    first = torch.tensor([True, False])
    for step in range(15):
        agent.explore(obs, step, first)
        agent.update(batch_of(step, discrete), step)
    torch.save(state_of(agent), tmp_path / "state.pt")
    load_state(other, torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(15, 25):
        assert torch.equal(agent.explore(obs, step, ~first), other.explore(obs, step, ~first))
        (metrics, td_error), (others, other_error) = (a.update(batch_of(step, discrete), step) for a in (agent, other))
        assert metrics == others
        assert torch.equal(td_error, other_error)


def test_q_learning_goes_on_exactly_from_its_saved_state() -> None:
    agent, other = tabular(seed=1), tabular(seed=2)
    obs, ones = torch.tensor([0, 1]), torch.ones(2)
    batch = Batch(obs, torch.tensor([1, 2]), ones, 0.9 * ones, 1 - obs, ones, obs)
    agent.update(batch, 0)
    agent.explore(obs, 0, obs == 0)
    load_state(other, state_of(agent))
    agent.update(batch, 1)
    other.update(batch, 1)
    assert torch.equal(agent.table, other.table)
    assert torch.equal(agent.visits, other.visits)
    assert torch.equal(agent.explore(obs.repeat(50), 0, obs == 0), other.explore(obs.repeat(50), 0, obs == 0))
