"""CPU seconds until a policy is good: rl_runner, Stable-Baselines3 and SBX in turns, seed by seed, on one core.

    pip install -c constraints.txt -e ".[mujoco,bench]"
    python benchmarks/returns.py [--rows sac-pendulum ...] [--seeds 5] [--markdown FILE]

Environment, network, batch and updates per step are those of speed.py, all else is each library's own choice. Every so
many steps the policy plays ten episodes, whose CPU time does not count; the first mean at or above the bar ends the
run. Compilation counts, imports do not.
"""

import argparse
import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from speed import ROWS, SUBJECTS, Clock, machine, run_apart, to_one_core


@dataclass(frozen=True)
class Bar:
    """A return to be reached, looked for every so many steps; after `most` steps it has not been."""

    at_least: float
    every: int
    most: int


BARS = {
    "sac-pendulum": Bar(-180, 250, 12_000),
    "ddpg-pendulum": Bar(-180, 250, 12_000),
    "dqn-cartpole": Bar(475, 1_000, 60_000),
}


class Reached(Exception):  # noqa: N818 - it names an outcome
    """The policy is as good as was asked for."""


class Stopwatch(Clock):
    """CPU seconds of training until the bar is reached, without those of the evaluations."""

    def __init__(self, bar: Bar, seed: int):
        super().__init__(bar.most, seed)
        self.bar, self.result = bar, {"steps": math.inf, "cpu_s": math.inf}

    def tick(self, step: int) -> None:
        now = time.process_time()
        if step == 1:
            self.uncounted = now
        if step % self.bar.every:
            return
        if self.evaluate() >= self.bar.at_least:
            self.result |= {"steps": step, "cpu_s": now - self.uncounted}
            raise Reached
        self.uncounted += time.process_time() - now


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Markdown: a line per row and subject; runs that never were as good count as endless."""
    lines = ["| row | bar | subject | CPU s, median | of each seed | steps, median |", "|---|---|---|---|---|---|"]
    for name, by_subject in results.items():
        for subject, runs in by_subject.items():
            seconds = [run["cpu_s"] for run in runs]
            each = ", ".join(f"{value:.0f}" for value in seconds)
            steps = median(run["steps"] for run in runs)
            lines.append(
                f"| {name} | {BARS[name].at_least:g} | {subject} | {median(seconds):.0f} | {each} | {steps:,.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=BARS, default=list(BARS))
    subjects = [subject for subject in SUBJECTS if subject != "rl_runner, eager"]
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=subjects)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("SUBJECT", "ROW", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        subject, name, seed = arguments.worker
        to_one_core()
        clock = Stopwatch(BARS[name], int(seed))
        with suppress(Reached):
            SUBJECTS[subject](ROWS[name], clock)
        print(json.dumps(clock.result))
        return
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in arguments.rows:
        results[name] = {subject: [] for subject in arguments.subjects}
        for seed in range(arguments.seeds):
            for subject, runs in results[name].items():
                runs.append(run_apart(__file__, [subject, name, str(seed)], "1"))
                print(f"{name} seed {seed} {subject}: {runs[-1]}", flush=True)
    text = f"{machine()}\n\n{table(results)}\n"
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
