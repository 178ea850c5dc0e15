"""A search finds the better region, stops what is hopeless, and survives its own death without losing a trial."""

import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from math import log10
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from reporting import summary, write_report
from sweeping import Ended

from rl_runner.config.schema import Config, save_config
from rl_runner.errors import Interrupted, RunFailed, UserError
from rl_runner.persistence import CONFIG, METRICS, RESULT, SEARCH, STATUS, read_json, write_json
from rl_runner.sweep import crew as crew_module
from rl_runner.sweep.crew import crew_of
from rl_runner.sweep.jobs import Job

optuna = pytest.importorskip("optuna")

from rl_runner.sweep import search as search_module  # noqa: E402
from rl_runner.sweep.search import STUDY, Search, recorded, space_of  # noqa: E402

TOTAL = 1000
DISCRETE = ("dqn", "ddqn", "c51", "qrdqn", "munchausen", "rainbow")
SPACE = ["algo.learning_rate=tag(log, interval(1e-5, 1))", "algo.initial_q=0,1"]


class Toy:
    """An engine whose jobs take ten turns, score best at learning rate 1e-2, and can be stopped; it counts them."""

    n_jobs = 2

    def __init__(self, die_at: int | None = None):
        self.started: list[Job] = []
        self.die_at = die_at

    def start(self, job: Job) -> "ToyWorker":
        self.started.append(job)
        if len(self.started) == self.die_at:
            raise KeyboardInterrupt  # the search itself is killed
        return ToyWorker(job)

    def ended(self, started: "ToyWorker") -> str | None:
        return started.ended()

    def stop(self, started: "ToyWorker") -> None:
        started.stopped = True


class ToyWorker:
    def __init__(self, job: Job):
        self.job, self.step, self.stopped = job, 0, False
        self.score = 10.0 - (log10(job.config.algo["learning_rate"]) + 2) ** 2 - job.config.algo["initial_q"]

    def ended(self) -> str | None:
        if self.stopped:
            write_json(self.job.directory / STATUS, {"state": "interrupted"})
            return ""
        self.step += TOTAL // 10
        with (self.job.directory / METRICS).open("a") as file:
            file.write(json.dumps({"step": self.step, "eval/return_mean": self.score * self.step / TOTAL}) + "\n")
        if self.step < TOTAL:
            return None
        write_json(self.job.directory / RESULT, {"eval/return_mean": self.score, "total_steps": TOTAL})
        write_json(self.job.directory / STATUS, {"state": "finished"})
        return ""


def with_words(base: Config, words: dict[str, str]) -> Config:
    """What Hydra would compose, in microseconds."""
    algo = base.algo | {key.removeprefix("algo."): float(value) for key, value in words.items() if key != "seed"}
    return base.model_copy(update={"algo": algo, "seed": int(words.get("seed", base.seed))})


@pytest.fixture
def search(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], Toy]]:
    """Runs a search in a directory of its own; its record and its engine."""
    monkeypatch.setattr(crew_module, "PAUSE", 0)
    monkeypatch.setattr(search_module, "LOOK_EVERY", 0)

    base = configure("algo=q_learning", "env=FrozenLake-v1", f"total_steps={TOTAL}")

    def compose(*jobs: Sequence[str]) -> list[Config]:
        return [with_words(base, dict(word.split("=") for word in words)) for words in jobs]

    def run_search(engine: Toy, directory: Path = tmp_path, **settings: Any) -> tuple[dict[str, Any], Toy]:
        defaults = {"n_trials": 20, "n_seeds": 1, "seed": 0, "prune": False, "prune_after": 0.1, "prune_startup": 3}
        space = space_of(OverridesParser.create().parse_overrides(SPACE))
        running = Search(space=space, compose=compose, directory=directory, **defaults | settings)
        with crew_of(engine) as crew:
            running.run(crew)
        return running.record(), engine

    return run_search


Searcher = Callable[..., tuple[dict[str, Any], Toy]]


def test_finds_the_better_region(search: Searcher) -> None:
    record, engine = search(Toy(), n_trials=25)
    assert len(engine.started) == len(record["trials"]) == 25
    best = max(record["trials"], key=lambda trial: trial["value"])
    assert 1e-3 < best["params"]["algo.learning_rate"] < 1e-1
    assert best["params"]["algo.initial_q"] == "0"
    assert record["importance"]["algo.learning_rate"] > record["importance"]["algo.initial_q"]


def test_stops_what_is_below_the_median(search: Searcher, tmp_path: Path) -> None:
    record, _ = search(Toy(), prune=True)
    values = {trial["number"]: trial["value"] for trial in record["trials"] if trial["state"] == "complete"}
    pruned = [trial["number"] for trial in record["trials"] if trial["state"] == "pruned"]
    assert len(values) + len(pruned) == 20
    assert len(pruned) >= 5
    for number in pruned:
        (directory,) = tmp_path.glob(f"trial={number},*")
        assert read_json(directory / STATUS)["state"] == "pruned"
        assert len((directory / METRICS).read_text().splitlines()) < 10
        assert not (directory / RESULT).exists()
    assert not {0, 1, 2} & set(pruned)


def test_value_is_the_mean_over_seeds(search: Searcher, tmp_path: Path) -> None:
    record, engine = search(Toy(), n_trials=2, n_seeds=3)
    assert sorted(job.config.seed for job in engine.started) == [0, 0, 1, 1, 2, 2]
    for trial in record["trials"]:
        scores = [read_json(path / RESULT)["eval/return_mean"] for path in tmp_path.glob(f"trial={trial['number']},*")]
        assert len(scores) == 3
        assert trial["value"] == pytest.approx(sum(scores) / 3)


def test_killed_search_loses_no_trial(search: Searcher) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(Toy(die_at=6), n_trials=8)
    record, engine = search(Toy(), n_trials=8)
    assert [trial["state"] for trial in record["trials"]] == ["complete"] * 8
    assert 3 <= len(engine.started) < 8  # what had finished was not done again
    again, engine = search(Toy(), n_trials=8)
    assert again == record
    assert engine.started == []


def test_trials_side_by_side_are_not_the_same(search: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    sampler = optuna.samplers.TPESampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **keys: made.append(keys) or sampler(**keys))
    search(Toy(), n_trials=6)
    record, _ = search(Toy(), n_trials=12)
    # Its default depends on Optuna's version; a search that goes on must not propose again what it began with.
    assert [keys for keys in made if keys] == [{"seed": 0, "constant_liar": True}, {"seed": 6, "constant_liar": True}]
    assert len({trial["params"]["algo.learning_rate"] for trial in record["trials"]}) == 12


@pytest.mark.parametrize("name", ["a?b=c", "a#b", "a%41b", "a b:c@d"])
def test_the_record_lies_in_the_directory_whatever_its_name(search: Searcher, tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    record, _ = search(Toy(), directory, n_trials=1)
    assert (directory / STUDY).is_file()
    assert search(Toy(), directory, n_trials=1)[0] == record
    assert list(tmp_path.iterdir()) == [directory]


def damage(path: Path, how: str) -> sqlite3.Connection | None:
    match how:
        case "locked":
            connection = sqlite3.connect(path)
            connection.execute("begin exclusive")
            return connection
        case "cut":
            path.write_bytes(path.read_bytes()[:5000])
        case "overwritten":
            path.write_bytes(path.read_bytes()[:4096] + b"x" * 40_000)
        case "a directory":
            path.unlink()
            path.mkdir()
        case "no database":
            path.write_text("hello\n" * 1000)
        case "another's":
            path.unlink()
            with sqlite3.connect(path) as connection:
                connection.execute("create table trials (number int)")
    return None


@pytest.mark.parametrize("how", ["locked", "cut", "overwritten", "a directory", "no database", "another's"])
def test_a_study_that_cannot_be_read_is_one_line(
    search: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    connect = optuna.storages.RDBStorage.__init__
    monkeypatch.setattr(  # SQLite's own patience is five seconds
        optuna.storages.RDBStorage,
        "__init__",
        lambda self, url, *_, **keys: connect(self, url, {"connect_args": {"timeout": 0.1}}, **keys),
    )
    search(Toy(), n_trials=1)
    study = tmp_path / STUDY
    connection = damage(study, how)
    with pytest.raises(RunFailed) as caught, recorded(study):
        search(Toy(), n_trials=2)
    if connection:
        connection.close()
    first, _, rest = str(caught.value).partition("; ")
    assert first.startswith(f"{study}: ")
    assert "sqlalche" not in first
    assert rest == "the same command goes on, with fresh=true a search begins anew"
    assert "\n" not in str(caught.value)


def test_failed_trial_is_tried_again_by_the_next_command(search: Searcher) -> None:
    class Failing(Toy):
        def start(self, job: Job) -> ToyWorker:
            worker = super().start(job)
            worker.score = float("nan")
            return worker

        def ended(self, started: ToyWorker) -> str | None:
            return "exit code 1"

    record, _ = search(Failing(), n_trials=3)
    assert [trial["state"] for trial in record["trials"]] == ["fail"] * 3
    failed = [trial["params"] for trial in record["trials"]]
    record, _ = search(Toy(), n_trials=3)
    assert [trial["params"] for trial in record["trials"][3:]] == failed
    assert [trial["state"] for trial in record["trials"][3:]] == ["complete"] * 3


def test_interrupted_search_keeps_its_open_trials(search: Searcher) -> None:
    class Interrupting(Toy):
        def start(self, job: Job) -> ToyWorker:
            if len(self.started) == 3:
                import signal

                signal.raise_signal(signal.SIGINT)
            return super().start(job)

    with pytest.raises(Interrupted, match="all is saved; to go on: rl-runner "):
        search(Interrupting(), n_trials=6)
    record, _ = search(Toy(), n_trials=6)
    assert [trial["state"] for trial in record["trials"]] == ["complete"] * 6


def test_space_is_what_is_swept() -> None:
    words = ["a=interval(0.5, 2)", "b=tag(log, int(interval(1, 64)))", "c=choice([64, 64], [32])", "d=range(1, 4)"]
    space = space_of(OverridesParser.create().parse_overrides(words))
    assert space == {
        "a": optuna.distributions.FloatDistribution(0.5, 2.0),
        "b": optuna.distributions.IntDistribution(1, 64, log=True),
        "c": optuna.distributions.CategoricalDistribution(["[64,64]", "[32]"]),
        "d": optuna.distributions.CategoricalDistribution(["1", "2", "3"]),
    }
    with pytest.raises(UserError, match=r"hydra\.sweeper\.n_seeds"):
        space_of(OverridesParser.create().parse_overrides(["seed=1,2"]))


def test_report_tells_what_the_search_found(configure: Callable[..., Config], tmp_path: Path) -> None:
    trials = [
        {"number": i, "state": "complete", "value": value, "params": {"optimizer.lr": lr, "algo.batch_size": "64"}}
        for i, (value, lr) in enumerate([(10.0, 1e-3), (30.0, 2e-3), (20.0, 5e-3)])
    ] + [{"number": 3, "state": "pruned", "value": 1.0, "params": {"optimizer.lr": 1.0, "algo.batch_size": "64"}}]
    record = {"trials": trials, "importance": {"optimizer.lr": 0.9, "algo.batch_size": 0.1}}
    write_json(tmp_path / SEARCH, record)
    job = tmp_path / "trial=1"
    job.mkdir()
    save_config(configure("algo=dqn", "env=CartPole-v1"), job / CONFIG)
    write_json(job / STATUS, {"state": "finished"})
    write_json(job / RESULT, {"eval/return_mean": 30.0, "wall_seconds": 1.0, "sps": 5.0, "updates": 3})
    page = write_report([tmp_path], tmp_path / "report").read_text()
    assert "3 finished, 1 were stopped early" in page
    assert "The best is trial 1 with 30: optimizer.lr=0.002, algo.batch_size=64." in page
    assert f"{tmp_path.name}: 3 finished, 1 were stopped early. The best is trial 1 with 30" in summary([tmp_path])
    assert "Score of every finished trial, and the best so far" in page
    assert "What being among the best of 3 trials depends on" in page


CONTINUOUS = ["ddpg", "td3", "sac", "flashsac"]
MORE = ["d4pg", "tqc", "crossq", "crossq_wide", "xqc", "xqc_small", "redq", "droq", "simba", "bro_fast"]
SPACES = [*DISCRETE, "q_learning", *CONTINUOUS, *(pytest.param(algo, marks=pytest.mark.slow) for algo in MORE)]


@pytest.mark.parametrize("algo", SPACES)
def test_every_algorithm_has_a_sound_space(rl_runner: Callable[..., Ended], tmp_path: Path, algo: str) -> None:
    env = ({"q_learning": "FrozenLake-v1"} | dict.fromkeys(DISCRETE, "CartPole-v1")).get(algo, "Pendulum-v1")
    ended = rl_runner("-m", "hydra/sweeper=optuna", f"algo={algo}", f"env={env}", "dry_run=true")
    assert (ended.code, ended.err) == (0, [])
    assert ended.out[0].startswith("20 trials of 1 jobs in outputs/sweeps/")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be greater than 0"),
        (["algo.gamma=interval(0.5,2)"], "algo.gamma=2.0: must be less than or equal to 1"),
        (["hydra.sweeper.trials=3"], "hydra.sweeper.trials: no such key; did you mean hydra.sweeper.n_trials?"),
    ],
)
def test_wrong_search_is_one_line(rl_runner: Callable[..., Ended], words: list[str], expected: str) -> None:
    ended = rl_runner("-m", "hydra/sweeper=optuna", "algo=q_learning", "env=FrozenLake-v1", *words)
    assert (ended.code, ended.err) == (2, [expected])


def test_missing_extra_is_named_in_one_line(
    rl_runner: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "rl_runner.sweep.search")
    ended = rl_runner("-m", "hydra/sweeper=optuna", "algo=dqn", "env=CartPole-v1")
    assert (ended.code, ended.err) == (2, ["hydra/sweeper=optuna needs optuna: pip install 'rl-runner[optuna]'"])
