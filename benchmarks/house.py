"""How far it is through the code, counted by watching one short run: `python benchmarks/house.py [-v]`.

Size, and for `algo=sac env=Pendulum-v1`: how often the config is parsed and an environment is made, how many functions
of the package are called before the agent's constructor, which of them hold `algo.tau`, and how many lines the path of
one update has, from the batch that is drawn to the row that is written.
"""

import ast
import inspect
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from rl_runner.__main__ import main

PACKAGE = Path(main.__code__.co_filename).parent
TAU = 0.00517  # a value that nothing else has
STEPS = 300  # the last of them learns, and its row is written
WORDS = (
    f"algo=sac env=Pendulum-v1 tuned=none algo.tau={TAU} total_steps={STEPS + 10} learning_starts={STEPS - 1} "
    f"eval_every=0 log_every={STEPS} algo.batch_size=16 network.hidden=[8] final_eval_episodes=1"
)
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Function = tuple[str, str]  # file, qualified name


class Watch:
    """What the profiler has seen of the package's functions."""

    def __init__(self) -> None:
        self.calls: Counter[Function] = Counter()
        self.before_agent: set[Function] | None = None
        self.holders: dict[Function, bool] = {}  # whether the agent was there when it first held the value
        self.update: dict[Function, int] = {}
        self.made: Counter[str] = Counter()
        self.in_update = self.written = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_qualname.replace("<locals>.", "")
        if event == "call" and name == "make" and file.parts[-3:] == ("gymnasium", "envs", "registration.py"):
            self.made["evaluation" if any("valua" in caller for caller in callers(frame)) else "training"] += 1
        if not file.is_relative_to(PACKAGE) or "<" in frame.f_code.co_name or event not in ("call", "return"):
            return
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return  # the body of a class, which runs once, where it is defined
        function = (str(file.relative_to(PACKAGE)), name)
        if holds(list(frame.f_locals.values()), depth=3):
            self.holders.setdefault(function, self.before_agent is not None)
        if event == "call":
            self.calls[function] += 1
            if name == "SAC.__init__" and self.before_agent is None:
                self.before_agent = set(self.calls) - {function}
            if self.in_update:
                self.update[function] = lines_of(frame)
        elif name.endswith("Replay.add") and not self.written:
            self.in_update, self.update = True, {}
        elif self.in_update and name.endswith(("Logger.write", "write_row")):
            self.in_update, self.written = False, True


def callers(frame: FrameType | None) -> Iterator[str]:
    while frame:
        yield frame.f_code.co_qualname
        frame = frame.f_back


def holds(values: list[Any], depth: int) -> bool:
    """Whether the value, or its text, is among these or in plain containers of them."""
    for value in values:
        if value is True or value is False:
            continue
        if (isinstance(value, int | float) and value == TAU) or (isinstance(value, str) and str(TAU) in value):
            return True
        inside = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
        if depth and inside and len(inside) < 100 and holds(list(inside), depth - 1):
            return True
    return False


def lines_of(frame: FrameType) -> int:
    return max(line for *_, line in frame.f_code.co_lines() if line) - frame.f_code.co_firstlineno + 1


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    used = {line for t in tokens if t.type not in SKIPPED for line in range(t.start[0], t.end[0] + 1)}
    return len(used - docstring_lines(text))


def docstring_lines(text: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            lines |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def count(verbose: bool) -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    lengths = {path: len(path.read_text().splitlines()) for path in modules}
    longest = max(modules, key=lambda path: lengths[path])
    docstrings = sum(len(docstring_lines(path.read_text())) for path in modules)
    print(f"modules: {len(modules)}; lines of code: {sum(map(code_lines, modules)):,}; of docstrings: {docstrings:,}")
    print(f"longest file: {longest.relative_to(PACKAGE)}, {lengths[longest]} lines")
    watch = Watch()
    with TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()):
        sys.setprofile(watch)
        try:
            code = main([*WORDS.split(), f"hydra.run.dir={scratch}/run"])
        finally:
            sys.setprofile(None)
    assert code == 0
    parsed = sum(n for (file, name), n in watch.calls.items() if file.startswith("config/") and name == "parse")
    print(
        f"config parsed: {parsed} times; gym.make: {watch.made['training']}, and {watch.made['evaluation']} to evaluate"
    )
    print(f"functions called before the agent's constructor: {len(watch.before_agent or ())}")
    late = sum(watch.holders.values())
    print(f"functions that hold algo.tau: {len(watch.holders)}, {late} of them only once the agent has it")
    print(f"functions on the path of an update: {len(watch.update)}, {sum(watch.update.values())} lines")
    if verbose:
        print(
            "\nalgo.tau:",
            *(f"  {'late ' * late}{file} {name}" for (file, name), late in watch.holders.items()),
            sep="\n",
        )
        print("\nan update:", *(f"  {n:3d} {file} {name}" for (file, name), n in watch.update.items()), sep="\n")


if __name__ == "__main__":
    count(verbose="-v" in sys.argv)
