"""Schedules of a run: learning rates that fall, noise that lasts, networks that begin anew."""

import functools
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from scipy import stats
from sweeping import Ended
from test_train import finish, start
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from rl_runner import accelerate, header
from rl_runner.config.schema import Config
from rl_runner.explore import RepeatedActions
from rl_runner.optim import build, lr_factor, minimize, with_schedule
from rl_runner.persistence.checkpoint import state_of, tensors
from rl_runner.run import build_agent, params_sha256, renew
from rl_runner.seeding import derive
from rl_runner.train import train

# Learning rates


@pytest.mark.parametrize(
    ("schedule", "end", "step", "factor"),
    [
        ("linear", 0.0, 25, 0.75), ("linear", 0.0, 100, 0.0), ("linear", 0.0, 104, 0.0), ("linear", 0.5, 25, 0.875),
        ("linear", 0.5, 104, 0.5), ("cosine", 0.0, 0, 1.0), ("cosine", 0.0, 25, 0.853553), ("cosine", 0.0, 50, 0.5),
        ("cosine", 0.0, 100, 0.0), ("cosine", 0.5, 25, 0.926777), ("cosine", 0.5, 50, 0.75), ("cosine", 0.5, 104, 0.5),
    ],
)  # fmt: skip
def test_learning_rates_fall_to_their_end(schedule: str, end: float, step: int, factor: float) -> None:
    assert lr_factor(schedule, end, 100, step) == pytest.approx(factor, abs=1e-6)


def test_a_falling_cosine_is_that_of_torch(float64: None) -> None:
    net, twin = (nn.Linear(3, 2) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    agent = nn.Module()
    agent.optimizer = build(functools.partial(Adam, lr=0.1), net.parameters())  # type: ignore[assignment]
    reference = Adam(twin.parameters(), lr=0.1)
    scheduler = CosineAnnealingLR(reference, T_max=12, eta_min=0.05)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def learn(_: int) -> None:
        minimize(net(x).square().sum(), agent.optimizer)

    update = with_schedule(learn, agent, functools.partial(lr_factor, "cosine", 0.5, 24))
    for i in range(12):
        update(2 * i)
        twin.zero_grad()
        twin(x).square().sum().backward()
        reference.step()
        scheduler.step()
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9)


def test_what_falls_is_logged_and_said(configure: Any) -> None:
    run = start(configure, "dqn", "lr_schedule=cosine", "lr_end=0.5", "optimizer.lr=3e-4", "total_steps=40")
    assert "learning rates falling to 0.5 of what they are" in header.learning(run, 40)
    logged = {row["step"]: row["charts/learning_rate"] for row in finish(run) if "charts/learning_rate" in row}
    assert logged == pytest.approx({10: 2.780331e-4, 20: 2.25e-4, 30: 1.719670e-4, 40: 1.5e-4}, rel=1e-6)


def test_defaults_are_left_out_of_the_config_that_names_a_job(configure: Callable[..., Config]) -> None:
    values = configure("algo=sac", "env=Pendulum-v1", "tuned=none").model_dump()
    assert "lr_end" not in values
    assert not {"reset_at", "noise_mu"} & values["algo"].keys()
    assert configure("algo=flashsac", "env=Pendulum-v1").model_dump()["lr_end"] == 0.5


# Noise that lasts


def test_noise_lasts_as_long_as_flashsac_says() -> None:
    repeats = RepeatedActions(2.0, torch.Generator().manual_seed(0), longest=16)
    repeats.hold(torch.randn(20_000, 2), torch.ones(20_000, dtype=torch.bool))
    draws = (repeats.left + 1).tolist()
    weights = [n**-2.0 for n in range(1, 17)]
    expected = [20_000 * weight / sum(weights) for weight in weights]
    assert stats.chisquare([draws.count(n) for n in range(1, 17)], expected).pvalue > 0.001


class Clock:
    """Says how long each action lasts."""

    def __init__(self, *durations: list[int]):
        self.durations = iter(durations)

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return torch.tensor(next(self.durations)) - 1


def test_noise_is_held_and_ends_with_its_time_or_its_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "searchsorted", Clock([3, 2], [1, 1], [9, 4], [1, 1], [2, 2]))
    repeats, held = RepeatedActions(2.0, torch.Generator(), longest=16), []
    for step in range(5):
        fresh = torch.tensor([[10.0 * step, 1.0], [20.0 * step, 2.0]])
        held.append(repeats.hold(fresh, torch.tensor([step == 0, step in (0, 3)])).tolist())
    # The first environment holds 0 for three steps, then begins at step 3; the other one at 2, and anew at 3.
    assert [[row[0][0], row[1][0]] for row in held] == [[0, 0], [0, 0], [0, 40], [30, 60], [40, 80]]
    assert [[row[0][1], row[1][1]] for row in held] == [[1, 2]] * 5


def test_sac_holds_the_noise_and_not_the_action(make_agent: Any) -> None:
    agent, plain = make_agent("sac", noise_mu=1.01), make_agent("sac")
    assert "repeats" in agent.PARTS
    assert "repeats" not in plain.PARTS
    seen: list[Tensor] = []
    behave = agent.behave
    agent.behave = lambda obs, noise: seen.append(noise) or behave(obs, noise)
    obs, first = torch.randn(40, 3, 3), torch.zeros(3, dtype=torch.bool)
    actions = [agent.explore(obs[i], i, first) for i in range(40)]
    same = [(seen[i] == seen[i - 1]).all(dim=-1) for i in range(1, 40)]
    assert 10 < torch.stack(same).sum() < 110
    assert not any((actions[i] == actions[i - 1]).all(dim=-1).any() for i in range(1, 40))


def test_without_it_the_stream_is_what_it_was(make_agent: Any) -> None:
    agent, twin = make_agent("sac"), torch.Generator().manual_seed(derive(1, "behaviour"))
    obs, first = torch.randn(4, 3), torch.zeros(4, dtype=torch.bool)
    for step in range(3):
        wanted = agent.behave(obs, torch.randn(4, 2, generator=twin))
        assert torch.equal(agent.explore(obs, step, first), wanted)


def test_target_entropy_of_flashsac(configure: Callable[..., Config]) -> None:
    wanted = 0.5 * math.log(2 * math.pi * math.e * 0.15**2)
    assert wanted == pytest.approx(-0.478182, abs=1e-6)
    found = configure("algo=flashsac", "env=Pendulum-v1").algo["target_entropy_per_dim"]
    assert found == pytest.approx(wanted, abs=1e-6)


# Networks that begin anew

RESET = {
    "dqn": ("q", "target_q", "optimizer"),
    "ddpg": ("actor", "critics", "target_actor", "target_critics", "actor_optimizer", "critic_optimizer"),
    "td3": ("actor", "critics", "target_actor", "target_critics", "actor_optimizer", "critic_optimizer"),
    "sac": ("actor", "critics", "target_critics", "log_alpha", "actor_optimizer", "critic_optimizer",
            "alpha_optimizer"),
}  # fmt: skip


@pytest.mark.parametrize("algo", RESET)
def test_what_begins_anew_is_a_fresh_agent_of_the_steps_seed(configure: Any, algo: str) -> None:
    words = ["network.norm=batch", "+algo.reset_at=[30]", "normalize_observations=true"]
    run = start(configure, algo, *words)
    assert "; networks begin anew at 30" in header.learning(run, 40)
    finish(run)
    places = {name: [t.data_ptr() for _, t in tensors(state_of(getattr(run.agent, name)))] for name in RESET[algo]}
    kept = {name: deepcopy(state_of(getattr(run.agent, name))) for name in run.agent.PARTS if name not in RESET[algo]}
    before = params_sha256(run.agent)
    renew(run.agent, run.config, run.envs.spec, 30)
    assert params_sha256(run.agent) != before
    seed = derive(run.config.seed, "reset at 30")
    fresh, _ = build_agent(run.config.model_copy(update={"seed": seed}), run.envs.spec)
    other, _ = build_agent(run.config, run.envs.spec)
    for name in RESET[algo]:
        ours, theirs = (dict(tensors(state_of(getattr(agent, name)))) for agent in (run.agent, fresh))
        assert ours.keys() == theirs.keys()
        assert ours
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
        assert [tensor.data_ptr() for tensor in ours.values()] == places[name], "a graph would not see it"
    net = RESET[algo][0]
    assert not torch.equal(*(getattr(agent, net).net.output.weight for agent in (fresh, other)))
    for name, state in kept.items():
        now = state_of(getattr(run.agent, name))
        assert all(torch.equal(*pair) for pair in zip(*(dict(tensors(s)).values() for s in (state, now)), strict=True))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_each_reset_comes_once_before_the_updates_of_its_step(configure: Any, num_envs: int) -> None:
    run = start(configure, "sac", f"num_envs={num_envs}", "+algo.reset_at=[5,20,31,500]", "update_every=4")
    done: list[Any] = []
    run.renew = lambda at: done.append((at, run.step))
    train(run, lambda step: done.append(step), lambda *row: None, lambda: None)
    resets = [one for one in done if isinstance(one, tuple)]
    steps = {1: [5, 20, 31], 3: [6, 21, 33]}[num_envs]
    assert resets == list(zip([5, 20, 31], steps, strict=True))
    assert done[done.index((20, steps[1])) + 1] == steps[1], "the step's own updates are of the new networks"


def test_the_replay_stays_and_learning_goes_on(configure: Any) -> None:
    runs = [start(configure, "sac", *words) for words in (("+algo.reset_at=[40]",), ())]
    for run in runs:
        rows = finish(run)
        assert run.updates == 50
        assert all(math.isfinite(value) for row in rows for value in row.values())
    reset, plain = runs
    assert reset.replay.size == plain.replay.size == 60
    assert params_sha256(reset.agent) != params_sha256(plain.agent)
    assert reset.agent.updates == plain.agent.updates == 50
    states = [run.agent.critic_optimizer.state for run in runs]
    assert [{p["step"].item() for p in state.values()} for state in states] == [{21}, {50}]


def test_a_graph_goes_on_with_what_began_anew(configure: Any) -> None:
    agents = []
    for mode in ("eager", "compile"):
        run = start(configure, "dqn", "+algo.reset_at=[40]", "optimizer=sgd", "total_steps=50", "eval_every=0")
        finish(run, accelerate.build_update(run.agent, run.replay, run.averages, mode))
        agents.append(run.agent)
    eager, compiled = agents
    assert compiled.learn.graphs
    torch._dynamo.reset()
    for ours, theirs in zip(compiled.q.parameters(), eager.q.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


# What does not go


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("lr_end=0.5", "lr_end=0.5: is where a schedule ends: add lr_schedule=linear or cosine"),
        ("lr_schedule=cosine lr_end=1.5", "lr_end=1.5: must be less than or equal to 1"),
        ("lr_schedule=cos", "lr_schedule=cos: must be 'constant', 'linear' or 'cosine'"),
        ("algo.reset_at=[0]", "algo.reset_at=0: must be greater than 0"),
        ("algo.reset_at=5", "algo.reset_at=5: must be a list, such as [256,256]"),
        ("algo.noise_mu=1", "algo.noise_mu=1: must be greater than 1"),
        ("algo=td3 algo.noise_mu=2", "algo.noise_mu: no such key; did you mean algo.noise_clip?"),
        ("env=CartPole-v1 algo.noise_mu=2",
         "algo.noise_mu=2.0: is for continuous actions, CartPole-v1 has discrete ones; leave it out"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_one_line(words: str, line: str, rl_runner: Callable[..., Ended]) -> None:
    ended = rl_runner("env=Pendulum-v1", "tuned=none", *words.split(), "dry_run=true")
    assert (ended.code, ended.err) == (2, [line])
