"""Sweeps on real clusters of one node: what is requeued in the middle ends with the same files."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import slurm_cluster
from sweeping import PYTHONPATH, TINY, Ended, checkpoints, only, same_as_alone

from rl_runner.persistence import read_json
from rl_runner.sweep.jobs import content_hash

WORDS = ("-m", *TINY, "total_steps=2500", "seed=1,2,3,4", "hydra.sweep.dir=sweep")
ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH, "RAY_USAGE_STATS_ENABLED": "0"}


def job(sweep: Path, seed: int) -> Path:
    return only(sweep, f"seed={seed},*")


@pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())
def test_requeued_slurm_jobs_end_with_the_same_files(tmp_path: Path) -> None:
    place, sweep = tmp_path / "cluster", tmp_path / "sweep"
    place.mkdir()
    with slurm_cluster.slurm_cluster(place, cpus=2) as access:
        environment = ENVIRONMENT | access

        def ask(*command: str) -> str:
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

        def disturb(seed: int, *command: str) -> None:
            while checkpoints(sweep, seed) < 5:
                assert process.poll() is None
                time.sleep(0.02)
            name = f"rl_runner-{content_hash([str(job(sweep, seed))])}"
            ask(*command, ask("squeue", "--noheader", f"--name={name}", "--format=%A").strip())

        command = [sys.executable, "-m", "rl_runner", *WORDS, "hydra/launcher=slurm"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        disturb(1, "scontrol", "requeue")
        # As SLURM warns of the end of a job's time; to one that waits until another has left, so it is not over yet.
        disturb(3, "scancel", "--signal=USR2")
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert ask("squeue", "--noheader") == ""
    for seed in (1, 3):
        assert "continues at step" in (job(sweep, seed) / "log.txt").read_text()
        same_as_alone(job(sweep, seed), tmp_path / f"alone_{seed}")
    assert len(list(sweep.glob("*/result.json"))) == 4


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for a network of its own")
@pytest.mark.slow
def test_ray_cluster_runs_the_same_sweep_though_a_worker_dies(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = [sys.executable, "-m", "rl_runner", *WORDS, "hydra/launcher=ray"]
    # Ray listens on every address whatever it is told: in a network namespace there is none but the loopback's.
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words]
    with subprocess.Popen(alone, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while checkpoints(sweep, 1) < 5:
            assert process.poll() is None
            time.sleep(0.02)
        pid = read_json(job(sweep, 1) / "status.json")["pid"]
        worker = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert "ray::work" in Path(f"/proc/{worker}/cmdline").read_text()
        os.kill(worker, signal.SIGKILL)  # its job learns of it, and Ray gives the task to another one
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "continues at step" in (job(sweep, 1) / "log.txt").read_text()
    assert len(list(sweep.glob("*/result.json"))) == 4
    for seed in (1, 3):
        same_as_alone(job(sweep, seed), tmp_path / f"alone_{seed}")


def test_missing_extra_is_named_in_one_line(
    rl_runner: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    ended = rl_runner("-m", "algo=dqn", "env=CartPole-v1", "seed=0,1", "hydra/launcher=ray")
    assert ended.code == 2
    assert ended.err == ["hydra/launcher=ray needs ray: pip install 'rl-runner[ray]'"]
    assert list(tmp_path.iterdir()) == []
