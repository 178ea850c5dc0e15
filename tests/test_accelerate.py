"""An update captured as one graph does what it does eagerly, for every algorithm and option; compiling takes time."""

import functools
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_runner import accelerate
from rl_runner.envs import Spec
from rl_runner.logger import Averages
from rl_runner.networks import MLP, Dueling
from rl_runner.optim import lr_factor, with_schedule
from rl_runner.persistence.checkpoint import state_of
from rl_runner.replay import PrioritizedReplay, UniformReplay
from rl_runner.residual import Residual
from rl_runner.run import build
from rl_runner.train import train
from rl_runner.values import Categorical, Quantile

UPDATES = 50
NETWORK = functools.partial(MLP, hidden=[8], activation="relu", norm="none")
NOISY = functools.partial(Dueling, hidden=[8], activation="relu", norm="none", noisy=0.5)
DUELING = functools.partial(Dueling, hidden=[8], activation="gelu", norm="layer")
CROSSQ = functools.partial(MLP, hidden=[8], activation="relu", norm="batch", norm_after_activation=True)
XQC = functools.partial(MLP, hidden=[8], activation="relu", norm="batch", unit_norm=True)
DROQ = functools.partial(MLP, hidden=[8], activation="relu", norm="layer", dropout=0.2)
BLOCKS = functools.partial(Residual, block="pre_layer", width=8, blocks=1, expansion=2, activation="relu")
CATEGORICAL = functools.partial(Categorical, atoms=7, v_min=-3, v_max=3)
QUANTILE = functools.partial(Quantile, quantiles=5, kappa=1.0, drop=1)
MIN_BY_MEAN = functools.partial(Quantile, quantiles=5, kappa=1.0, drop=None)
OPTIMIZERS = {
    "adam": functools.partial(torch.optim.Adam, lr=3e-3),
    "adamw": functools.partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=3e-3, centered=True, momentum=0.5),
    "sgd": functools.partial(torch.optim.SGD, lr=3e-3, momentum=0.9, nesterov=True),
}
PRIORITIZED = {"kind": "prioritized", "n_step": 3}
SLOW = pytest.mark.slow

CASES = [
    pytest.param("sac", {}, {}, id="sac"),
    pytest.param("td3", {"policy_delay": 2}, {}, id="td3-delayed"),
    pytest.param("dqn", {"double": True, "huber": True, "max_grad_norm": 0.5}, PRIORITIZED, id="ddqn-prioritized"),
    pytest.param("sac", {"value": QUANTILE, "critics": 3, "actor_reduce": "mean"}, PRIORITIZED, id="tqc", marks=SLOW),
    pytest.param(
        "dqn", {"value": CATEGORICAL, "double": True, "network": DUELING}, PRIORITIZED, id="c51-dueling", marks=SLOW
    ),
    pytest.param("discrete_sac", {}, PRIORITIZED, id="discrete-sac"),
    pytest.param(
        "dqn", {"value": CATEGORICAL, "double": True, "network": NOISY}, PRIORITIZED, id="rainbow", marks=SLOW
    ),
    pytest.param("dqn", {"munchausen": 0.9, "target_update": "polyak"}, {}, id="munchausen"),
    pytest.param(
        "discrete_sac", {"value": QUANTILE, "critics": 3, "actor_reduce": "mean", "network": DUELING, "alpha": 0.2},
        {}, id="discrete-tqc", marks=SLOW,
    ),
    pytest.param("discrete_sac", {"value": CATEGORICAL, "max_grad_norm": 0.1}, {}, id="discrete-c51", marks=SLOW),
    pytest.param(
        "dqn", {"munchausen": 0.9, "network": NOISY, "value": MIN_BY_MEAN, "temperature": 0.3}, PRIORITIZED,
        id="munchausen-noisy-quantile", marks=SLOW,
    ),
    pytest.param(
        "sac", {"network": CROSSQ, "target_update": "none", "policy_delay": 3}, {}, id="crossq", marks=SLOW
    ),
    pytest.param(
        "sac", {"critic_network": DROQ, "critics": 3, "target_of": 2, "policy_delay": 2}, {}, id="redq-droq", marks=SLOW
    ),
    pytest.param(
        "sac", {"network": XQC, "value": CATEGORICAL, "target_reduce": "mean", "policy_delay": 2}, PRIORITIZED,
        id="xqc", marks=SLOW,
    ),
    pytest.param(
        "sac",
        {"network": functools.partial(BLOCKS, block="post_batch", unit_norm=True), "value": CATEGORICAL,
         "policy_delay": 2, "noise_mu": 2.0}, PRIORITIZED, id="flashsac", marks=SLOW,
    ),
    pytest.param("sac", {"network": BLOCKS, "actor_lr": 1e-3}, {}, id="simba", marks=SLOW),
    pytest.param(
        "sac", {"network": functools.partial(BLOCKS, block="post_layer", expansion=1), "value": MIN_BY_MEAN,
                "target_reduce": "mean", "actor_reduce": "mean"}, PRIORITIZED, id="bro", marks=SLOW,
    ),
    pytest.param(
        "sac", {"value": QUANTILE, "target_reduce": "mean", "actor_reduce": "first"}, {}, id="sac-mean", marks=SLOW
    ),
    pytest.param("td3", {"network": CROSSQ}, {}, id="td3-batch-norm", marks=SLOW),
    pytest.param("dqn", {"network": XQC}, {}, id="dqn-batch-norm", marks=SLOW),
    pytest.param("ddpg", {"value": CATEGORICAL}, PRIORITIZED, id="d4pg", marks=SLOW),
    pytest.param("dqn", {"value": MIN_BY_MEAN}, {}, id="qrdqn", marks=SLOW),
    pytest.param("td3", {"value": MIN_BY_MEAN, "actor_objective": "min"}, {}, id="td3-quantile", marks=SLOW),
    pytest.param("sac", {"value": CATEGORICAL}, PRIORITIZED, id="sac-categorical", marks=SLOW),
    pytest.param("ddpg", {}, {}, id="ddpg", marks=SLOW),
    pytest.param(
        "ddpg", {"noise": "ou", "max_grad_norm": 0.1, "actor_lr": 1e-3}, PRIORITIZED, id="ddpg-clipped", marks=SLOW
    ),
    pytest.param(
        "td3", {"policy_delay": 1, "actor_objective": "min", "max_grad_norm": 0.1}, {}, id="td3-min", marks=SLOW
    ),
    pytest.param("sac", {"alpha": 0.2, "max_grad_norm": 0.1}, PRIORITIZED, id="sac-fixed-alpha", marks=SLOW),
    pytest.param(
        "sac", {"log_std_min": -0.1, "log_std_max": 0.1, "target_entropy": 0.5, "alpha_lr": 1e-2, "actor_lr": 1e-3},
        {"n_step": 3}, id="sac-clamped", marks=SLOW,
    ),
    pytest.param("dqn", {}, {}, id="dqn", marks=SLOW),
    pytest.param("dqn", {"target_update": "polyak"}, {"deduplicate": True}, id="dqn-polyak", marks=SLOW),
    pytest.param("dqn", {"network": DUELING}, {}, id="dqn-dueling", marks=SLOW),
    *(pytest.param("sac", {"optimizer": OPTIMIZERS[name]}, {}, id=f"sac-{name}", marks=SLOW)
      for name in ("adamw", "rmsprop", "sgd")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # PyTorch 2.13 takes a 0-dimensional float64 tensor on the CPU, as log α is here, for a number that never changes.
    monkeypatch.setenv("TENSORIFY_PYTHON_SCALARS", "0")
    torch._dynamo.utils._is_tensorify_enabled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def filled_replay(name: str, kind: str = "uniform", **keys: Any) -> Any:
    """A hundred transitions of two environments, some of them terminal, some truncated, for the agent `name`."""
    num_actions, action_dim = (4, None) if name in ("dqn", "discrete_sac") else (None, 2)
    spec = Spec((3,), torch.float32, None, num_actions, action_dim, 1, None)
    wired = {"spec": spec, "num_envs": 2, "gamma": 0.9, "total_steps": 100, "seed": 3, "device": "cpu"}
    keys = wired | {"directory": None, "capacity": 64} | keys
    if kind == "prioritized":
        replay: Any = PrioritizedReplay(alpha=0.6, beta=0.4, beta_end=1.0, epsilon=1e-3, **keys)
    else:
        replay = UniformReplay(**keys)
    stream = torch.Generator().manual_seed(0)
    obs = torch.randn(2, 3, generator=stream)
    for _ in range(50):
        next_obs, action = torch.randn(2, 2, 3, generator=stream)
        reward, dice = torch.randn(2, generator=stream), torch.rand(2, generator=stream)
        action = action[:, :2].tanh() if action_dim else action[:, 0].sign().long() + 1
        ended = dice < 0.2
        replay.add(obs, action, reward, dice < 0.1, (dice >= 0.1) & ended, next_obs)
        obs = torch.where(ended.unsqueeze(1), torch.randn(2, 3, generator=stream), next_obs)
    return replay


class InDouble:
    """A replay whose batches are double precision."""

    def __init__(self, replay: Any):
        self.replay = replay
        self.draw, self.prioritize = replay.draw, replay.prioritize

    def gather(self, *drawn: Tensor) -> Any:
        batch = self.replay.gather(*drawn)
        return type(batch)(*(value.double() if value.is_floating_point() else value for value in batch))


def tensors_of(state: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {name: state}
    children = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: value for child, part in children for key, value in tensors_of(part, f"{name}.{child}").items()}


def assert_close(compiled: Any, eager: Any, rtol: float, atol: float) -> None:
    ours, theirs = tensors_of(state_of(compiled)), tensors_of(state_of(eager))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


def learn(mode: str, agent: Any, replay: Any, updates: int) -> dict[str, float]:
    """The mean metrics of so many updates."""
    return learn_and_act(mode, agent, replay, updates, None)[0]


def learn_and_act(
    mode: str, agent: Any, replay: Any, updates: int, obs: Tensor | None
) -> tuple[dict[str, float], list[Tensor]]:
    """The mean metrics of so many updates, and the actions to explore with after each."""
    averages = Averages()
    update = accelerate.build_update(agent, replay, averages, mode)
    actions = []
    for i in range(updates):
        update(5 * i)
        if obs is not None:
            actions.append(agent.explore(obs, 5 * i, torch.tensor([i == 0, i % 7 == 0])))
    return averages.read(), actions


@pytest.mark.parametrize(("name", "keys", "replay_keys"), CASES)
def test_compiled_is_eager(
    request: pytest.FixtureRequest, make_agent: Any, name: str, keys: dict[str, Any], replay_keys: dict[str, Any]
) -> None:
    replay, eager_replay = (filled_replay(name, **replay_keys) for _ in range(2))  # as ever, in single precision
    request.getfixturevalue("float64")
    keys = {"network": NETWORK, "optimizer": OPTIMIZERS["adam"]} | keys
    agent, eager = make_agent(name, **keys), make_agent(name, **keys)
    obs = torch.randn(2, 3)
    metrics, actions = learn_and_act("compile", agent, InDouble(replay), UPDATES, obs)
    eager_metrics, eager_actions = learn_and_act("eager", eager, InDouble(eager_replay), UPDATES, obs)

    torch.testing.assert_close(actions, eager_actions, rtol=1e-6, atol=1e-9)
    assert agent.behave.graphs, "acting went through Dynamo"
    assert_close(agent, eager, rtol=1e-6, atol=1e-9)
    assert_close(replay, eager_replay, rtol=1e-6, atol=1e-9)
    assert metrics == pytest.approx(eager_metrics, rel=1e-6)
    assert_one_graph(acting=1, learning=2 if getattr(agent, "policy_delay", 1) > 1 else 1)
    if name == "sac" and "log_std_min" not in keys:
        obs = torch.randn(100, 3)
        (_, log_std), (_, at_first) = agent.actor(obs), make_agent(name, **keys).actor(obs)
        assert log_std.mean() > at_first.mean() - 0.5, "the policy's standard deviation collapsed"


def test_compiled_tables_are_eager_ones(configure: Any) -> None:
    words = ("algo=q_learning", "algo.initial_q=0.5", "env=FrozenLake-v1", "num_envs=3")
    words += ("total_steps=300", "eval_every=0", "log_every=150")
    agents, rows = [], list[dict[str, float]]()
    for mode in ("compile", "eager"):
        run = build(configure(*words), None)
        update = accelerate.build_update(run.agent, run.replay, run.averages, mode)
        train(run, update, lambda step, row, evaluation: rows.append(row), lambda: None)
        agents.append(run.agent)
    compiled, eager = agents
    torch.testing.assert_close(compiled.table, eager.table, rtol=1e-12, atol=0)
    assert (eager.table < 0.5).sum() > 20, "nothing was learned"
    assert compiled.learn.graphs
    assert compiled.behave.graphs
    assert rows[0]["values/q_mean"] == pytest.approx(rows[1]["values/q_mean"], rel=1e-12)
    assert_one_graph(acting=1)


class Summing:
    """Learns nothing, but tells what from."""

    batch_size = 64

    def update(self, batch: Any, step: int) -> tuple[dict[str, Tensor], Tensor]:
        return self.learn(batch)

    def learn(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        return {"sum": batch.next_obs.double().sum()}, batch.reward


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_a_graph_follows_final_observations_that_are_moved(kind: str) -> None:
    replays = [filled_replay("dqn", kind, deduplicate=True, capacity=1000) for _ in range(2)]
    averages = [Averages() for _ in replays]
    updates = [
        accelerate.build_update(Summing(), *parts, mode)
        for *parts, mode in zip(replays, averages, ("compile", "eager"), strict=True)
    ]
    rows = torch.randn(30, 20, 2, 3)
    for more in rows:
        for obs in more:  # 40 episodes of one step, where there is room for 64 at first
            for replay in replays:
                replay.add(obs, torch.zeros(2).long(), obs[:, 0], torch.zeros(2) > 0, torch.zeros(2) == 0, obs + 1)
        for update in updates:
            update(0)
        compiled, eager = (mean.read()["sum"] for mean in averages)
        assert compiled == pytest.approx(eager, rel=1e-9)


@pytest.mark.parametrize("name", ["adam", *(pytest.param(name, marks=SLOW) for name in ("adamw", "rmsprop", "sgd"))])
def test_a_graph_reads_falling_learning_rates(float64: None, make_agent: Any, name: str) -> None:
    agents = []
    for mode in ("eager", "compile"):
        agent = make_agent("dqn", network=NETWORK, optimizer=OPTIMIZERS[name])
        update = accelerate.build_update(agent, InDouble(filled_replay("dqn")), Averages(), mode)
        update = with_schedule(update, agent, functools.partial(lr_factor, "linear", 0.0, 20))
        for step in range(20):
            update(step)
        agents.append(agent)
    eager, compiled = agents
    assert_close(compiled, eager, rtol=1e-6, atol=1e-9)
    assert compiled.optimizer.param_groups[0]["lr"].item() == pytest.approx(3e-3 / 20)
    assert compiled.learn.graphs, "the graph was not called directly"
    assert_one_graph()


@pytest.mark.slow
def test_the_first_update_in_single_precision(make_agent: Any) -> None:
    """As runs are; later, Adam amplifies the differences in rounding."""
    keys = {"network": NETWORK, "optimizer": OPTIMIZERS["adam"]}
    agent, eager = make_agent("sac", **keys), make_agent("sac", **keys)
    metrics = learn("compile", agent, filled_replay("sac"), 1)
    assert metrics == pytest.approx(learn("eager", eager, filled_replay("sac"), 1), rel=1e-4)
    assert_close(agent, eager, rtol=1e-4, atol=1e-6)
    assert_one_graph()


def assert_one_graph(acting: int = 0, learning: int = 1) -> None:
    """No recompilation, and no break: that would have raised under `fullgraph`."""
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == acting + learning
    assert not torch._dynamo.utils.counters["graph_break"]


# Which mode is chosen


class Plain:
    """An agent without `learn`."""


def test_few_updates_are_not_worth_compiling(make_agent: Any) -> None:
    agent, cpu = make_agent("sac", optimizer=OPTIMIZERS["adam"]), torch.device("cpu")
    worth = accelerate.UPDATES_WORTH_COMPILING
    assert accelerate.choose("auto", agent, None, cpu, worth - 1)[0] == "eager"
    assert accelerate.choose("auto", agent, None, cpu, worth)[0] == "compile"
    assert accelerate.choose("compile", agent, None, cpu, 1) == ("compile", "as configured")
    assert accelerate.choose("eager", agent, None, cpu, worth) == ("eager", "as configured")


def test_a_cuda_graph_is_taken_where_it_is_asked_for_and_possible() -> None:
    cuda, enough = torch.device("cuda"), accelerate.UPDATES_WORTH_COMPILING
    on_gpu, table = SimpleNamespace(learn=None), SimpleNamespace(learn=None, device="cpu")
    growing = SimpleNamespace(grows=True)
    assert accelerate.choose("cudagraph", on_gpu, None, cuda, 1) == ("cudagraph", "as configured")
    for obstacle, parts in {"on the CPU": (table, None), "deduplicated replay": (on_gpu, growing)}.items():
        mode, reason = accelerate.choose("cudagraph", *parts, cuda, 1)
        assert (mode, obstacle in reason) == ("compile", True)
    mode, reason = accelerate.choose("auto", on_gpu, None, cuda, enough)
    assert (mode, "CUDA graphs are unmeasured: accelerate=cudagraph" in reason) == ("compile", True)
    assert accelerate.choose("auto", on_gpu, None, cuda, enough - 1)[0] == "eager"
    assert accelerate.choose("auto", table, None, cuda, enough) == ("compile", "15,000 updates are worth compiling")


def test_what_cannot_be_captured_runs_eager_and_says_why(make_agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    foreign = make_agent("sac", optimizer=functools.partial(torch.optim.Adagrad, lr=0.1))
    mode, reason = accelerate.choose("compile", foreign, None, cpu, 10**6)
    assert (mode, "Adagrad" in reason) == ("eager", True)
    mode, reason = accelerate.choose("compile", Plain(), None, cpu, 10**6)
    assert (mode, "Plain has no learn()" in reason) == ("eager", True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    mode, reason = accelerate.choose("auto", make_agent("sac"), None, cpu, 10**6)
    assert (mode, "C++ compiler" in reason) == ("eager", True)


def test_an_optimizer_from_outside_learns_eagerly(make_agent: Any) -> None:
    agent = make_agent("sac", optimizer=functools.partial(torch.optim.Adagrad, lr=0.1))
    before = {name: value.clone() for name, value in tensors_of(state_of(agent)).items()}
    learn("eager", agent, filled_replay("sac"), 3)
    after = tensors_of(state_of(agent))
    assert all(not torch.equal(before[name], after[name]) for name in before if "net" in name or name == ".log_alpha")


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_momentum_of_units_that_are_off_ends_at_zero(make_agent: Any, mode: str) -> None:
    tiny = torch.finfo(torch.float32).tiny
    agent = make_agent("dqn", network=NETWORK, optimizer=OPTIMIZERS["adam"])
    bias = agent.q.net.hidden[0].bias
    with torch.no_grad():
        bias[..., 0] = -1e3  # a unit that is off
    momentum = agent.optimizer.state[bias]["exp_avg"]
    momentum.fill_(tiny / 2)
    learn(mode, agent, filled_replay("dqn"), updates=10)
    assert momentum.flatten()[0] == 0
    assert momentum.flatten()[1:].abs().min() > tiny
    assert torch.tensor(tiny) / 2 > 0, "environments have this arithmetic too"


def test_numbers_are_flushed_alike_in_every_thread() -> None:
    words = "import torch; from rl_runner import accelerate, machine; machine.set_up('cpu', 2, 'highest');"
    words += "x = torch.full((2**20,), 1e-39);"
    words += "accelerate.flushing(lambda step: print(int((x * 1.0).count_nonzero()), flush=True))(0);"
    words += "print(int((x[:9] * 1.0).count_nonzero()))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "9"]
