"""Discrete SAC, Munchausen DQN and noisy networks: hand-computed values, and one update against loops and scalars."""

import functools
import math
from itertools import product
from typing import Any

import pytest
import torch
from scipy import stats
from test_updates import (
    LAYERS,
    LR,
    assert_metrics,
    assert_same,
    average,
    batch_of,
    descend,
    follow,
    net,
    record_noise,
    scramble,
    square,
)
from test_value_updates import HEADS, LiteralQuantile, report
from torch import Tensor

from rl_runner import losses
from rl_runner.networks import MLP, Dueling, Linear
from rl_runner.persistence.checkpoint import state_of
from rl_runner.values import Scalar, soft_target

pytestmark = pytest.mark.usefixtures("float64")
ACTIONS = range(4)


class LiteralScalar:
    """The expected return itself."""

    make, outputs = Scalar, 1

    def mean(self, out: Tensor) -> Tensor:
        return out[0]

    def lowest(self, outs: list[Tensor]) -> Tensor:
        return min(outs, key=self.mean)

    def target(self, r: Tensor, discount: Tensor, out: Tensor, bonus: float = 0.0) -> list[Any]:
        return [(r + discount * (out[0] + bonus)).item()]

    def target_mean(self, y: list[Any]) -> Any:
        return y[0]

    def loss(self, out: Tensor, y: list[Any]) -> Tensor:
        return square(y[0] - out[0])

    def error(self, out: Tensor, y: list[Any]) -> float:
        return abs(y[0] - out[0].item())

    def metrics(self, targets: list[list[Any]]) -> dict[str, float]:
        return {}


ALL: dict[str, Any] = {"scalar": LiteralScalar()} | HEADS
WITH_DROP = ALL | {"drop-1": LiteralQuantile(1)}


def softmax(logits: Any) -> list[Any]:
    weights = [math.exp(x) if isinstance(x, float) else torch.exp(x) for x in logits]
    return [weight / sum(weights) for weight in weights]


def mixed(head: Any, r: Any, discount: Any, outs: Any, law: list[Any], temperature: float) -> list[Any]:
    """Σ_a π(a) of each number of the target of action a, with its bonus -τ log π(a)."""
    each = [head.target(r, discount, outs[a], -temperature * math.log(law[a])) for a in ACTIONS]
    return [sum(float(law[a]) * each[a][k] for a in ACTIONS) for k in range(len(each[0]))]


# By hand


def test_soft_value_of_discrete_actions_by_hand() -> None:
    q, log_prob = torch.tensor([[[1.0, 2.0]], [[2.0, 1.0]]]), torch.tensor([[0.25, 0.75]]).log()
    value = functools.partial(losses.discrete_soft_value, q, log_prob, 0.5)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert value().tolist() == pytest.approx([1 + 0.5 * entropy])
    assert value().item() == pytest.approx(1.281168, abs=1e-6)
    assert value("mean").item() == pytest.approx(1.781168, abs=1e-6)
    target = soft_target(Scalar(), torch.tensor([3.0]), torch.tensor([0.9]), q.amin(0).mT.unsqueeze(-1), log_prob, 0.5)
    assert target.item() == pytest.approx(3 + 0.9 * 1.281168, abs=1e-6)


def munchausen_target(q: Tensor, next_q: Tensor, action: int, munchausen: float, tau: float) -> float:
    """The target of scalar values `[1, A]`, with r = 1 and γ = 0.5."""
    log_prob, next_log_prob = ((values / tau).log_softmax(-1) for values in (q, next_q))
    reward = 1 + munchausen * losses.munchausen_bonus(log_prob, torch.tensor([action]), tau, -1.0)
    return soft_target(Scalar(), reward, torch.tensor([0.5]), next_q.mT.unsqueeze(-1), next_log_prob, tau).item()


def test_munchausen_target_by_hand() -> None:
    """τ log π = (-.313262, -1.313262); the latter is clipped to -1. logsumexp(1, 0) = 1.313262."""
    q = torch.tensor([[1.0, 0.0]])
    assert munchausen_target(q, q, 1, 0.9, 1.0) == pytest.approx(1 - 0.9 + 0.5 * 1.313262, abs=1e-6)
    assert munchausen_target(q, q, 1, 0.9, 1.0) == pytest.approx(0.756631, abs=1e-6)
    assert munchausen_target(q, q, 0, 0.9, 1.0) == pytest.approx(1.374695, abs=1e-6)


@pytest.mark.parametrize("tau", [0.03, 0.7, 5.0])
def test_the_soft_value_is_a_logsumexp(tau: float) -> None:
    q = torch.tensor([[1.0, -2.0, 0.3, 0.9]])
    assert munchausen_target(q, q, 0, 0.0, tau) == pytest.approx(1 + 0.5 * tau * (q / tau).logsumexp(-1).item())


def test_without_bonus_and_temperature_it_is_the_target_of_dqn() -> None:
    q, next_q = torch.tensor([[1.0, -2.0, 0.3, 0.9]]), torch.tensor([[-1.0, 2.0, 1.3, 0.9]])
    assert munchausen_target(q, next_q, 2, 0.0, 1e-9) == pytest.approx(1 + 0.5 * 2.0, abs=1e-6)


def test_noise_of_a_layer_by_hand() -> None:
    """f(4) = 2, f(-9) = -3, f(1) = 1: W = .1 (2, -3), b = .1, and (1, 2) becomes .2 - .6 + .1."""
    layer = Linear(2, 1, noisy=0.1)
    assert layer.weight_std.flatten().tolist() == pytest.approx([0.1 / math.sqrt(2)] * 2)  # σ₀ / √in
    assert layer.bias_std.item() == pytest.approx(0.1 / math.sqrt(2))
    for p in layer.parameters():
        p.data.fill_(0.1)
    layer.weight.data.zero_()
    layer.bias.data.zero_()
    x, noise = torch.tensor([[1.0, 2.0]]), torch.tensor([4.0, -9.0, 1.0])
    assert layer(x, noise).item() == pytest.approx(-0.3)
    assert layer(x).item() == 0
    lead = Linear(2, 1, (3,), noisy=0.1)
    for p, single in zip(lead.parameters(), layer.parameters(), strict=True):
        p.data.copy_(single.data)
    assert lead(x, torch.stack([noise, 0 * noise, -noise])).flatten().tolist() == pytest.approx([-0.3, 0.0, -0.5])


# Discrete SAC

OPTIONS: list[dict[str, Any]] = [
    {},
    {"target_entropy": 1.3, "alpha_lr": 0.01, "actor_lr": 0.03},
    {"alpha": 0.2, "actor_reduce": "mean", "critics": 3},
    {"max_grad_norm": 0.1, "critics": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "defaults")
@pytest.mark.parametrize("head", WITH_DROP.values(), ids=WITH_DROP)
def test_discrete_sac(make_agent: Any, head: Any, options: dict[str, Any]) -> None:
    agent = make_agent("discrete_sac", value=head.make, **options)
    p = scramble(agent)
    members, max_norm, alpha = range(options.get("critics", 2)), options.get("max_grad_norm"), options.get("alpha", 0.4)
    H0, K = options.get("target_entropy", agent.target_entropy), head.outputs
    for step in range(3):
        batch = batch_of(step, discrete=True)
        metrics, td_error = agent.update(batch, step)

        targets = []
        for b in range(5):
            s = batch.next_obs[b]
            law = softmax(net(p["actor"], s).tolist())
            outs = [net(p["target_critics"], s, e).detach().split(K) for e in members]
            lowest = [head.lowest([out[a] for out in outs]) for a in ACTIONS]
            targets.append(mixed(head, batch.reward[b], batch.discount[b], lowest, law, alpha))
        outs = [net(p["critics"], batch.obs[b], e).split(K)[batch.action[b]] for e in members for b in range(5)]
        terms = [average([batch.weight[b] * head.loss(outs[5 * e + b], targets[b]) for b in range(5)]) for e in members]
        wanted, errors = report(head, outs, targets)
        p["critics"], wanted["grads/critic_norm"] = descend(sum(terms), p["critics"], max_norm)

        terms, entropies = [], []
        for s in batch.obs:
            law = softmax(net(p["actor"], s))
            outs = [net(p["critics"], s, e).detach().split(K) for e in members]
            term = 0.0
            for a in ACTIONS:
                opinions = [head.mean(out[a]) for out in outs]
                q = average(opinions) if options.get("actor_reduce") == "mean" else min(opinions)
                term = term + law[a] * (alpha * torch.log(law[a]) - q)
            terms.append(term)
            entropies.append(-sum(x * math.log(x) for x in softmax(net(p["actor"], s).tolist())))
        wanted |= {"losses/actor_loss": average(terms).item(), "policy/entropy": average(entropies)}
        actor_lr = options.get("actor_lr", LR)
        p["actor"], wanted["grads/actor_norm"] = descend(average(terms), p["actor"], max_norm, actor_lr)
        wanted["policy/alpha"] = alpha
        if "alpha" not in options:
            J = average([alpha * (entropy - H0) for entropy in entropies])  # dJ/d log α = J
            wanted["losses/alpha_loss"] = J
            alpha = math.exp(math.log(alpha) - options.get("alpha_lr", LR) * J)
        p["target_critics"] = follow(p["target_critics"], p["critics"], 0.3)

        assert_same(agent, p)
        assert agent.log_alpha.exp().item() == pytest.approx(alpha, rel=1e-9)
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx(errors)


def test_discrete_sac_acts_by_its_own_law(make_agent: Any) -> None:
    agent = make_agent("discrete_sac")
    obs = torch.randn(3).expand(20_000, 3)
    law = agent.actor(obs[:1]).exp().detach()[0]
    assert law.sum().item() == pytest.approx(1)
    for action in (agent.explore(obs, 0, None), agent.critique(obs, torch.Generator().manual_seed(5))[0]):
        assert stats.chisquare(torch.bincount(action, minlength=4), 20_000 * law).pvalue > 1e-4
    assert agent.act(obs).unique().tolist() == [law.argmax()]


def test_discrete_sac_values_the_action_that_it_returns(make_agent: Any) -> None:
    agent = make_agent("discrete_sac", value=HEADS["quantile"].make)
    p, obs = scramble(agent), torch.randn(9, 3)
    action, q, bonus = agent.critique(obs, torch.Generator().manual_seed(3))
    assert len(set(action.tolist())) > 1
    for b in range(9):
        outs = [net(p["critics"], obs[b], e).split(3)[action[b]] for e in range(2)]
        assert q[b].item() == pytest.approx(average([average(out.tolist()) for out in outs]))
        assert bonus[b].item() == pytest.approx(-0.4 * math.log(softmax(net(p["actor"], obs[b]).tolist())[action[b]]))


@pytest.mark.parametrize(("share", "rises"), [(0.999, True), (0.5, False)])
def test_the_temperature_rises_exactly_when_the_entropy_is_below_its_target(
    make_agent: Any, share: float, rises: bool
) -> None:
    agent = make_agent("discrete_sac", target_entropy=share * math.log(4))
    before = agent.log_alpha.item()
    metrics, _ = agent.update(batch_of(0, discrete=True), 0)
    assert 0.5 * math.log(4) < metrics["policy/entropy"] < 0.999 * math.log(4)
    assert (agent.log_alpha.item() > before) == rises


def test_a_temperature_that_runs_away_is_told_once(make_agent: Any) -> None:
    agent = make_agent("discrete_sac", target_entropy=1.2)
    assert agent.doubt({"policy/alpha": 99.0, "policy/entropy": 1.0}) is None
    assert agent.doubt({"policy/alpha": 101.0, "policy/entropy": 1.3}) is None
    assert agent.doubt({"charts/SPS": 7.0}) is None
    said = agent.doubt({"policy/alpha": 101.0, "policy/entropy": 1.1})
    assert "set algo.target_entropy lower" in said
    assert "1.1" in said
    assert "\n" not in said
    assert agent.doubt({"policy/alpha": 101.0, "policy/entropy": 1.1}) is None
    fixed = make_agent("discrete_sac", alpha=200.0)
    assert fixed.doubt({"policy/alpha": 200.0, "policy/entropy": 0.1}) is None


# Munchausen DQN


@pytest.mark.parametrize("head", ALL.values(), ids=ALL)
@pytest.mark.parametrize(("temperature", "minimum", "target_update"), [(0.6, -1.0, "polyak"), (0.03, -0.5, "hard")])
def test_munchausen(make_agent: Any, head: Any, temperature: float, minimum: float, target_update: str) -> None:
    keys = {"munchausen": 0.7, "temperature": temperature, "log_pi_min": minimum, "target_update": target_update}
    agent = make_agent("dqn", value=head.make, **keys)
    p = scramble(agent)
    K, clipped = head.outputs, 0
    for step in range(3):
        batch = batch_of(step, discrete=True)
        metrics, td_error = agent.update(batch, step)
        targets = []
        for b in range(5):
            outs, next_outs = (net(p["target_q"], s[b]).detach().split(K) for s in (batch.obs, batch.next_obs))
            law, next_law = (
                [max(float(x), 1e-300) for x in softmax([head.mean(out) / temperature for out in both])]
                for both in (outs, next_outs)
            )
            bonus = temperature * math.log(law[batch.action[b]])
            clipped += bonus < minimum
            reward = batch.reward[b] + 0.7 * max(bonus, minimum)
            targets.append(mixed(head, reward, batch.discount[b], next_outs, next_law, temperature))
        outs = [net(p["q"], batch.obs[b]).split(K)[batch.action[b]] for b in range(5)]
        wanted, errors = report(head, outs, targets)
        loss = average([batch.weight[b] * head.loss(outs[b], targets[b]) for b in range(5)])
        p["q"], wanted["grads/q_norm"] = descend(loss, p["q"])
        if target_update == "polyak":
            p["target_q"] = follow(p["target_q"], p["q"], 0.3)
        assert_same(agent, p)
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx(errors)
    assert clipped, "the data must exercise the bound"


# Noisy networks

NOISY = functools.partial(MLP, hidden=[7, 6], activation="relu", norm="none", noisy=0.5)


def noisy_net(params: Any, x: Tensor, noise: Tensor) -> Tensor:
    """The same with noise: every weight and bias apart."""
    f = [math.copysign(math.sqrt(abs(e)), e) for e in noise.tolist()]
    for layer in LAYERS:
        mean, std = params[f"{layer}.weight"], params[f"{layer}.weight_std"]
        bias, bias_std = params[f"{layer}.bias"][0], params[f"{layer}.bias_std"][0]
        rows, columns = mean.shape
        into, out, f = f[:rows], f[rows : rows + columns], f[rows + columns :]
        units = []
        for j in range(columns):
            weighted = [(mean[i, j] + std[i, j] * into[i] * out[j]) * x[i] for i in range(rows)]
            units.append(sum(weighted) + bias[j] + bias_std[j] * out[j])
        x = torch.stack(units)
        if layer != LAYERS[-1]:
            x = torch.stack([unit if unit > 0 else 0 * unit for unit in x])
    assert not f
    return x


@pytest.mark.parametrize(("head", "double"), product(ALL.values(), [False, True]))
def test_noisy_dqn(make_agent: Any, head: Any, double: bool) -> None:
    agent = make_agent("dqn", value=head.make, network=NOISY, double=double)
    p = scramble(agent)
    recorded, K = record_noise(agent), head.outputs
    for step in range(2):
        batch = batch_of(step, discrete=True)
        metrics, td_error = agent.update(batch, step)
        noise, judge_noise, target_noise = recorded[-1]
        targets, outs = [], []
        for b in range(5):
            s = batch.next_obs[b]
            target = noisy_net(p["target_q"], s, target_noise).detach().split(K)
            judge = noisy_net(p["q"], s, judge_noise).detach().split(K) if double else target
            values = [head.mean(out).item() for out in judge]
            targets.append(head.target(batch.reward[b], batch.discount[b], target[values.index(max(values))]))
            outs.append(noisy_net(p["q"], batch.obs[b], noise).split(K)[batch.action[b]])
        wanted, errors = report(head, outs, targets)
        loss = average([batch.weight[b] * head.loss(outs[b], targets[b]) for b in range(5)])
        p["q"], wanted["grads/q_norm"] = descend(loss, p["q"])
        assert_same(agent, p)
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx(errors)


def test_noisy_munchausen_takes_both_policies_from_one_draw(make_agent: Any) -> None:
    agent = make_agent("dqn", network=NOISY, munchausen=0.9, temperature=0.5)
    p, recorded = scramble(agent), record_noise(agent)
    batch = batch_of(0, discrete=True)
    metrics, _ = agent.update(batch, 0)
    targets = []
    for b in range(5):
        values = [noisy_net(p["target_q"], s[b], recorded[-1][2]) for s in (batch.obs, batch.next_obs)]
        bonus = 0.5 * math.log(softmax(values[0] / 0.5)[batch.action[b]])
        soft = 0.5 * (values[1] / 0.5).logsumexp(0).item()
        targets.append(batch.reward[b] + 0.9 * max(bonus, -1.0) + batch.discount[b] * soft)
    assert metrics["values/target_mean"].item() == pytest.approx(average(targets).item())


def test_each_network_learns_with_its_own_draw_of_noise_for_the_whole_batch(make_agent: Any) -> None:
    agent = make_agent("dqn", network=NOISY)
    recorded = record_noise(agent)
    for step in range(100):
        agent.update(batch_of(0, discrete=True), step)
    noise = torch.stack([torch.stack(draws) for draws in recorded])
    assert noise.shape == (100, 3, 3 + 7 + 7 + 6 + 6 + 4)
    assert len(noise.unique()) == noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_a_noisy_network_explores_with_one_draw_for_each_step_and_is_judged_without(make_agent: Any) -> None:
    agent = make_agent("dqn", network=NOISY, epsilon_min=0.0, epsilon_fraction=0.0)
    obs, first = torch.randn(3).expand(50, 3), torch.zeros(50, dtype=torch.bool)
    steps = [agent.explore(obs, 1, first) for _ in range(200)]
    assert all(len(actions.unique()) == 1 for actions in steps), "all environments act by one draw"
    assert len(torch.stack(steps).unique()) > 1, "another step, another draw"
    for p in (p for name, p in agent.q.named_parameters() if name.endswith("_std")):
        p.data.mul_(1e3)
    without = net(dict(agent.q.named_parameters()), obs[0])
    assert agent.act(obs).tolist() == [without.argmax()] * 50
    assert agent.critique(obs, torch.Generator())[1].tolist() == pytest.approx([without.max().item()] * 50)


def test_a_noisy_dueling_network_has_noise_in_every_layer() -> None:
    dueling = Dueling(n_in=3, n_out=8, hidden=[5], activation="tanh", norm="layer", noisy=0.5, outputs=2)
    assert dueling.noise_sizes == [3 + 5, 5 + 8, 5 + 2]
    x, noise = torch.randn(6, 3), torch.randn(dueling.n_noise)
    hidden, output, value = noise.split(dueling.noise_sizes)
    trunk = torch.tanh(dueling.norms[0](dueling.hidden[0](x, hidden)))
    advantage = dueling.output(trunk, output).unflatten(-1, (4, 2))
    wanted = dueling.value(trunk, value).unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)
    assert torch.allclose(dueling(x, noise=noise), wanted.flatten(-2))
    assert not torch.allclose(dueling(x), dueling(x, noise=noise), atol=1e-3)


def test_only_a_noisy_agent_saves_a_second_stream(make_agent: Any) -> None:
    assert "sampling" not in state_of(make_agent("dqn"))
    assert "sampling" in state_of(make_agent("dqn", network=NOISY))
