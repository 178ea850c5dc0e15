"""A sweep survives its jobs, its own death, and being told to stop; only what is missing is done again."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mishaps import CURED
from sweeping import TINY, Ended, checkpoints, only, same_as_alone

from rl_runner.config.schema import Config
from rl_runner.errors import UserError
from rl_runner.persistence import CONFIG, RESULT, SWEEP, read_json
from rl_runner.sweep import owned
from rl_runner.sweep.engines import Local
from rl_runner.sweep.jobs import (
    LOG,
    Job,
    duration,
    grid_identity,
    job_hash,
    jobs_in,
    placed,
    sweep_directory,
    together,
)

Command = Callable[..., Ended]
NOTHING = "will learn nothing, they end before their first update: raise total_steps or lower learning_starts"

BEFORE = {"SAC": "c990f3f8", "SAC, actor": "82e052a4", "TD3": "aa5ff9ba", "DQN": "281a2385"}  # by revision b8efe8f
BEFORE |= {
    "SAC, layer norm": "9b9c707b",
    "SAC, critics of layer norm": "bb827c41",
    "DQN, dueling": "85d7a0d9",
}  # a8ad71f


def test_four_of_five_jobs_fail_and_only_those_run_again(
    rl_runner: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-m", *TINY, "+env.kwargs.what=calm,raise,exit,kill,not_a_number")
    first = rl_runner(*words)
    assert first.code == 1
    sweep = only(tmp_path, "outputs/sweeps/*")
    failures = "\n".join(first.err)
    assert "4 of 5 jobs failed:" in failures
    for what, complaint in [
        ("raise", "ZeroDivisionError: the pole fell through the floor"),
        ("exit", "SystemExit: 0"),
        ("kill", r"killed by SIGKILL \(out of memory\?\): .+"),
        ("not_a_number", "reward .*nan"),
    ]:
        assert re.search(rf"env.kwargs.what={what}: .*{complaint}", failures), failures
    finished = {path.parent: path.stat().st_mtime_ns for path in sweep.glob(f"*/{RESULT}")}
    assert {path.name.rsplit(",", 1)[0] for path in finished} == {"env.kwargs.what=calm"}
    assert (sweep / "report/index.html").is_file()

    monkeypatch.setenv(CURED, "1")
    again = rl_runner(*words)
    assert again.code == 0
    started = {line.split(":")[0] for line in again.out if line.endswith(": running")}
    assert started == {f"env.kwargs.what={w}" for w in ("raise", "exit", "kill", "not_a_number")}
    assert len(list(sweep.glob(f"*/{RESULT}"))) == 5
    assert all((path / RESULT).stat().st_mtime_ns == changed for path, changed in finished.items())


def test_killed_sweep_goes_on_to_the_same_files(rl_runner: Command, tmp_path: Path) -> None:
    words = ("-m", *TINY, "total_steps=3000", "seed=1,2,3", "hydra.sweep.dir=sweep", "hydra.launcher.n_jobs=2")
    sweep = tmp_path / "sweep"
    process = subprocess.Popen([sys.executable, "-m", "rl_runner", *words], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while min(checkpoints(sweep, seed) for seed in (1, 2)) < 5:
        time.sleep(0.02)
        assert process.poll() is None
    jobs = [read_json(only(sweep, f"seed={s},*") / "status.json")["pid"] for s in (1, 2)]
    process.kill()
    os.kill(jobs[0], signal.SIGKILL)  # the other one learns of it, saves and ends by itself
    process.wait()
    assert not list(sweep.glob(f"*/{RESULT}"))

    (tmp_path / "elsewhere").mkdir()
    moved = sweep.rename(tmp_path / "elsewhere/moved")
    (tmp_path / "link").symlink_to(moved)
    assert rl_runner("resume", "link", "plugins=[mishaps]").code == 0
    for seed in (1, 2, 3):
        same_as_alone(only(moved, f"seed={seed},*"), tmp_path / f"alone_{seed}")


@pytest.mark.parametrize(
    ("environment", "streams"),
    [
        ({"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, "| head -1; exit ${PIPESTATUS[0]}"),
        ({"PYTHONIOENCODING": "latin-1"}, "<&- >&- 2>&-"),
    ],
)
def test_nobody_listens(tmp_path: Path, environment: dict[str, str], streams: str) -> None:
    tiny = "algo=q_learning env=FrozenLake-v1 total_steps=200 final_eval_episodes=2 hydra.sweep.dir=sweep"
    command = f"{shlex.quote(sys.executable)} -m rl_runner -m {tiny} seed=0 {streams}"
    ended = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    job = only(tmp_path, "sweep/job,*")
    assert read_json(job / "status.json")["state"] == "finished"
    assert read_json(job / RESULT)["total_steps"] == 200
    assert "final evaluation: " in (job / LOG).read_text(encoding="latin-1")
    assert (tmp_path / "sweep/report/index.html").is_file()


def test_a_closed_terminal_lets_every_job_save(rl_runner: Command, tmp_path: Path) -> None:
    words = ("-m", *TINY, "total_steps=100_000", "seed=1,2,3", "hydra.sweep.dir=sweep", "hydra.launcher.n_jobs=2")
    sweep = tmp_path / "sweep"
    command = [sys.executable, "-m", "rl_runner", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, **quiet)
    while min(checkpoints(sweep, seed) for seed in (1, 2)) < 1:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate()
    assert process.returncode == 129
    assert said.endswith(f"all is saved; to go on: rl-runner {shlex.join(words)}\n")
    states = [read_json(only(sweep, f"seed={s},*") / "status.json").get("state") for s in (1, 2, 3)]
    assert states == ["interrupted", "interrupted", None]


def test_dry_run_tells_and_starts_nothing(rl_runner: Command, tmp_path: Path) -> None:
    fixed = ("env=CartPole-v1", "tuned=none", "total_steps=50_000", "replay.capacity=10_000", "dry_run=true")
    ended = rl_runner("-m", "algo=dqn,ddqn", "seed=0,1", *fixed)
    assert ended.code == 0
    rows = [line.split() for line in ended.out]
    # 1 000 random steps, then an update each; two observations of 16 bytes, action 8, reward 4, two flags.
    assert [row[:7] for row in rows[1:5]] == [
        [f"algo={algo},", f"seed={seed}", "new", "50,000", "49,000", "0.5", "MB"]
        for algo in ("dqn", "ddqn")
        for seed in (0, 1)
    ]
    assert "time: unknown, no similar run has finished under outputs/" in ended.out[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_no_less_than_its_longest_job() -> None:
    assert together([60.0, 120.0], at_once=1) == "3 min"
    assert together([60.0, 120.0], at_once=2) == "2 min"
    assert together([60.0] * 6, at_once=2) == "3 min"
    assert together([60.0, None], at_once=2).startswith("unknown")


def test_sweep_is_found_again_by_its_jobs_alone(configure: Callable[..., Config], tmp_path: Path) -> None:
    dqn, ddqn = (configure(f"algo={algo}", "env=CartPole-v1") for algo in ("dqn", "ddqn"))
    template = f"{tmp_path}/{{jobs}}"
    place = sweep_directory(template, grid_identity([dqn, ddqn]), fresh=False)
    assert sweep_directory(template, grid_identity([ddqn, dqn]), fresh=False) == place
    assert sweep_directory(template, grid_identity([dqn]), fresh=False) != place
    seeded = configure("algo=dqn", "env=CartPole-v1", "seed=1")
    assert job_hash(seeded) != job_hash(dqn) == job_hash(configure("algo=dqn", "env=CartPole-v1", "checkpoint_every=7"))

    (first,) = jobs_in(place, [["algo=dqn"]], [dqn])
    first.save()
    again = jobs_in(place, [["algo=ddqn", "seed=0"], ["algo=dqn", "seed=0"]], [ddqn, dqn])
    assert again[1].directory == first.directory
    assert again[0].directory.name == f"algo=ddqn,{job_hash(ddqn)}"
    assert [job.name for job in jobs_in(place, [["seed=0"], ["seed=0"]], [dqn, dqn])] == ["job"]

    fresh = sweep_directory(template, grid_identity([dqn, ddqn]), fresh=True)
    assert fresh.name == f"{place.name}_2"
    (fresh / "job").mkdir(parents=True)
    assert sweep_directory(template, grid_identity([dqn, ddqn]), fresh=False) == fresh
    assert sweep_directory(template, grid_identity([dqn, ddqn]), fresh=True).name == f"{place.name}_3"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["algo=dqn", "seed=1"], "algo=dqn,seed=1"),  # as it has always been
        (["optimizer.lr=1e-4", "env.kwargs.goal=[1,2]"], "optimizer.lr=1e-4,env.kwargs.goal=_1_2"),
        (["env.kwargs.x='$(reboot)`\"\n/../%s'"], "env.kwargs.x=_reboot_.._s"),
        (["-x=1", "~tuned", "../../etc=1", ".a=größe_東"], "x=1,tuned,etc=1,a=gr_e"),
        (["a=\x1b[31m\u202ered"], "a=_31m_red"),
        (["a=" + "東" * 300], "a="),
        (["a=" + "x" * 300, "seed=1"], f"a={'x' * 58},seed=1"),
        ([f"env.kwargs.a_rather_long_name_of_a_key_{i}={i}" for i in range(8)], None),
    ],
)
def test_directories_have_safe_names(
    configure: Callable[..., Config], tmp_path: Path, words: list[str], expected: str | None
) -> None:
    config = configure("algo=dqn", "env=CartPole-v1")
    job = placed(tmp_path, words, config)
    name, _, key = job.directory.name.rpartition(",")
    assert key == job_hash(config)
    assert len(os.fsencode(job.directory.name)) <= 120
    assert name == expected or expected is None
    assert job.name.isprintable()
    job.save()
    assert placed(tmp_path, ["other=words"], config).directory == job.directory


def test_second_sweep_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    held = "import sys, time; from pathlib import Path; from rl_runner.sweep import owned\n"
    held += "with owned(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", held, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"is in use by process {holder.pid} "), owned(tmp_path):
            pass
        holder.kill()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0: must be greater than 0"),
        ("hydra.launcher.njobs=1", "hydra.launcher.njobs: no such key; did you mean hydra.launcher.n_jobs?"),
        ("hydra/launcher=basic", "hydra/launcher=basic: a sweep runs on hydra/launcher=local, slurm or ray"),
        ("hydra/launcher=slrum", "hydra/launcher=slrum: no such hydra/launcher; did you mean slurm?"),
    ],
)
def test_wrong_launcher_is_one_line(rl_runner: Command, tmp_path: Path, word: str, expected: str) -> None:
    ended = rl_runner("-m", "algo=dqn", "env=CartPole-v1", "seed=0,1", word)
    assert (ended.code, ended.err) == (2, [expected])
    assert list(tmp_path.iterdir()) == []


def test_installing_the_core_pulls_no_engine() -> None:
    from importlib.metadata import requires

    needed = [line for line in requires("rl-runner") or [] if "extra ==" not in line]
    assert not [line for line in needed if re.match("optuna|ray|submitit|hydra-", line) and "hydra-core" not in line]


def test_durations_in_words() -> None:
    assert [duration(seconds) for seconds in (3.2, 99, 130, 7200)] == ["3 s", "99 s", "2 min", "2.0 h"]


def test_command_is_kept_for_people(rl_runner: Command, tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    directory.mkdir()
    expected = f"to go on with {directory}, repeat its command: rl-runner -m algo=dqn,ddqn"
    for resumable in (False, True):  # its jobs are gone
        (directory / SWEEP).write_text(json.dumps({"command": ["-m", "algo=dqn,ddqn"], "resumable": resumable}))
        ended = rl_runner("resume", str(directory))
        assert (ended.code, ended.err) == (2, [expected])


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"resumable": true}', '{"command": "-m", "resumable": true}']
)
def test_damaged_record_is_one_line(rl_runner: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / SWEEP).write_text(content)
    ended = rl_runner("resume", str(tmp_path))
    expected = f"{tmp_path / SWEEP} is damaged: repeat the sweep's command, or resume its jobs one by one"
    assert (ended.code, ended.err) == (2, [expected])


@pytest.fixture
def saved_sweep(configure: Callable[..., Config], tmp_path: Path) -> Path:
    """A sweep of two jobs that has not begun."""
    directory = tmp_path / "sweep"
    configs = [configure("algo=q_learning", "env=FrozenLake-v1", f"seed={seed}") for seed in (0, 1)]
    for job in jobs_in(directory, [["seed=0"], ["seed=1"]], configs):
        job.save()
    (directory / SWEEP).write_text(json.dumps({"command": ["-m", "seed=0,1"], "resumable": True}))
    return directory


def content_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("_target_: rl_runner.algos.q_learning.QLearning", "_target_: os.system", "algo._target_=os.system: only"),
        ("id: FrozenLake-v1", "id: mishaps:Mishap-v0", "would import mishaps"),
        ("total_steps: 150000", "total_steps: -1", "total_steps=-1: must be greater than 0"),
        ("algo:", "algo: [", "cannot be read: "),
    ],
)
def test_one_tampered_job_is_refused_before_anything_is_written(
    rl_runner: Command, saved_sweep: Path, old: str, new: str, expected: str
) -> None:
    config = only(saved_sweep, "seed=1,*") / CONFIG
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    before = content_of(saved_sweep)
    ended = rl_runner("resume", str(saved_sweep))
    assert (ended.code, ended.out, len(ended.err)) == (2, [], 1)
    assert ended.err[0].startswith(str(config))
    assert expected in ended.err[0]
    assert content_of(saved_sweep) == before


def test_resume_can_be_a_dry_run(rl_runner: Command, saved_sweep: Path) -> None:
    before = content_of(saved_sweep)
    ended = rl_runner("resume", str(saved_sweep), "dry_run=true", "total_steps=100", "learning_starts=100")
    assert (ended.code, len(ended.err)) == (0, 0)
    assert ended.out[-2] == f"warning: 2 of 2 jobs {NOTHING}"
    assert ended.out[-1].startswith(f"2 jobs in {saved_sweep}, ")
    assert content_of(saved_sweep) == before


def test_a_sweep_without_updates_says_so_before_it_starts(
    rl_runner: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = ("-m", "algo=dqn", "env=CartPole-v1", "tuned=none", "algo.batch_size=32")
    words = (*fixed, "total_steps=100", "learning_starts=200,100,98")
    assert f"warning: 2 of 3 jobs {NOTHING}" in rl_runner(*words, "dry_run=true").out
    assert list(tmp_path.iterdir()) == []

    def start(engine: Local, job: Job) -> None:
        raise UserError("it starts")

    monkeypatch.setattr(Local, "start", start)
    ended = rl_runner(*words)
    assert ended.err == ["it starts"]
    assert ended.out[0].startswith("outputs/sweeps/")
    assert ended.out[1] == f"warning: 2 of 3 jobs {NOTHING}"
    assert "warning" not in "".join(rl_runner(*fixed, "seed=0,1", "dry_run=true").out)


def test_failures_are_named_even_without_a_report(
    rl_runner: Command, saved_sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, other = sorted(saved_sweep.glob("seed=*"))
    script = f"cd {shlex.quote(str(other))}; echo '{{}}' > {RESULT}; echo the reason; exit 1"
    monkeypatch.setattr(Job, "command", lambda job: ["sh", "-c", script])
    (saved_sweep / "report").touch()  # where its directory should be
    ended = rl_runner("resume", str(saved_sweep), "total_steps=10")
    assert ended.code == 1
    assert [line.strip() for line in ended.err if line] == [
        "2 of 2 jobs failed:",
        f"{failing.name}: exit code 1: the reason",
        str(failing / LOG),
        f"{other.name}: exit code 1: the reason",
        str(other / LOG),
        f"there is no report: [Errno 17] File exists: '{saved_sweep}/report'",
    ]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["algo=sac", "env=Pendulum-v1", "tuned=none"], "SAC"),
        (["algo=sac", "env=Pendulum-v1", "tuned=none", "++actor_optimizer.lr=1e-3"], "SAC, actor"),
        (["algo=sac", "env=Pendulum-v1", "tuned=none", "++network.layer_norm=true"], "SAC, layer norm"),
        (["algo=sac", "env=Pendulum-v1", "tuned=none", "network.norm=layer"], "SAC, layer norm"),
        (["algo=sac", "env=Pendulum-v1", "tuned=none", "++critic_network.norm=layer"], "SAC, critics of layer norm"),
        (["algo=dqn", "env=CartPole-v1", "tuned=none", "network=dueling"], "DQN, dueling"),
        (["algo=td3", "env=Pendulum-v1", "tuned=none"], "TD3"),
        (["algo=dqn", "env=CartPole-v1", "tuned=none"], "DQN"),
    ],
)
def test_a_job_has_the_name_that_it_had_before_keys_had_other_names(
    configure: Callable[..., Config], words: list[str], name: str
) -> None:
    words = [*words, "encoder=flat"]  # which the checks choose for vectors
    assert job_hash(configure(*words)) == BEFORE[name]
    more = configure(*words, "++optimizer.eps=1e-5")
    assert job_hash(more) != BEFORE[name]


def test_what_is_new_in_a_job_is_in_its_name(configure: Callable[..., Config]) -> None:
    common = ("algo=sac", "env=Pendulum-v1", "tuned=none")
    differing = ((), ("++actor_optimizer.lr=1e-3",), ("++alpha_optimizer.lr=1e-3",), ("++critic_optimizer.lr=1e-3",),
                 ("++critic_network.hidden=[9]",), ("optimizer@actor_optimizer=adam",),
                 ("optimizer@actor_optimizer=sgd",))  # fmt: skip
    assert len({job_hash(configure(*common, *words)) for words in differing}) == len(differing)
    assert job_hash(configure(*common, "loggers=[]")) == job_hash(configure(*common))
