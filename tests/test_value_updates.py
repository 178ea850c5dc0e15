"""One update with each value head against a literal transcription, number by number: C51, QR-DQN, TQC, D4PG, others.

The heads here are written out as their papers do: Bellemare's projection between neighbouring atoms, loops over pairs.
"""

import functools
import math
from typing import Any

import pytest
import torch
from test_updates import (
    assert_metrics,
    assert_same,
    average,
    batch_of,
    descend,
    follow,
    net,
    policy,
    record_noise,
    sample,
    scramble,
    square,
    value_metrics,
)
from torch import Tensor

from rl_runner.networks import Dueling
from rl_runner.values import Categorical, Quantile

pytestmark = pytest.mark.usefixtures("float64")


class LiteralCategorical:
    """C51 over five atoms from -3 to 5, two apart: many of the batches' returns lie beyond."""

    make, outputs, z = functools.partial(Categorical, atoms=5, v_min=-3, v_max=5), 5, (-3.0, -1.0, 1.0, 3.0, 5.0)

    def law(self, out: Tensor) -> list[Tensor]:
        weights = [torch.exp(logit) for logit in out]
        return [weight / sum(weights) for weight in weights]

    def mean(self, out: Tensor) -> Tensor:
        return self.target_mean(self.law(out))

    def lowest(self, outs: list[Tensor]) -> Tensor:
        return min(outs, key=self.mean)

    def target(self, r: Tensor, discount: Tensor, out: Tensor, bonus: float = 0.0) -> list[Any]:
        m = [0.0] * 5
        for p, z in zip(self.law(out), self.z, strict=True):
            b = (min(max(float(r + discount * (z + bonus)), -3.0), 5.0) + 3.0) / 2.0
            below, above = math.floor(b), math.ceil(b)
            if below == above:
                m[below] += p.item()
            else:
                m[below] += p.item() * (above - b)
                m[above] += p.item() * (b - below)
        return m

    def target_mean(self, m: list[Any]) -> Any:
        return sum(m[i] * self.z[i] for i in range(5))

    def loss(self, out: Tensor, m: list[Any]) -> Tensor:
        return -sum(m[i] * torch.log(p) for i, p in enumerate(self.law(out)))

    def error(self, out: Tensor, m: list[Any]) -> float:
        return sum(m[i] * math.log(m[i] / p.item()) for i, p in enumerate(self.law(out)) if m[i])

    def metrics(self, targets: list[list[Any]]) -> dict[str, float]:
        return {"values/target_at_bounds": average([m[0] + m[4] for m in targets])}


class LiteralQuantile:
    """Three quantiles, at 1/6, 1/2 and 5/6, κ = 0.7; `drop` as in TQC."""

    outputs = 3

    def __init__(self, drop: int | None = None):
        self.make, self.drop = functools.partial(Quantile, quantiles=3, kappa=0.7, drop=drop), drop

    def mean(self, out: Tensor) -> Tensor:
        return (out[0] + out[1] + out[2]) / 3

    def lowest(self, outs: list[Tensor]) -> Any:
        if self.drop is None:
            return min(outs, key=self.mean)
        return sorted(atom for out in outs for atom in out)[: len(outs) * (3 - self.drop)]

    def target(self, r: Tensor, discount: Tensor, out: Any, bonus: float = 0.0) -> list[Any]:
        return [(r + discount * (theta + bonus)).item() for theta in out]

    def target_mean(self, y: list[Any]) -> Any:
        return average(y)

    def loss(self, out: Tensor, y: list[Any]) -> Tensor:
        total = 0.0
        for i in range(3):
            for target in y:
                delta = target - out[i]
                huber = square(delta) / 2 if abs(delta) <= 0.7 else 0.7 * (abs(delta) - 0.35)
                total = total + abs((2 * i + 1) / 6 - (1.0 if delta < 0 else 0.0)) * huber / len(y)
        return total

    def error(self, out: Tensor, y: list[Any]) -> float:
        return average([abs(target - out[i].item()) for i in range(3) for target in y])

    def metrics(self, targets: list[list[Any]]) -> dict[str, float]:
        return {}


HEADS = {"categorical": LiteralCategorical(), "quantile": LiteralQuantile()}
DROPS = {"drop-0": LiteralQuantile(0), "drop-1": LiteralQuantile(1)}


def report(head: Any, outs: list[Tensor], targets: list[list[Any]]) -> tuple[dict[str, float], list[float]]:
    """Metrics and priorities of all estimates, those of further critics behind the first one's."""
    B = len(targets)
    means = [torch.tensor(float(head.target_mean(target))) for target in targets]
    metrics = value_metrics([head.mean(out) for out in outs], means) | head.metrics(targets)
    errors = [average([head.error(outs[i], targets[b]) for i in range(b, len(outs), B)]) for b in range(B)]
    return metrics, errors


def critic(params: Any, obs: Tensor, action: Tensor, member: int) -> Tensor:
    return net(params, torch.cat([obs, action]), member)


def critics_step(
    p: Any, head: Any, batch: Any, targets: list[list[Any]], members: int, max_norm: float | None = None
) -> tuple[dict[str, float], list[float]]:
    """Every critic learns the same targets; metrics and priorities."""
    outs = [critic(p["critics"], batch.obs[b], batch.action[b], e) for e in range(members) for b in range(5)]
    losses = [
        average([batch.weight[b] * head.loss(outs[5 * e + b], targets[b]) for b in range(5)]) for e in range(members)
    ]
    p["critics"], norm = descend(sum(losses), p["critics"], max_norm)
    metrics, errors = report(head, outs, targets)
    return metrics | {"grads/critic_norm": norm}, errors


def check(agent: Any, p: Any, update: tuple[Any, Any], wanted: dict[str, float], errors: list[float]) -> None:
    assert_same(agent, p)
    assert_metrics(update[0], wanted)
    assert update[1].tolist() == pytest.approx(errors)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("double", [False, True])
def test_dqn(make_agent: Any, head: Any, double: bool) -> None:
    agent = make_agent("dqn", value=head.make, double=double, max_grad_norm=0.5 if double else None)
    p = scramble(agent)
    K = head.outputs
    for step in range(3):
        batch = batch_of(step, discrete=True)
        update = agent.update(batch, step)
        targets, outs = [], []
        for b in range(5):
            online, target = (net(p[name], batch.next_obs[b]).detach().split(K) for name in ("q", "target_q"))
            values = [head.mean(out).item() for out in (online if double else target)]
            best = target[values.index(max(values))]
            targets.append(head.target(batch.reward[b], batch.discount[b], best))
            outs.append(net(p["q"], batch.obs[b]).split(K)[batch.action[b]])
        wanted, errors = report(head, outs, targets)
        loss = average([batch.weight[b] * head.loss(outs[b], targets[b]) for b in range(5)])
        p["q"], wanted["grads/q_norm"] = descend(loss, p["q"], 0.5 if double else None)
        check(agent, p, update, wanted, errors)


@pytest.mark.parametrize("head", (HEADS | DROPS).values(), ids=HEADS | DROPS)
def test_ddpg(make_agent: Any, head: Any) -> None:
    agent = make_agent("ddpg", value=head.make)
    p = scramble(agent)
    for step in range(3):
        batch = batch_of(step, discrete=False)
        update = agent.update(batch, step)
        targets = []
        for b in range(5):
            s = batch.next_obs[b]
            out = critic(p["target_critics"], s, policy(p["target_actor"], s), 0).detach()
            targets.append(head.target(batch.reward[b], batch.discount[b], head.lowest([out])))
        wanted, errors = critics_step(p, head, batch, targets, 1)
        values = [head.mean(critic(p["critics"], s, policy(p["actor"], s), 0)) for s in batch.obs]
        wanted["losses/actor_loss"] = -average(values).item()
        p["actor"], wanted["grads/actor_norm"] = descend(-average(values), p["actor"])
        for part in ("critics", "actor"):
            p[f"target_{part}"] = follow(p[f"target_{part}"], p[part], 0.3)
        check(agent, p, update, wanted, errors)


@pytest.mark.parametrize("head", (HEADS | DROPS).values(), ids=HEADS | DROPS)
@pytest.mark.parametrize("objective", ["q1", "min"])
def test_td3(make_agent: Any, head: Any, objective: str) -> None:
    agent = make_agent("td3", value=head.make, actor_objective=objective, policy_delay=1)
    p = scramble(agent)
    recorded = record_noise(agent)
    for step in range(3):
        batch = batch_of(step, discrete=False)
        update = agent.update(batch, step)
        targets = []
        for b in range(5):
            s, smoothed = batch.next_obs[b], []
            for mean, epsilon in zip(policy(p["target_actor"], s).tolist(), recorded[-1][0][b].tolist(), strict=True):
                smoothed.append(max(-1.0, min(1.0, mean + max(-0.5, min(0.5, 0.7 * epsilon)))))
            both = [critic(p["target_critics"], s, torch.tensor(smoothed), e).detach() for e in range(2)]
            targets.append(head.target(batch.reward[b], batch.discount[b], head.lowest(both)))
        wanted, errors = critics_step(p, head, batch, targets, 2)
        values = []
        for s in batch.obs:
            both = [head.mean(critic(p["critics"], s, policy(p["actor"], s), e)) for e in range(2)]
            values.append(both[0] if objective == "q1" else min(both))
        wanted["losses/actor_loss"] = -average(values).item()
        p["actor"], wanted["grads/actor_norm"] = descend(-average(values), p["actor"])
        for part in ("critics", "actor"):
            p[f"target_{part}"] = follow(p[f"target_{part}"], p[part], 0.3)
        check(agent, p, update, wanted, errors)


@pytest.mark.parametrize("head", (HEADS | DROPS).values(), ids=HEADS | DROPS)
@pytest.mark.parametrize(("members", "reduce"), [(2, "min"), (2, "mean"), (3, "mean")])
def test_sac(make_agent: Any, head: Any, members: int, reduce: str) -> None:
    agent = make_agent("sac", value=head.make, critics=members, actor_reduce=reduce, alpha=0.4)
    p = scramble(agent)
    recorded = record_noise(agent)
    for step in range(3):
        batch = batch_of(step, discrete=False)
        update = agent.update(batch, step)
        next_noise, noise, *_ = recorded[-1]
        targets = []
        for b in range(5):
            s = batch.next_obs[b]
            action, log_prob = sample(p["actor"], s, next_noise[b], -5.0, 2.0)
            lowest = head.lowest([critic(p["target_critics"], s, action, e).detach() for e in range(members)])
            targets.append(head.target(batch.reward[b], batch.discount[b], lowest, -0.4 * log_prob.item()))
        wanted, errors = critics_step(p, head, batch, targets, members)
        terms, log_probs = [], []
        for b in range(5):
            action, log_prob = sample(p["actor"], batch.obs[b], noise[b], -5.0, 2.0)
            values = [head.mean(critic(p["critics"], batch.obs[b], action, e)) for e in range(members)]
            terms.append(0.4 * log_prob - (min(values) if reduce == "min" else average(values)))
            log_probs.append(log_prob.item())
        wanted |= {"losses/actor_loss": average(terms).item(), "policy/entropy": -average(log_probs)}
        p["actor"], wanted["grads/actor_norm"] = descend(average(terms), p["actor"])
        wanted["policy/alpha"] = 0.4
        p["target_critics"] = follow(p["target_critics"], p["critics"], 0.3)
        check(agent, p, update, wanted, errors)


def test_a_dueling_network_centres_advantages_for_each_output(make_agent: Any) -> None:
    network = functools.partial(Dueling, hidden=[6], activation="relu", norm="none")
    agent = make_agent("dqn", value=HEADS["quantile"].make, network=network)
    x = torch.randn(5, 3)
    net, out = agent.q.net, agent.q(x)
    trunk = net.trunk(x)
    value, advantage = net.value(trunk), net.output(trunk)
    assert value.shape == (5, 3)
    for b in range(5):
        for k in range(3):
            mean = average([advantage[b, 3 * a + k].item() for a in range(4)])
            for a in range(4):
                wanted = value[b, k].item() + advantage[b, 3 * a + k].item() - mean
                assert out[b, a, k].item() == pytest.approx(wanted)
