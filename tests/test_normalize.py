"""Running statistics: what they count, who sees them, and that nothing but learning changes by them."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import CONTINUOUS, DISCRETE
from gymnasium import spaces
from torch import Tensor

from rl_runner.accelerate import build_update
from rl_runner.config.schema import Config, load_config
from rl_runner.envs import Step
from rl_runner.normalize import OF_RETURNS, Moments, Normalizer, Observations, Rewards
from rl_runner.persistence.checkpoint import load_state, state_of
from rl_runner.replay import Batch
from rl_runner.run import Run, build, params_sha256
from rl_runner.saved_policy import load
from rl_runner.train import train

BOTH = ("normalize_observations=true", "normalize_rewards=5")
WORDS = (
    "tuned=none", "network.hidden=[8]", "algo.batch_size=8", "learning_starts=20", "total_steps=70", "eval_every=0",
    "final_eval_episodes=2", "log_every=60", "replay.capacity=500",
)  # fmt: skip


class Coarse(gym.Env):
    """A mountain slope observed from far away: place and speed times `factor` plus `offset`; pays `pay` a step."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, factor: float = 1.0, offset: float = 0.0, pay: float = 1.0):
        self.factor, self.offset, self.pay = factor, offset, pay

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2)
        return self.seen(), {}

    def seen(self) -> np.ndarray:
        return (self.state * self.factor + self.offset).astype(np.float32)

    def step(self, action: np.ndarray) -> Any:
        place, speed = self.state
        self.state = np.array([0.9 * place + 0.1 * speed, 0.9 * speed + float(action[0])])
        return self.seen(), self.pay * (1 - abs(place)), bool(abs(place) > 2), False, {}


gym.register("Coarse-v0", Coarse, max_episode_steps=9)
COARSE = ("algo=sac", "env=Coarse-v0", *WORDS)
FAR = ("+env.kwargs.factor=1000", "+env.kwargs.offset=500", "+env.kwargs.pay=100")


def test_mean_and_variance_by_hand() -> None:
    moments = Moments((1,))
    for row in (1.0, 3.0):
        moments.add(np.array([[row]]))
    assert (moments.count, moments.mean.item(), (moments.squares / moments.count).item()) == (2, 2.0, 1.0)


def test_rows_far_from_0_in_pieces_of_any_size_count_as_one() -> None:
    rows = 1e6 + 1e-3 * np.random.default_rng(0).normal(size=(500, 3))
    moments = Moments((3,))
    for piece in np.split(rows, [1, 2, 7, 300]):
        moments.add(piece)
    assert np.allclose(moments.mean.numpy(), rows.mean(axis=0), rtol=1e-14)
    assert np.allclose(moments.squares.numpy() / 500, rows.var(axis=0), rtol=1e-6)


def test_observations_are_clipped_and_constants_are_nothing() -> None:
    seen = Observations(DISCRETE, "cpu")
    obs = torch.tensor([[1.0, -3.0, 7.0], [3.0, 5.0, 7.0]])
    assert torch.equal(seen(obs), obs)  # before any was counted
    seen.count(obs)
    far = torch.tensor([[1.0, 1e6, 7.0], [4.0, -1e6, 7.0]])
    assert torch.allclose(seen(far), torch.tensor([[-1.0, 10.0, 0.0], [2.0, -10.0, 0.0]]))


def never(n: int = 1) -> Tensor:
    return torch.zeros(n, dtype=torch.bool)


def test_rewards_by_hand() -> None:
    rewards, seen = Rewards(1, 0.5, 5.0, "cpu"), []
    for _ in range(3):
        rewards.count(torch.ones(1), never())
        seen.append(rewards.returns.item())
    assert seen == [1.0, 1.5, 1.75]
    assert rewards.scale.item() == pytest.approx(0.35)  # max |G| / g_max, for the deviation of G is 0.31
    rewards.count(torch.full((1,), -4.0), torch.tensor([True]))  # another episode
    assert rewards.returns.item() == -4.0
    assert rewards.scale.item() == pytest.approx(np.std([1.0, 1.5, 1.75, -4.0]))
    constant = Rewards(2, 0.0, 5.0, "cpu")
    constant.count(torch.tensor([-7.0, -7.0]), never(2))
    assert constant.scale.item() == pytest.approx(7 / 5)  # without variance


@pytest.mark.parametrize("factor", [0.01, 1e4])
def test_the_scale_of_an_environments_rewards_does_not_matter(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (Rewards(3, 0.9, 5.0, "cpu") for _ in range(2))
    for _ in range(100):
        reward, first = torch.randn(3, generator=generator), torch.rand(3, generator=generator) < 0.2
        ours.count(reward, first)
        theirs.count(factor * reward, first)
    assert (factor * reward / theirs.scale).tolist() == pytest.approx((reward / ours.scale).tolist(), rel=1e-3)
    assert float(ours.largest / ours.scale) <= 5.0 + 1e-6


def both(agent: Any, spec: Any) -> Normalizer:
    config: Any = SimpleNamespace(normalize_observations=True, normalize_rewards=5.0, num_envs=2)
    normalizer = Normalizer(config, spec, agent)
    normalizer.attach(agent)
    generator = torch.Generator().manual_seed(7)
    for _ in range(20):
        obs = 500 + 1000 * torch.randn(2, *spec.obs_shape, generator=generator)
        step = Step(obs, torch.randn(2, generator=generator), never(2), never(2), [])
        normalizer.count(obs, never(2), 30 * step.reward, step)
    return normalizer


@pytest.mark.parametrize("name", ["dqn", "ddpg", "td3", "sac"])
def test_an_agent_does_what_it_would_with_everything_scaled_by_hand(name: str, make_agent: Callable[..., Any]) -> None:
    """Online and target networks alike; and values are told in the environment's units."""
    spec = DISCRETE if name == "dqn" else CONTINUOUS
    plain, agent = make_agent(name), make_agent(name)
    normalizer = both(agent, spec)
    seen, rewards = normalizer.observations, normalizer.rewards
    assert seen
    assert rewards
    generator = torch.Generator().manual_seed(0)
    obs, next_obs = 500 + 1000 * torch.randn(2, 5, 3, generator=generator)
    action = torch.tensor([0, 1, 2, 3, 0]) if name == "dqn" else torch.rand(5, 2, generator=generator)
    rest = torch.full((5,), 0.9), next_obs, torch.rand(5, generator=generator), torch.arange(5)
    raw = Batch(obs, action, 30 * torch.randn(5, generator=generator), *rest)

    def by_hand(obs: Tensor) -> Tensor:
        return ((obs - seen.moments.mean) / (seen.moments.squares / 40 + 1e-8).sqrt()).clamp(-10, 10).float()

    scale = rewards.scale.item()
    hand = raw._replace(obs=by_hand(obs), next_obs=by_hand(next_obs), reward=raw.reward / scale)
    before = deepcopy(state_of(normalizer))
    for step in (1, 10, 11):  # with a copy to the target network
        metrics, error = agent.update(raw, step)
        expected, expected_error = plain.update(hand, step)
        assert torch.allclose(error, expected_error, rtol=1e-4)
        for tag, value in expected.items():
            unit = scale if tag in OF_RETURNS else 1.0
            assert metrics[tag].item() == pytest.approx(unit * value.item(), rel=1e-3, abs=1e-5), tag
    assert OF_RETURNS[0] in metrics
    ours, theirs = ({path: part for path, part in vars(each).items() if hasattr(part, "parameters")}
                    for each in (agent, plain))  # fmt: skip
    for path, module in theirs.items():
        for p, q in zip(ours[path].parameters(), module.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-3, atol=1e-5), path
    assert torch.allclose(agent.act(obs), plain.act(hand.obs), atol=1e-4)
    first = never(5)
    assert torch.allclose(agent.explore(obs, 100, first), plain.explore(hand.obs, 100, first), atol=1e-4)
    told, expected_told = (
        each.critique(o, generator=torch.Generator().manual_seed(1)) for each, o in ((agent, obs), (plain, hand.obs))
    )
    assert torch.allclose(told[0], expected_told[0], atol=1e-4)
    for ours_told, theirs_told in zip(told[1:], expected_told[1:], strict=True):
        assert torch.allclose(ours_told, scale * theirs_told, rtol=1e-3, atol=1e-4)
    assert all(map(torch.equal, flat(before), flat(state_of(normalizer))))  # none of it counts


def flat(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        return [tensor for child in state.values() for tensor in flat(child)]
    return [torch.as_tensor(state).clone()]


def test_every_training_observation_counts_once_and_nothing_else(configure: Callable[..., Config]) -> None:
    run = build(configure("algo=sac", "env=Coarse-v0", *WORDS, *BOTH, "num_envs=2", "+env.kwargs.pay=10"), None)
    seen, paid, totals, add = [], [], [], run.replay.add

    def recorded(obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, *rest: Tensor) -> None:
        truncated, next_obs = rest
        ended = terminated | truncated
        seen.extend([*obs, *next_obs[ended]])
        paid.append(reward)
        before = totals[-1][0] if totals else torch.zeros(2)
        total = run.agent.gamma * before + reward.double()
        totals.append((torch.where(ended, 0.0, total), total))
        add(obs, action, reward, terminated, *rest)

    run.replay.add = recorded  # type: ignore[method-assign]
    train(run, build_update(run.agent, run.replay, run.averages, "eager"), lambda *row: None, lambda: None)
    normalizer = run.normalizer
    assert normalizer
    assert normalizer.observations
    assert normalizer.rewards
    rows, returns = torch.stack(seen).double().numpy(), torch.stack([total for _, total in totals]).numpy()
    assert len(rows) > 70  # final ones are among them
    assert normalizer.observations.moments.count == len(rows)
    assert np.allclose(normalizer.observations.moments.mean.numpy(), rows.mean(axis=0), rtol=1e-12)
    assert np.allclose(normalizer.observations.mean.numpy(), rows.mean(axis=0), rtol=1e-6)
    assert np.allclose(normalizer.observations.std.numpy(), rows.std(axis=0), rtol=1e-6)
    largest = abs(returns).max()
    assert normalizer.rewards.scale.item() == pytest.approx(max(returns.std(), largest / 5), rel=1e-6)

    kept: Any = run.replay
    assert torch.equal(kept.ring.columns["reward"][:70], torch.cat(paid))  # raw
    assert torch.equal(kept.ring.columns["obs"][:2], torch.stack(seen[:2]))
    before = flat(state_of(normalizer))
    evaluated = run.evaluator(run.agent, 2)[0]["eval/return_mean"]
    pays_one = build(configure("algo=sac", "env=Coarse-v0", *WORDS, "num_envs=2"), None)
    assert evaluated == pytest.approx(10 * pays_one.evaluator(run.agent, 2)[0]["eval/return_mean"], rel=1e-4)
    run.agent.update(kept.gather(*kept.draw(8, 70)), 70)
    assert all(map(torch.equal, before, flat(state_of(normalizer))))


def trained(configure: Callable[..., Config], *words: str, **changed: Any) -> Run:
    run = build(configure(*COARSE, *words).model_copy(update=changed), None)
    train(run, build_update(run.agent, run.replay, run.averages, "eager"), lambda *row: None, lambda: None)
    return run


def test_the_scale_and_the_place_of_observations_do_not_matter(configure: Callable[..., Config]) -> None:
    plain = trained(configure, *BOTH)
    far = trained(configure, *BOTH, *FAR)
    one, other = (run.replay.ring.columns["action"][:70] for run in (plain, far))  # type: ignore[attr-defined]
    assert torch.allclose(one, other, atol=0.01)
    raw = trained(configure, *FAR)
    assert not torch.allclose(one, raw.replay.ring.columns["action"][:70], atol=0.2)  # type: ignore[attr-defined]
    averages, expected = far.averages.read(), plain.averages.read()
    assert averages["losses/td_loss"] == pytest.approx(expected["losses/td_loss"], rel=0.1)
    assert averages["values/target_mean"] == pytest.approx(100 * expected["values/target_mean"], rel=0.1)


def test_off_is_nothing(configure: Callable[..., Config]) -> None:
    config = configure(*COARSE)
    assert not {"normalize_observations", "normalize_rewards"} & config.model_dump().keys()
    run = build(config, None)
    assert run.normalizer is None
    assert not {"running_scales", "learn", "act", "PARTS"} & vars(run.agent).keys()


@pytest.mark.parametrize("precision", ["highest", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "words", [pytest.param(("algo=td3", "env=Coarse-v0"), marks=pytest.mark.slow), ("algo=ddqn", "env=CartPole-v1")]
)
def test_one_graph_reads_statistics_that_move(
    words: tuple[str, ...], precision: str, rl_runner: Any, tmp_path: Path
) -> None:
    rows = []
    for mode in ("eager", "compile"):
        directory = tmp_path / mode
        more = (f"accelerate={mode}", f"precision={precision}", f"hydra.run.dir={directory}")
        ended = rl_runner("plugins=[test_normalize]", *words, *WORDS, *BOTH, "replay=prioritized", *more)
        assert ended.code == 0, ended.err
        rows.append(json.loads((directory / "metrics.jsonl").read_text().splitlines()[0]))
    for tag, value in rows[0].items():
        if "per_second" not in tag and "SPS" not in tag:
            assert rows[1][tag] == pytest.approx(value, rel=1e-3, abs=1e-4), tag


def test_a_run_goes_on_exactly_and_its_policy_takes_raw_observations(rl_runner: Any, tmp_path: Path) -> None:
    words = ("plugins=[test_normalize]", *COARSE, *BOTH, "env.kwargs={factor: 1000, offset: 500}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = rl_runner(*words, f"hydra.run.dir={whole}")
    assert ended.code == 0, ended.err
    assert "normalized for learning: observations by their running mean" in " ".join(ended.out)
    assert rl_runner(*words, "total_steps=41", f"hydra.run.dir={parts}").code == 0
    assert rl_runner("resume", str(parts), "plugins=[test_normalize]", "total_steps=70").code == 0
    one, other = (json.loads((place / "result.json").read_text()) for place in (whole, parts))
    assert one["params_sha256"] == other["params_sha256"]
    assert one["episode_returns"] == other["episode_returns"]

    refused = rl_runner("resume", str(parts), "plugins=[test_normalize]", "total_steps=90", "normalize_rewards=null")
    assert refused.code == 2
    assert "normalize_rewards is 5.0 there, None here" in refused.err[0]

    assert rl_runner("eval", str(parts), "plugins=[test_normalize]", "--episodes", "2").code == 0
    assert rl_runner("export", str(parts), "plugins=[test_normalize]").code == 0
    agent, *_ = load(load_config(parts / "config.yaml", ["plugins=[test_normalize]"]), parts)
    assert params_sha256(agent) == one["params_sha256"]  # the statistics included
    raw = 500 + 1000 * torch.randn(50, 2)
    module = torch.export.load(parts / "policy.pt2").module()
    assert torch.allclose(module(raw), agent.act(raw), atol=1e-5)
    assert agent.act(raw).std() > 1e-4  # and not the end of tanh everywhere


class Plain:
    """A stranger's agent that knows nothing of statistics, encoders or PARTS."""

    actions = "continuous"

    def __init__(self, *, spec: Any, batch_size: int = 4):
        self.gamma, self.batch_size, self.dim = 0.9, batch_size, spec.action_dim
        self.seen: list[Tensor] = []
        self.weight = torch.zeros(1)

    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        return self.act(obs)

    def act(self, obs: Tensor) -> Tensor:
        self.seen.append(obs)
        return torch.zeros(len(obs), self.dim)

    def update(self, batch: Batch, step: int) -> Any:
        self.seen += [batch.obs, batch.next_obs, batch.reward]
        self.weight += 1
        return {"losses/td_loss": torch.zeros(())}, batch.reward.abs()

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight.copy_(state["weight"])


def test_a_strangers_agent_is_given_scaled_numbers_as_it_is(configure: Callable[..., Config]) -> None:
    mine = {"algo": {"_target_": "test_normalize.Plain"}, "plugins": ["test_normalize"]}
    run = trained(configure, *FAR, *BOTH, **mine)
    agent: Any = run.agent
    assert max(seen.abs().max() for seen in agent.seen) <= 10.0
    state = state_of(agent)
    assert state.keys() == {"own", "running_scales"}
    other: Any = build(run.config, None).agent
    load_state(other, state)
    assert torch.equal(other.weight, agent.weight)
    ours, theirs = agent.running_scales, other.running_scales
    assert torch.equal(ours.observations.std, theirs.observations.std)
    assert torch.equal(ours.rewards.scale, theirs.rewards.scale)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("algo=q_learning env=FrozenLake-v1 normalize_rewards=5",
         "normalize_rewards: QLearning learns a table, to which scales are all the same; leave it out"),
        ("algo=dqn env=FrozenLake-v1 normalize_observations=true",
         "normalize_observations: FrozenLake-v1 observes numbered states, whose scale is known; leave it out"),
        ("algo=dqn env=Catch-v0 plugins=[pixels] normalize_observations=true",
         "normalize_observations: Catch-v0 observes bytes, whose scale is known; leave it out"),
        ("algo=sac normalize_rewards=0", "normalize_rewards=0: must be greater than 0"),
        ("algo=sac normalize_observations=3", "normalize_observations=3: must be a valid boolean"),
    ],
)  # fmt: skip
def test_what_need_not_be_normalized_is_one_line(words: str, line: str, rl_runner: Any) -> None:
    ended = rl_runner(*words.split(), "tuned=none", "dry_run=true")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert ended.err[0].startswith(line)
