"""One update of SAC with norms, dropout, ensembles, delay or no targets against a literal transcription.

Networks are written out row by row and unit by unit: CrossQ, XQC, REDQ, DroQ, SimBa, BRO, FlashSAC and what lies
between them.
"""

import functools
import math
import re
from typing import Any

import pytest
import torch
from test_updates import Params, assert_metrics, average, batch_of, descend, follow, record_noise, scramble, squashed
from test_value_updates import LiteralCategorical, LiteralQuantile, report
from torch import Tensor, nn

from rl_runner.layers import BatchNorm
from rl_runner.networks import MLP
from rl_runner.residual import Residual
from rl_runner.values import Scalar

pytestmark = pytest.mark.usefixtures("float64")

Statistics = dict[str, Any]  # of all batch norms of a network by name, nested lists
NETWORK = functools.partial(MLP, hidden=[5, 4], activation="relu")
BATCH = functools.partial(NETWORK, norm="batch")
CROSSQ = functools.partial(BATCH, norm_after_activation=True)
DROQ = functools.partial(NETWORK, norm="layer", dropout=0.3)
SIMBA, BRO, FLASHSAC = (
    functools.partial(Residual, block=block, width=3, blocks=2, expansion=expansion, activation="relu")
    for block, expansion in (("pre_layer", 2), ("post_layer", 1), ("post_batch", 2))
)


class LiteralScalar:
    """Plain critics."""

    make = Scalar

    def mean(self, out: Tensor) -> Tensor:
        return out[0]

    def lowest(self, outs: list[Tensor]) -> Tensor:
        return min(outs, key=self.mean)

    def middle(self, outs: list[Tensor]) -> Tensor:
        return average(outs)

    def target(self, r: Tensor, discount: Tensor, out: Tensor, bonus: float) -> Tensor:
        return r + discount * (out[0] + bonus)

    def target_mean(self, y: Tensor) -> Tensor:
        return y

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        return (y - out[0]) * (y - out[0])

    def error(self, out: Tensor, y: Tensor) -> float:
        return abs(y - out[0]).item()

    def metrics(self, targets: list[Tensor]) -> dict[str, float]:
        return {}


class Mixture(LiteralCategorical):
    def middle(self, outs: list[Tensor]) -> Tensor:
        laws = [self.law(out) for out in outs]
        return torch.stack([torch.log(average([law[i] for law in laws])) for i in range(5)])


class Pool(LiteralQuantile):
    def middle(self, outs: list[Tensor]) -> list[Tensor]:
        return [theta for out in outs for theta in out]


CASES: dict[str, dict[str, Any]] = {
    "crossq": {"network": CROSSQ, "target_update": "none", "policy_delay": 3},
    "crossq, renormalised from the second call on": {"network": CROSSQ, "target_update": "none", "calls": 99_999},
    "crossq before activations, with targets": {"network": BATCH, "policy_delay": 2},
    "xqc": {
        "network": functools.partial(BATCH, unit_norm=True), "head": LiteralCategorical(), "policy_delay": 2,
        "target_entropy_per_dim": -0.5,
    },
    "xqc of layer norms": {"network": functools.partial(NETWORK, norm="layer", unit_norm=True)},
    "simba": {
        "network": functools.partial(SIMBA, blocks=1), "critic_network": SIMBA, "target_entropy_per_dim": -0.5,
    },
    "bro": {
        "network": functools.partial(BRO, blocks=1), "critic_network": BRO, "head": Pool(), "target_reduce": "mean",
        "actor_reduce": "mean",
    },
    "bro of weights of norm one, its lowest critic": {"network": functools.partial(BRO, unit_norm=True)},
    "flashsac": {
        "network": functools.partial(FLASHSAC, unit_norm=True), "head": LiteralCategorical(), "policy_delay": 2,
        "target_entropy_per_dim": -0.478182,
    },
    "flashsac, renormalised from the second call on": {"network": FLASHSAC, "calls": 99_999},
    "redq": {"critics": 4, "target_of": 2, "actor_reduce": "mean", "policy_delay": 2},
    "droq": {"critic_network": DROQ, "actor_reduce": "mean", "policy_delay": 2},
    "droq, batches normalised": {"critic_network": functools.partial(BATCH, dropout=0.3)},
    "mean of all, first climbed": {"critics": 3, "target_reduce": "mean", "actor_reduce": "first"},
    "mean of two distributions": {"critics": 3, "target_reduce": "mean", "target_of": 2, "head": Mixture()},
    "mean of quantiles": {"target_reduce": "mean", "head": Pool(1)},
    "targets copied every other step": {"target_update": "hard", "target_every": 2},
    "no targets": {"target_update": "none", "network": functools.partial(NETWORK, norm="layer"), "alpha": 0.2},
}  # fmt: skip


def hashed(bits: int) -> int:
    for _ in range(2):
        bits = ((bits >> 16) ^ bits) * 0x45D9F3B % 2**32
    return (bits >> 16) ^ bits


def normalised(
    p: Params, s: Statistics, name: str, xs: list[Tensor], member: int | None, training: bool
) -> list[Tensor]:
    """By the batch or by running statistics, which move in training."""

    def own(values: Any) -> Any:
        return values[0] if member is None else values[member][0]

    weight, bias = own(p[f"{name}.weight"]), own(p[f"{name}.bias"])
    out = [list[Any]() for _ in xs]
    for j in range(len(xs[0])):
        mean, var = own(s[f"{name}.mean"])[j], own(s[f"{name}.var"])[j]
        mu, sigma, r, d = mean, math.sqrt(var + 1e-3), 1.0, 0.0
        if training:
            mu = average([x[j] for x in xs])
            variance = average([(x[j] - mu) * (x[j] - mu) for x in xs])
            sigma, running = torch.sqrt(variance + 1e-3), sigma
            if s[f"{name}.calls"] >= 100_000:
                r = min(max(sigma.item() / running, 1 / 3), 3.0)
                d = min(max((mu.item() - mean) / running, -5.0), 5.0)
            own(s[f"{name}.mean"])[j] = 0.99 * mean + 0.01 * mu.item()
            own(s[f"{name}.var"])[j] = 0.99 * var + 0.01 * variance.item()
        for row, x in zip(out, xs, strict=True):
            row.append(((x[j] - mu) / sigma * r + d) * weight[j] + bias[j])
    return [torch.stack(row) for row in out]


def layer_normalised(p: Params, name: str, x: Tensor, member: int | None) -> Tensor:
    weight, bias = (
        p[f"{name}.{key}"][0] if member is None else p[f"{name}.{key}"][member][0] for key in ("weight", "bias")
    )
    mu = average(list(x))
    sigma = torch.sqrt(average([(unit - mu) * (unit - mu) for unit in x]) + 1e-5)
    return torch.stack([(x[j] - mu) / sigma * weight[j] + bias[j] for j in range(len(x))])


def outputs(
    p: Params,
    s: Statistics,
    xs: list[Tensor],
    keys: Any,
    member: int | None = None,
    training: bool = False,
    seed: Any = None,
) -> list[Tensor]:
    """What one network, a member of an ensemble or the actor, says of all rows."""
    if "block" in keys:
        return residual(p, s, xs, keys, member, training)
    norm, after, rate = (keys.get(key) for key in ("norm", "norm_after_activation", "dropout"))
    if norm == "batch":
        xs = normalised(p, s, "net.input_norm", xs, member, training)
    for i in range(2):
        weight, bias = p[f"net.hidden.{i}.weight"], p[f"net.hidden.{i}.bias"]
        weight, bias = (weight, bias[0]) if member is None else (weight[member], bias[member][0])
        xs = [x @ weight + bias for x in xs]
        if rate and seed is not None:
            for b, x in enumerate(xs):
                places = [(member * len(xs) + b) * len(x) + j for j in range(len(x))]
                kept = [hashed(place ^ hashed(int(seed) + i)) >= int(rate * 2**32) for place in places]
                xs[b] = torch.stack([unit / (1 - rate) if k else 0 * unit for unit, k in zip(x, kept, strict=True)])
        for step in ("activation", "norm") if after else ("norm", "activation"):
            if step == "activation":
                xs = [torch.stack([unit if unit > 0 else 0 * unit for unit in x]) for x in xs]
            elif norm == "batch":
                xs = normalised(p, s, f"net.norms.{i}", xs, member, training)
            elif norm == "layer":
                xs = [layer_normalised(p, f"net.norms.{i}", x, member) for x in xs]
    weight, bias = p["net.output.weight"], p["net.output.bias"]
    weight, bias = (weight, bias[0]) if member is None else (weight[member], bias[member][0])
    return [x @ weight + bias for x in xs]


def residual(p: Params, s: Statistics, xs: list[Tensor], keys: Any, member: int | None, training: bool) -> list[Tensor]:
    """The same of residual blocks, as SimBa, BRO and FlashSAC have them."""

    def affine(name: str, xs: list[Tensor]) -> list[Tensor]:
        weight, bias = p[f"net.{name}.weight"], p[f"net.{name}.bias"]
        weight, bias = (weight, bias[0]) if member is None else (weight[member], bias[member][0])
        return [torch.stack([x @ weight[:, j] + bias[j] for j in range(len(bias))]) for x in xs]

    def layer(name: str, xs: list[Tensor]) -> list[Tensor]:
        return [layer_normalised(p, f"net.{name}", x, member) for x in xs]

    def batch(name: str, xs: list[Tensor]) -> list[Tensor]:
        return normalised(p, s, f"net.{name}", xs, member, training)

    def relu(xs: list[Tensor]) -> list[Tensor]:
        return [torch.stack([unit if unit > 0 else 0 * unit for unit in x]) for x in xs]

    def rms(xs: list[Tensor]) -> list[Tensor]:
        gain = p["net.last_norm.weight"]
        gain = gain[0] if member is None else gain[member][0]
        return [x / torch.sqrt(average([unit * unit for unit in x]) + 1e-6) * gain for x in xs]

    kind, changes = keys["block"], []
    if kind == "post_batch":
        xs = batch("input_norm", xs)
    xs = affine("first", xs)
    if kind == "post_layer":
        xs = relu(layer("first_norm", xs))
    for i in range(keys["blocks"]):
        if kind == "pre_layer":
            changes = affine(f"down.{i}", relu(affine(f"up.{i}", layer(f"up_norms.{i}", xs))))
        elif kind == "post_layer":
            changes = layer(f"down_norms.{i}", affine(f"down.{i}", relu(layer(f"up_norms.{i}", affine(f"up.{i}", xs)))))
        else:
            inside = relu(batch(f"up_norms.{i}", affine(f"up.{i}", xs)))
            changes = relu(batch(f"down_norms.{i}", affine(f"down.{i}", inside)))
        xs = [x + change for x, change in zip(xs, changes, strict=True)]
    if kind == "pre_layer":
        xs = layer("last_norm", xs)
    elif kind == "post_batch":
        xs = rms(xs)
    return affine("output", xs)


def ensemble(p: Params, s: Statistics, pairs: Any, keys: Any, members: int, **told: Any) -> list[list[Tensor]]:
    """What every critic says of each pair; a pass in training counts once."""
    xs = [torch.cat([obs, action]) for obs, action in pairs]
    outs = [outputs(p, s, xs, keys, e, **told) for e in range(members)]
    count(s, told.get("training", False))
    return outs


def count(s: Statistics, training: bool) -> None:
    for name in s:
        if name.endswith("calls"):
            s[name] += training


def statistics_of(agent: Any) -> dict[str, Statistics]:
    modules = {name: module for name, module in vars(agent).items() if isinstance(module, nn.Module)}
    return {name: {key: b.tolist() for key, b in module.named_buffers()} for name, module in modules.items()}


def of_norm_one(params: Params) -> Params:
    """Every hidden unit's weights divided by their norm."""
    scaled = dict(params)
    for name in params:
        if re.fullmatch(r"net\.(hidden|first|up|down)(\.\d)?\.weight", name):
            weight = params[name].detach().clone()
            for unit in range(weight.shape[-1]):
                for matrix in weight if weight.dim() == 3 else [weight]:
                    matrix[:, unit] /= math.sqrt(sum(float(w) ** 2 for w in matrix[:, unit]))
            scaled[name] = weight.requires_grad_()
    return scaled


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sac(make_agent: Any, case: dict[str, Any]) -> None:
    options = {"network": NETWORK} | case
    head, calls = options.pop("head", LiteralScalar()), options.pop("calls", 0)
    agent = make_agent("sac", value=head.make, **options)
    p = scramble(agent)
    for module in agent.critics.modules():
        if isinstance(module, BatchNorm):
            module.calls.fill_(calls)
    s = statistics_of(agent)
    E, keys = options.get("critics", 2), options.get("critic_network", options["network"]).keywords
    actor_keys, targets = options["network"].keywords, "target_critics" in agent.PARTS
    alpha, H0 = options.get("alpha", 0.4), 2 * options.get("target_entropy_per_dim", -1.0)
    recorded = record_noise(agent)
    for update in range(1, 4):
        batch = batch_of(update, discrete=False)
        metrics, td_error = agent.update(batch, update)
        if "target_every" in options and update == 2:
            p["target_critics"] = p["critics"]
        next_noise, noise, _, subset, seeds = recorded[-1]
        seeds = [None] * 3 if seeds is None else seeds.tolist()

        outs = outputs(p["actor"], s["actor"], list(batch.next_obs), actor_keys)
        next_action, next_log_prob = zip(*map(squashed, outs, next_noise, [-5.0] * 5, [2.0] * 5), strict=True)
        now, then = list(zip(batch.obs, batch.action, strict=True)), list(zip(batch.next_obs, next_action, strict=True))
        judges = "target_critics" if targets else "critics"
        if keys.get("norm") == "batch" or keys.get("block") == "post_batch":
            told = {"training": True, "seed": seeds[0]}
            both = ensemble(p["critics"], s["critics"], now + then, keys, E, **told)
            if targets:
                told = {"training": True, "seed": seeds[1]}
                judged = ensemble(p[judges], s[judges], now + then, keys, E, **told)
            out, next_out = [q[:5] for q in both], [q[5:] for q in (judged if targets else both)]
        else:
            next_out = ensemble(p[judges], s[judges], then, keys, E, seed=seeds[1])
            out = ensemble(p["critics"], s["critics"], now, keys, E, training=True, seed=seeds[0])
        reduce = head.middle if options.get("target_reduce") == "mean" else head.lowest
        y = []
        for b in range(5):
            opinions = [next_out[e][b].detach() for e in (range(E) if subset is None else subset.tolist())]
            bonus = -alpha * next_log_prob[b].item()
            y.append(head.target(batch.reward[b], batch.discount[b], reduce(opinions), bonus))
        losses = [average([batch.weight[b] * head.loss(out[e][b], y[b]) for b in range(5)]) for e in range(E)]
        p["critics"], norm = descend(sum(losses), p["critics"])
        wanted, errors = report(head, [q for of_one in out for q in of_one], y)
        wanted |= {"grads/critic_norm": norm, "policy/alpha": alpha}

        if keys.get("unit_norm"):
            p["critics"] = of_norm_one(p["critics"])
        if update % options.get("policy_delay", 1) == 0:
            outs = outputs(p["actor"], s["actor"], list(batch.obs), actor_keys, training=True)
            count(s["actor"], training=True)
            action, log_prob = zip(*map(squashed, outs, noise, [-5.0] * 5, [2.0] * 5), strict=True)
            judged = ensemble(p["critics"], s["critics"], zip(batch.obs, action, strict=True), keys, E, seed=seeds[2])
            terms = []
            for b in range(5):
                q = [head.mean(judged[e][b]) for e in range(E)]
                climbed = {"min": min(q), "mean": average(q), "first": q[0]}[options.get("actor_reduce", "min")]
                terms.append(alpha * log_prob[b] - climbed)
            wanted |= {"losses/actor_loss": average(terms).item()}
            wanted["policy/entropy"] = -average([one.item() for one in log_prob])
            p["actor"], wanted["grads/actor_norm"] = descend(average(terms), p["actor"])
            if actor_keys.get("unit_norm"):
                p["actor"] = of_norm_one(p["actor"])
            if "alpha" not in options:
                J = average([-alpha * (one.item() + H0) for one in log_prob])
                wanted["losses/alpha_loss"] = J
                alpha = math.exp(math.log(alpha) - 0.1 * J)
        if "target_every" in options:
            pass
        elif targets:
            p["target_critics"] = follow(p["target_critics"], p["critics"], 0.3)
        else:
            p["target_critics"], s["target_critics"] = p["critics"], s["critics"]

        for name, params in p.items():
            for key, value in getattr(agent, name).named_parameters():
                assert torch.allclose(value, params[key], rtol=1e-8, atol=1e-9), f"{name}.{key}"
            for key, value in getattr(agent, name).named_buffers():
                assert torch.allclose(value.double(), torch.tensor(s[name][key]).double(), rtol=1e-9), f"{name}.{key}"
        assert agent.log_alpha.exp().item() == pytest.approx(alpha, rel=1e-9)
        assert_metrics(metrics, wanted)
        assert td_error.tolist() == pytest.approx(errors)
