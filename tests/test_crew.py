"""The crew of a sweep: whatever a job, a signal, a disk or the machine does, the other jobs and the words are right."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rl_runner import sweep
from rl_runner.config.schema import Config
from rl_runner.errors import Interrupted, RunFailed
from rl_runner.persistence import RESULT, STATUS
from rl_runner.persistence.session import LOCK
from rl_runner.sweep import conduct, engines
from rl_runner.sweep import crew as crew_module
from rl_runner.sweep.crew import Crew, crew_of
from rl_runner.sweep.engines import Local
from rl_runner.sweep.jobs import LOG, Job, jobs_in

# What a job's process does, in its directory.
FINISH = f"""echo '{{"state": "finished"}}' > {STATUS}; echo '{{"total_steps": 100}}' > {RESULT}; echo done"""
RUN = f"""echo '{{"state": "running"}}' > {STATUS}; touch at_work; """
SAVE = (
    RUN
    + f"""trap 'echo "{{\\"state\\": \\"interrupted\\"}}" > {STATUS}; exit 143' TERM; while :; do sleep 0.02; done"""
)
IGNORE = RUN + "trap '' TERM HUP INT USR1; while :; do sleep 0.02; done"
Make = Callable[..., list[Job]]


@pytest.fixture(scope="module")
def base(configure: Callable[..., Config]) -> Config:
    return configure("algo=q_learning", "env=FrozenLake-v1", "total_steps=100")


@pytest.fixture
def make(base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Jobs whose processes are small scripts of the shell."""
    monkeypatch.setattr(crew_module, "PAUSE", 0.01)
    monkeypatch.setattr(sweep, "conclude", lambda *_: None)

    def make(*scripts: str, device: str = "auto") -> list[Job]:
        configs = [base.model_copy(update={"seed": seed, "device": device}) for seed in range(len(scripts))]
        jobs = jobs_in(tmp_path, [[f"seed={config.seed}", "all"] for config in configs], configs)
        scripts_of = {job.directory: script for job, script in zip(jobs, scripts, strict=True)}
        for job in jobs:
            job.save()

        def command(job: Job) -> list[str]:
            return ["sh", "-c", f"cd {shlex.quote(str(job.directory))}; {scripts_of[job.directory]}"]

        monkeypatch.setattr(Job, "command", command)
        return jobs

    return make


def work_through(jobs: list[Job], n_jobs: int = 4) -> Crew:
    with crew_of(Local(threads=1, n_jobs=n_jobs)) as crew:
        crew.finish(jobs)
    return crew


def once_at_work(jobs: list[Job], *actions: Callable[[], object]) -> None:
    """Do something 0.1 s after all jobs are at work, and more after each further 0.1 s."""

    def act() -> None:
        while not all((job.directory / "at_work").exists() for job in jobs):
            time.sleep(0.01)
        for action in actions:
            time.sleep(0.1)
            action()

    threading.Thread(target=act, daemon=True).start()


def states(jobs: list[Job]) -> list[str | None]:
    return [job.status().get("state") for job in jobs]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda s: s.name)
def test_every_stopping_signal_lets_the_jobs_save(make: Make, signum: signal.Signals) -> None:
    jobs = make(SAVE, SAVE, FINISH)
    once_at_work(jobs[:2], lambda: os.kill(os.getpid(), signum))
    with pytest.raises(Interrupted, match=f"interrupted by signal {signum}, all is saved; to go on: rl-runner "):
        work_through(jobs, n_jobs=2)
    assert states(jobs) == ["interrupted", "interrupted", None]
    assert signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_terminal_that_closes_says_so_twice_and_is_ignored_under_nohup(make: Make) -> None:
    jobs = make(SAVE)
    hang_up = [lambda: os.kill(os.getpid(), signal.SIGHUP)] * 2
    once_at_work(jobs, *hang_up)
    with pytest.raises(Interrupted, match="all is saved"):
        work_through(jobs)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        jobs = make(RUN + "sleep 0.5; " + FINISH)
        (jobs[0].directory / "at_work").unlink()
        once_at_work(jobs, *hang_up)
        assert work_through(jobs).failures == {}
        assert states(jobs) == ["finished"]
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_second_signal_ends_even_a_job_that_ignores_it(make: Make) -> None:
    jobs = make(IGNORE, SAVE)
    once_at_work(jobs, *[lambda: os.kill(os.getpid(), signal.SIGTERM)] * 2)
    with pytest.raises(
        Interrupted, match="what the jobs did since their last checkpoints is lost; to go on: rl-runner"
    ):
        work_through(jobs)
    assert states(jobs) == ["interrupted", "interrupted"]  # told to: that is no failure


def test_what_cannot_be_started_costs_itself_only(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = make(FINISH, FINISH, "exit 3", "kill -9 $$")
    (jobs[0].directory / LOG).mkdir()  # stands for a full disk as well: an OSError
    failures = {job.name: error for job, error in work_through(jobs, n_jobs=1).failures.items()}
    assert failures == {
        "seed=0": f"{jobs[0].directory / LOG}: Is a directory",
        "seed=2": "exit code 3",
        "seed=3": "killed by SIGKILL (out of memory?)",
    }
    assert states(jobs) == ["failed", "finished", "failed", "failed"]
    assert "seed=1: finished" in capsys.readouterr().out


def test_a_full_disk_does_not_stop_what_is_at_work(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    jobs = make(FINISH, "exit 1", FINISH)
    monkeypatch.setattr("rl_runner.sweep.jobs.write_json", full)
    assert [job.name for job in work_through(jobs, n_jobs=1).failures] == ["seed=1"]
    assert states(jobs) == ["finished", None, "finished"]
    monkeypatch.setattr("rl_runner.sweep.write_json", full)
    with pytest.raises(RunFailed, match=f"^{jobs[0].directory.parent}: No space left on device$"):
        conduct(jobs, jobs[0].directory.parent, Local(threads=1, n_jobs=1), ["-m"])


def test_a_job_in_use_is_said_once_and_waited_for(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = make(FINISH, FINISH)
    hold = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
    hold += "print('process 7 on earth', file=file, end='', flush=True); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", hold, str(jobs[0].directory / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        threading.Timer(0.5, holder.stdin.close).start()
        assert work_through(jobs).failures == {}
    assert states(jobs) == ["finished", "finished"]
    said = capsys.readouterr().out.splitlines()
    assert said.count("seed=0: waiting, in use by process 7 on earth") == 1


def test_a_log_without_end_keeps_its_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LARGEST_LOG", 1_000_000)
    monkeypatch.setattr(engines, "END_OF_LOG", 1000)
    print_on = "i=0; while [ $i -lt 300 ]; do head -c 100000 /dev/zero; sleep 0.002; i=$((i+1)); done"
    (job,) = make(f"{print_on}; echo; echo over; exit 1")
    largest = 0

    def watch() -> None:
        nonlocal largest
        while job.status().get("state") != "failed":
            with suppress(OSError):
                largest = max(largest, (job.directory / LOG).stat().st_size)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    failures = work_through([job]).failures
    watcher.join()
    assert 1_000_000 < largest < 20_000_000  # of the 30 million that were printed
    assert len(failures[job]) < 600
    assert failures[job].endswith("over")
    assert failures[job].isprintable()


def gpu_of(job: Job) -> str:
    return job.last_line().removeprefix("sees ").removesuffix(".")


@pytest.mark.parametrize(
    ("count", "visible", "device", "expected"),
    [
        (3, None, "auto", ["0", "1", "2", "0"]),
        (2, None, "cuda", ["0", "1", "0", "1"]),
        (2, "5, 7", "auto", ["5", "7", "5", "7"]),
        (2, "5,7,-1,8", "auto", ["5", "7", "5", "7"]),
        (2, "GPU-8932f937,GPU-11223344", "auto", ["GPU-8932f937", "GPU-11223344"] * 2),
        (1, "MIG-a,MIG-b,MIG-c", "auto", ["MIG-a", "MIG-b", "MIG-c", "MIG-a"]),
        (1, None, "auto", ["all"] * 4),
        (1, "3", "auto", ["3"] * 4),
        (0, None, "auto", ["all"] * 4),
        (0, "", "auto", [""] * 4),
        (2, None, "cpu", ["all"] * 4),
        (2, "5,7", "cuda:1", ["5,7"] * 4),
    ],
)
def test_local_jobs_share_the_gpus(
    make: Make, monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None, device: str, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    wait = "while [ ! -e ../go ]; do sleep 0.01; done"
    jobs = make(*['echo "sees ${CUDA_VISIBLE_DEVICES-all}."; ' + RUN + wait] * 4, device=device)
    once_at_work(jobs, (jobs[0].directory.parent / "go").touch)
    work_through(jobs)
    assert [gpu_of(job) for job in jobs] == expected


def test_a_gpu_that_falls_free_gets_the_next_job(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    say = 'echo "sees $CUDA_VISIBLE_DEVICES"; '
    jobs = make(say + "while [ ! -e ../go ]; do sleep 0.01; done", say, say, say + "touch ../go")
    work_through(jobs, n_jobs=2)
    assert [gpu_of(job) for job in jobs] == ["0", "1", "1", "1"]
