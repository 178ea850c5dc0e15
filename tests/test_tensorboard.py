"""TensorBoard's own server shows every tag of the contract, one point per step, asked over its HTTP interface."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from rl_runner.config.schema import Config
from rl_runner.header import MACHINE
from rl_runner.run import run

SHORT = ("learning_starts=40", "log_every=20", "eval_every=40", "eval_episodes=1", "final_eval_episodes=1")
SMALL = ("tuned=none", "algo.batch_size=8", "algo.gamma=0.9", "network.hidden=[8]")
RUNS = {
    "sac": ("env=Pendulum-v1", "total_steps=400", *SMALL, *SHORT),
    "td3": ("env=Pendulum-v1", "total_steps=400", *SMALL, *SHORT),
    "dqn": ("env=CartPole-v1", "total_steps=100", *SMALL, *SHORT),
    "q_learning": ("env=FrozenLake-v1", "tuned=none", "total_steps=100", *SHORT[1:]),
}
EVERYWHERE = {
    "charts/episodic_return", "charts/episodic_length", "charts/SPS", "charts/updates_per_second", "losses/td_loss",
    "values/q_mean", "values/q_min", "values/q_max", "values/target_mean",
    "eval/return_mean", "eval/return_std", "eval/length_mean", "eval/q_bias",
}  # fmt: skip
TAGS = {
    "sac": {"eval/q_bias_relative", "losses/actor_loss", "losses/alpha_loss", "policy/entropy", "policy/alpha",
            "grads/critic_norm", "grads/actor_norm"},
    "td3": {"eval/q_bias_relative", "losses/actor_loss", "policy/noise_scale", "grads/critic_norm", "grads/actor_norm"},
    "dqn": {"eval/q_bias_relative", "charts/epsilon", "grads/q_norm"},
    "q_learning": {"charts/epsilon", "values/q_error_max", "eval/exact_return"},
}  # fmt: skip


class Server:
    def __init__(self, directory: Path):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", "0"]
        self.process = subprocess.Popen([*command, "--load_fast", "false"], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        address = (re.search(r"http://\S+/", line) for line in self.process.stderr)
        self.url = next(found.group() for found in address if found)

    def get(self, path: str, **query: str) -> Any:
        with urlopen(f"{self.url}data/plugin/{path}?{urlencode(query)}") as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]) -> Path:
    place = tmp_path_factory.mktemp("outputs")
    for algo, words in RUNS.items():
        run(configure(f"algo={algo}", *words), place / algo)
    return place


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    server = Server(directory)
    deadline = time.monotonic() + 60
    while len(server.get("scalars/tags")) < len(RUNS) and time.monotonic() < deadline:
        time.sleep(0.2)
    yield server
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize("algo", RUNS)
def test_every_tag_has_one_point_per_step(server: Server, directory: Path, algo: str) -> None:
    served = server.get("scalars/tags")
    assert set(served[algo]) == EVERYWHERE | TAGS[algo]
    rows = [json.loads(line) for line in (directory / algo / "metrics.jsonl").read_text().splitlines()]
    for tag in served[algo]:
        points = [(step, value) for _, step, value in server.get("scalars/scalars", run=algo, tag=tag)]
        logged = [(row["step"], row[tag]) for row in rows if tag in row]
        assert [step for step, _ in points] == [step for step, _ in logged]
        assert [value for _, value in points] == pytest.approx([value for _, value in logged], rel=1e-6)
        assert len({step for step, _ in points}) == len(points)


def test_the_custom_layout_and_the_hyperparameters_are_served(server: Server) -> None:
    layout = server.get("custom_scalars/layout")
    charts = [chart["title"] for category in layout["category"] for chart in category["chart"]]
    assert {"TD loss", "Q and its target", "temperature and entropy", "gradient norms"} <= set(charts)
    assert len(charts) == len(set(charts)), "runs of several algorithms share their charts"
    assert set(RUNS) <= set(server.get("scalars/tags"))


@pytest.mark.parametrize("algo", RUNS)
def test_each_run_has_the_charts_of_its_algorithm(directory: Path, algo: str) -> None:
    events = EventAccumulator(str(directory / algo)).Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: [*chart.multiline.tag] for chart in layout.category[0].chart}
    tags = {f"^{tag}$" for tag in EVERYWHERE | TAGS[algo]}
    assert all(set(shown) & tags for shown in charts.values())
    assert {"TD loss", "Q and its target", "return", "Q bias"} <= charts.keys()
    assert ("temperature and entropy" in charts) == (algo == "sac")
    assert ("exploration" in charts) == (algo != "sac")


@pytest.mark.parametrize("algo", ["sac", "q_learning"])
def test_speed_is_that_of_learning(directory: Path, algo: str) -> None:
    rows = [json.loads(line) for line in (directory / algo / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "charts/updates_per_second" in row]
    learning = [row for row in rows if row["charts/updates_per_second"] > 0]  # an update per step, none at random
    assert [row["charts/SPS"] for row in learning] == pytest.approx(
        [row["charts/updates_per_second"] for row in learning]
    )
    assert (rows[0]["charts/updates_per_second"] > 0) == (algo == "q_learning")  # which learns from the first step on


def test_hyperparameters_are_what_decides_the_learning(directory: Path) -> None:
    metadata = EventAccumulator(str(directory / "dqn")).Reload().SummaryMetadata("_hparams_/session_start_info")
    hparams = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    assert {"algo", "env", "network", "optimizer", "replay", "algo.gamma", "optimizer.lr", "total_steps"} <= set(
        hparams
    )
    assert min(hparams) == "algo"  # the server shows them by name, the first five by default
    assert not [name for name in hparams if name in MACHINE or name.endswith("_target_")]
