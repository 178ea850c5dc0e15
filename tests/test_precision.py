"""`precision=bfloat16`: wide products in it and all else in float32; where there are no such instructions, float32."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeping import Ended
from test_accelerate import filled_replay
from torch import Tensor, nn

from rl_runner import accelerate, machine
from rl_runner.logger import Averages
from rl_runner.networks import MLP
from rl_runner.persistence import RESULT, checkpoint, read_json
from rl_runner.run import build
from rl_runner.train import train

WIDE = functools.partial(MLP, hidden=[256, 256])
RELU, SMOOTH = functools.partial(WIDE, activation="relu"), functools.partial(WIDE, activation="silu")
ADAM, SGD = functools.partial(torch.optim.Adam, lr=1e-3), functools.partial(torch.optim.SGD, lr=1e-3)
HERE = machine.available("bfloat16", torch.device("cpu")) == "bfloat16"
needs_bfloat16 = pytest.mark.skipif(not HERE, reason="this processor has no instructions for bfloat16")


class Generous:
    """A replay with rewards of one sign, so that gradients are more than noise: noise is where rounding shows."""

    def __init__(self, replay: Any):
        self.replay = replay
        self.draw, self.prioritize = replay.draw, replay.prioritize

    def gather(self, *drawn: Tensor) -> Any:
        batch = self.replay.gather(*drawn)
        return batch._replace(reward=batch.reward + 10)


def updates(mode: str, precision: str, agent: Any, replay: Any, count: int) -> dict[str, float]:
    """The mean metrics of so many updates."""
    averages = Averages()
    update = accelerate.build_update(agent, replay, averages, mode, precision)
    for i in range(count):
        update(5 * i)
    return averages.read()


def learned(agent: Any) -> dict[str, Tensor]:
    """Copies of what an agent learns, by name."""
    parts = {name: part for name, part in vars(agent).items() if isinstance(part, nn.Module) and "target" not in name}
    named = {f"{name}.{key}": p for name, part in parts.items() for key, p in part.named_parameters()}
    named |= {"log_alpha": agent.log_alpha} if hasattr(agent, "log_alpha") else {}
    return {name: p.detach().double().clone() for name, p in named.items()}


def distances(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """How far one is from the other, by name, relative to its norm."""
    return {name: ((ours[name] - value).norm() / value.norm()).item() for name, value in theirs.items()}


CROSSQ = {"network": functools.partial(SMOOTH, norm="batch", norm_after_activation=True), "target_update": "none"}
NOISY = {"network": functools.partial(SMOOTH, noisy=0.5)}
KINDS = {"sac": {}, "discrete_sac": {}, "td3": {}, "ddpg": {}, "dqn": {}, "noisy": NOISY, "crossq": CROSSQ}


@needs_bfloat16
@pytest.mark.parametrize(("optimizer", "count"), [(ADAM, 21), (SGD, 1)], ids=["adam", "sgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_float32(make_agent: Any, kind: str, optimizer: Any, count: int) -> None:
    """From the same state on the same batch, each parameter's step differs by 2 % of its norm at most.

    The state is one after some updates: Adam's first steps are the signs of the gradients, however small these are.
    The activations are smooth: a ReLU that is close to 0 may switch, and all of its gradient with it.
    """
    steps, name = [], {"crossq": "sac", "noisy": "dqn"}.get(kind, kind)
    for precision in ("highest", "bfloat16"):
        # The actor's gradients are small, and its step shall not drown in the rounding of the parameters.
        keys = {} if optimizer is ADAM else {"actor_lr": 1.0}
        agent = make_agent(name, **{"network": SMOOTH} | KINDS[kind], optimizer=optimizer, batch_size=256, **keys)
        replay = Generous(filled_replay(name, capacity=400))
        updates("eager", "highest", agent, replay, count)
        before = learned(agent)
        updates("eager", precision, agent, replay, 1)
        steps.append({key: after - before[key] for key, after in learned(agent).items()})
    found = distances(*({key: s for key, s in step.items() if steps[0][key].any()} for step in reversed(steps)))
    assert 0 < max(found.values()) < 0.02, sorted((v, k) for k, v in found.items())[-4:]


@needs_bfloat16
def test_weights_that_have_changed_are_cast_anew(make_agent: Any) -> None:
    """The actor's loss is judged by critics after their step, a large one; eager code and the graph alike."""
    losses = {}
    large = [("eager", "highest"), ("eager", "bfloat16"), ("compile", "bfloat16")]
    for mode, precision, lr in [("eager", "highest", 0.0), *((*way, 0.02) for way in large)]:
        agent = make_agent("sac", network=SMOOTH, optimizer=functools.partial(SGD, lr=lr), batch_size=64)
        metrics = updates(mode, precision, agent, Generous(filled_replay("sac")), 1)
        losses[mode, precision, lr] = metrics["losses/actor_loss"]
    unchanged, expected, eager, compiled = losses.values()
    assert abs(expected - unchanged) > 0.5 * abs(expected)
    assert (eager, compiled) == pytest.approx((expected, expected), rel=0.02)


@needs_bfloat16
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "dqn"])
def test_a_thousand_updates_tell_the_same(configure: Any, name: str) -> None:
    """Losses, Q, entropy and α on a recorded replay of random actions: their means differ by 2 % at most.

    Not CrossQ's: without targets its critics are off by some percent after any rounding, to either side.
    """
    env = "CartPole-v1" if name == "dqn" else "Pendulum-v1"
    words = (f"algo={name}", f"env={env}", "tuned=none", "encoder=flat", "network.hidden=[256,256]", "seed=1")
    metrics = []
    for precision in ("highest", "bfloat16"):
        run = build(configure(*words, "total_steps=1500", "learning_starts=1500"), None)
        train(run, lambda step: None, lambda *row: None, lambda: None)
        metrics.append(updates("eager", precision, run.agent, run.replay, 1000))
    for tag, value in metrics[0].items():
        if not tag.startswith("grads/"):
            assert metrics[1][tag] == pytest.approx(value, rel=0.02, abs=2e-3), tag


@needs_bfloat16
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_only_wide_products_are_rounded(norm: Any) -> None:
    seen: dict[str, torch.dtype] = {}
    net = RELU(n_in=3, n_out=2, norm=norm, generator=torch.Generator().manual_seed(0))
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    call = accelerate.in_bfloat16(net, torch.device("cpu"))
    assert call(torch.randn(5, 3)).dtype is torch.float32
    assert {name for name, dtype in seen.items() if dtype is torch.bfloat16} == {"hidden.1"}


def test_narrow_gradients_are_those_of_float32(make_agent: Any) -> None:
    narrow = functools.partial(MLP, hidden=[100, 100], norm="none", activation="relu")
    learnt = []
    for precision in ("highest", "bfloat16"):
        agent = make_agent("sac", network=narrow, optimizer=ADAM, batch_size=64)
        updates("eager", precision, agent, filled_replay("sac"), 3)
        learnt.append(learned(agent))
    assert max(distances(*learnt).values()) == 0


def test_a_network_from_outside_gives_float32(make_agent: Any) -> None:
    def plain(*, n_in: int, n_out: int, lead: tuple[int, ...] = (), generator: Any = None) -> nn.Module:
        return nn.Sequential(nn.Linear(n_in, 64), nn.ReLU(), nn.Linear(64, n_out))

    agent = make_agent("dqn", network=plain)
    assert agent.q.net[2].weight.dtype is torch.float32
    forward = accelerate.in_bfloat16(agent.q, torch.device("cpu"))
    assert forward(torch.randn(5, 3)).dtype is torch.float32


WORDS = (
    "algo=dqn",
    "env=CartPole-v1",
    "tuned=none",
    "learning_starts=100",
    "final_eval_episodes=2",
    "accelerate=eager",
)


@needs_bfloat16
def test_a_run_goes_on_in_the_precision_that_it_began_with(
    rl_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WORDS, "network.hidden=[128,128]", "precision=bfloat16")
    whole: Ended = rl_runner(*words, "total_steps=300", "hydra.run.dir=whole")
    assert whole.code == 0
    assert "learns by products in bfloat16" in " ".join(" ".join(whole.out).split())
    assert rl_runner(*words, "total_steps=200", "algo.epsilon_fraction=0.75", "hydra.run.dir=begun").code == 0
    assert checkpoint.newest(tmp_path / "begun/checkpoint").origin["precision"] == "bfloat16"
    other = rl_runner("resume", "begun", "precision=highest")
    assert (other.code, len(other.err)) == (2, 1)
    assert "precision is bfloat16 there, highest here" in other.err[0]

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    refused = rl_runner("resume", "begun", "total_steps=300")
    assert (refused.code, len(refused.err)) == (2, 1)
    assert "has no instructions" in refused.err[0]
    assert "precision=highest" in refused.err[0]
    resumed = rl_runner("resume", "begun", "total_steps=300", "precision=highest")
    assert resumed.code == 0
    assert "not exact: precision was bfloat16, is highest" in resumed.err


def test_without_the_instructions_a_new_run_takes_float32(
    rl_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    results = []
    for precision in ("highest", "bfloat16"):
        ended = rl_runner(*WORDS, "total_steps=200", f"precision={precision}", f"hydra.run.dir={precision}")
        assert ended.code == 0
        assert any(line.startswith("precision=bfloat16: not on this machine") for line in ended.out) is (
            precision == "bfloat16"
        )
        results.append(read_json(tmp_path / precision / RESULT)["params_sha256"])
    assert results[0] == results[1]
    assert checkpoint.newest(tmp_path / "bfloat16/checkpoint").origin["precision"] == "highest"
