"""Whether two revisions compute the same bits on this machine: `python tests/golden.py OLD [NEW]`.

About twenty short commands run in both; NEW is the working tree if it is left out. Compared are logged values without
clocks, every tensor of the last checkpoint by value and order, returns, `rl-runner eval`, an exported policy's actions
and a report's figures. Hashes differ between processors, so none is committed. `--except eval/q_bias` leaves out a tag
whose correction is named; `--only WORD` runs the commands that contain it.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
CLOCKS = {"charts/SPS", "charts/updates_per_second", "sps", "wall_seconds"}
SHORT = (
    "network.hidden=[16,16] algo.batch_size=16 replay.capacity=700 total_steps=1000 learning_starts=100 log_every=250 "
    "eval_every=400 eval_episodes=2 final_eval_episodes=3 env.max_episode_steps=120"
)
COMPILED = "accelerate=compile"
COMMANDS = {
    "table": "algo=q_learning env=FrozenLake-v1 total_steps=2000 eval_every=900",
    "table, compiled": f"algo=q_learning env=CliffWalking-v1 total_steps=2000 num_envs=2 {COMPILED}",
    "dqn": f"algo=dqn env=CartPole-v1 {SHORT}",
    "dqn, polyak, huber": f"algo=dqn env=Acrobot-v1 {SHORT} algo.target_update=polyak algo.huber=true updates=2",
    "dqn, rmsprop, linear": f"algo=dqn env=CartPole-v1 {SHORT} optimizer=rmsprop lr_schedule=linear tuned=none",
    "dqn, adamw, long actions": f"algo=dqn env=MountainCar-v0 {SHORT} optimizer=adamw algo.epsilon_mu=2 tuned=none",
    "ddqn, dueling, prioritized, 3-step": f"algo=ddqn env=CartPole-v1 {SHORT} network=dueling replay=prioritized "
    "replay.n_step=3 tuned=none",
    "ddqn, once, 4 environments": f"algo=ddqn env=CartPole-v1 {SHORT} replay.deduplicate=true num_envs=4 "
    "update_every=2 replay.n_step=2 tuned=none",
    "dqn, states": f"algo=dqn env=FrozenLake-v1 {SHORT}",
    "dqn, stack, once, prioritized": f"algo=dqn env=CartPole-v1 {SHORT} env.frame_stack=3 replay=prioritized "
    "replay.deduplicate=true tuned=none",
    "ddpg, ou": f"algo=ddpg env=Pendulum-v1 {SHORT} algo.noise=ou",
    "td3": f"algo=td3 env=Pendulum-v1 {SHORT} network.layer_norm=true",
    "td3, min, sgd": f"algo=td3 env=Pendulum-v1 {SHORT} algo.actor_objective=min optimizer=sgd "
    "optimizer.momentum=0.9 optimizer.lr=1e-3 algo.max_grad_norm=1 tuned=none",
    "sac": f"algo=sac env=Pendulum-v1 {SHORT}",
    "sac, fixed, mapped": f"algo=sac env=Pendulum-v1 {SHORT} algo.alpha=0.1 replay.storage=memmap tuned=none",
    "sac, prioritized, linear": f"algo=sac env=MountainCarContinuous-v0 {SHORT} replay=prioritized lr_schedule=linear",
    "sac, hopper": f"algo=sac env=Hopper-v5 {SHORT} num_envs=2",
    "sac, compiled": f"algo=sac env=Pendulum-v1 {SHORT} {COMPILED} lr_schedule=linear",
    "td3, compiled": f"algo=td3 env=Pendulum-v1 {SHORT} {COMPILED} replay.n_step=3 tuned=none",
    "dqn, compiled": f"algo=dqn env=CartPole-v1 {SHORT} {COMPILED} replay=prioritized tuned=none",
}
SWEEP = f"-m algo=dqn,ddqn env=CartPole-v1,Acrobot-v1 seed=0,1 {SHORT} total_steps=400"
STOPPED = ("sac", "table", "dqn, stack, once, prioritized")  # again, stopped in the middle and continued
LOOKED_AT = ("sac", "dqn", "table")  # by `eval` and `export`

Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", help="default: the working tree")
    parser.add_argument("--except", dest="excepted", nargs="*", default=[], metavar="TAG")
    parser.add_argument("--only", default="", metavar="WORD")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        old = checkout(options.old, Path(scratch) / "old")
        new = checkout(options.new, Path(scratch) / "new") if options.new else ROOT
        jobs = [name for name in [*COMMANDS, "sweep"] if options.only in name]
        different = 0
        for i, name in enumerate(jobs):
            records = [record(code, name, Path(scratch) / f"{i}-{code.name}") for code in (old, new)]
            lines = list(differences(*records, options.excepted))
            different += bool(lines)
            print(f"{name}: {'DIFFERENT' if lines else 'same'}, {len(records[0])} values", *lines[:12], sep="\n  ")
    print(f"{len(jobs) - different} of {len(jobs)} the same")
    return int(different > 0)


def checkout(revision: str, place: Path) -> Path:
    """The files of a revision."""
    place.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", place], input=archive, check=True)
    return place


def record(code: Path, name: str, place: Path) -> Record:
    """All that a command leaves behind which is no clock, by name."""
    place.mkdir()
    if name == "sweep":
        run(code, f"{SWEEP} hydra.sweep.dir={place}/sweep", place)
        tables = {path.name: figures(path) for path in sorted((place / "sweep/report").glob("*.csv"))}
        cells = {f"{table}: {key}": value for table, rows in tables.items() for key, value in rows.items()}
        return {key: value.replace(str(place), "") for key, value in cells.items()}  # the sweep's own command names it
    found = record_of(code, COMMANDS[name], place / "run", stop=False)
    if name in STOPPED:
        again = record_of(code, COMMANDS[name], place / "stopped", stop=True)
        found |= {f"stopped: {key}": value for key, value in again.items()}
    if name in LOOKED_AT:
        text = run(code, f"eval {place}/run --episodes 4", place)
        found |= {
            f"eval: {line.split()[0]}": line.split()[-1] for line in text.splitlines() if "/" in line.split(" ")[0]
        }
        run(code, f"export {place}/run", place)
        found["exported"] = digest(actions_of(place / "run/policy.pt2", name))
    return found


def record_of(code: Path, words: str, directory: Path, stop: bool) -> Record:
    """What one run leaves behind, stopped by a signal on its way if asked."""
    words = f"{words} hydra.run.dir={directory}"
    if stop:
        process = start(code, words, directory.parent)
        while process.poll() is None and lines_in(directory / "metrics.jsonl") < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        if process.wait() != 128 + signal.SIGTERM:
            raise SystemExit(f"{code.name}: {words} ended before it could be stopped")
        words = f"resume {directory}"
    run(code, words, directory.parent)
    result = json.loads((directory / "result.json").read_text())
    found = {
        f"result: {key}": value for key, value in result.items() if key not in (*CLOCKS, "params_sha256", "versions")
    }
    rows: dict[int, dict[str, float]] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row.pop("step"), {}).update(row)
    found |= {f"{tag} at {step}": row[tag] for step, row in rows.items() for tag in row if tag not in CLOCKS}
    newest = max((directory / "checkpoint").glob("*.pt"))
    state = torch.load(newest, weights_only=True)
    for part in ("agent", "replay", "envs"):
        found |= {f"{part} tensor {i}": digest(tensor) for i, tensor in enumerate(tensors(state[part]))}
    return found


def differences(old: Record, new: Record, excepted: list[str]) -> Iterator[str]:
    """A line for each value that is not the same."""
    for key in [*old, *(key for key in new if key not in old)]:
        if any(tag in key for tag in excepted) or old.get(key) == new.get(key):
            continue
        yield f"{key}: {old.get(key, 'nothing')} became {new.get(key, 'nothing')}"


def run(code: Path, words: str, place: Path) -> str:
    process = start(code, words, place)
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{code.name}: rl-runner {words} ended with {process.returncode}:\n{text}")
    return text


def start(code: Path, words: str, place: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rl_runner", *re.split(r" +", words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=place, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def lines_in(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def figures(path: Path) -> Record:
    """The cells of a table that are no clocks, by row and column."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        f"row {i}, {key}": value for i, row in enumerate(rows) for key, value in row.items() if "second" not in str(key)
    }


def actions_of(policy: Path, name: str) -> torch.Tensor:
    """What an exported policy does for fixed observations."""
    module = torch.export.load(policy).module()
    stream = torch.Generator().manual_seed(0)
    if name == "table":
        return module(torch.randint(16, (64,), generator=stream))
    return module(torch.randn(64, {"sac": 3, "dqn": 4}[name], generator=stream))


def tensors(state: Any) -> Iterator[torch.Tensor]:
    """All tensors of nested containers, in order."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping | list):
        for child in state.values() if isinstance(state, Mapping) else state:
            yield from tensors(child)


def digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    return f"{list(data.shape)} {data.dtype} {hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]}"


if __name__ == "__main__":
    if not shutil.which("git"):
        raise SystemExit("golden.py needs git")
    sys.exit(main())
