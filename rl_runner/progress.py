"""The progress bar: steps per second, time left, last return, last evaluation."""

import sys
from collections.abc import Mapping

from tqdm import tqdm


class Progress:
    """A bar on a terminal; elsewhere one line per evaluation."""

    def __init__(self, total_steps: int, step: int = 0):
        self._interactive = sys.stderr.isatty()
        self._total = total_steps
        self._latest: dict[str, str] = {}
        hidden = not self._interactive
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=hidden, dynamic_ncols=True)

    def advance(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """Take the return and the evaluation of a row, if it has them."""
        for name, tag in (("return", "charts/episodic_return"), ("eval", "eval/return_mean")):
            if tag in row:
                self._latest[name] = f"{row[tag]:.1f}"
        self._bar.set_postfix(self._latest, refresh=False)
        if not self._interactive and "eval/return_mean" in row:
            latest = ", ".join(f"{name} {value}" for name, value in self._latest.items())
            print(f"step {step:,} of {self._total:,}: {latest}", flush=True)

    def close(self) -> None:
        self._bar.close()
