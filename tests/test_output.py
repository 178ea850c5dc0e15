"""What is said to people can neither end nor relabel a run, wherever it goes."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import PROCESSES, rows
from sweeping import TINY, Ended, only

from rl_runner.__main__ import main
from rl_runner.persistence import RESULT, STATUS, read_json

RUN = (*TINY, "+env.kwargs.what=talk", "seed=1", "hydra.run.dir=run")
COMMANDS = {RUN: 0, ("eval", "run", "plugins=[mishaps]"): 0, ("--help",): 0, ("resume", "nothing"): 2, ("algo=no",): 2}


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


OUTPUTS: dict[str, Callable[[], int | None]] = {
    "a closed pipe": closed_pipe,
    "a full disk": lambda: os.open("/dev/full", os.O_WRONLY),
    "a file that is only read": lambda: os.open(os.devnull, os.O_RDONLY),
    "a closed descriptor": lambda: None,
    "a file in ASCII": lambda: os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
}


@pytest.mark.parametrize(
    ("out", "err"),
    [
        ("a closed pipe", "a closed pipe"),
        ("a full disk", "a full disk"),
        ("a file that is only read", "a closed descriptor"),
        ("a closed descriptor", "a file in ASCII"),
        ("a file in ASCII", "a closed pipe"),
    ],
)
def test_every_command_does_its_work_whatever_it_prints_into(
    out: str, err: str, rl_runner: Callable[..., Ended], tmp_path: Path
) -> None:
    """The environment talks as well."""
    process = PROCESSES.Process(target=_commands, args=(out, err, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert json.loads((tmp_path / "codes").read_text()) == list(COMMANDS.values())
    assert read_json(tmp_path / "run" / STATUS)["state"] == "finished"
    rl_runner(*RUN, "hydra.run.dir=undisturbed")
    assert rows(tmp_path / "run") == rows(tmp_path / "undisturbed")
    results = [read_json(tmp_path / name / RESULT)["params_sha256"] for name in ("run", "undisturbed")]
    assert results[0] == results[1]


def _commands(out: str, err: str, directory: Path) -> None:
    """All commands in a process whose streams are as Python makes them of what it was started with."""
    os.chdir(directory)
    sys.path.insert(0, str(Path(__file__).parent))
    for descriptor, name, stream in ((1, "stdout", out), (2, "stderr", err)):
        output = OUTPUTS[stream]()
        made = None
        if output is None:
            os.close(descriptor)
        else:
            os.dup2(output, descriptor)
            os.close(output)
            encoding = "ascii" if stream == "a file in ASCII" else "utf-8"
            made = io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding=encoding, write_through=True)
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
    sys.argv = ["rl-runner"]
    (directory / "codes").write_text(json.dumps([_code(words) for words in COMMANDS]))


def _code(words: tuple[str, ...]) -> Any:
    try:
        return main(words)
    except SystemExit as ended:
        return ended.code or 0


def test_letters_that_an_encoding_lacks_are_written_in_those_it_has() -> None:
    said = _python("print('a ± b', '\\udcff', 'ü…')", PYTHONIOENCODING="ascii")
    assert said.stdout == b"a +- b \\udcff \\xfc...\n"
    assert _python("print('a ± b \\udcff')", PYTHONIOENCODING="utf-8").stdout == "a ± b \\udcff\n".encode()


@pytest.mark.parametrize("streams", ["1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(streams: str, tmp_path: Path) -> None:
    """Nor does a child process print into it."""
    written = tmp_path / "file"
    code = (
        f"file = open({str(written)!r}, 'w'); print('out'); print('err', file=sys.stderr); "
        "os.system('echo out; echo err >&2'); print(file.fileno(), sys.stdin.read(), file=file)"
    )
    assert _python(code, streams).returncode == 0
    number, *rest = written.read_text().split()
    assert int(number) > 2
    assert rest == []


def test_what_an_environment_starts_does_not_die_of_a_closed_pipe() -> None:
    code = "print('x' * 100_000, flush=True); sys.exit(subprocess.call(['echo', 'more']))"
    assert _python(code, "| true; exit ${PIPESTATUS[0]}").returncode == 0


def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything() -> None:
    code = "os.set_blocking(1, False); print('x' * 1_000_000)"
    assert _python(code, "| (sleep 0.3; wc -c)").stdout.strip() == b"1000001"


def _python(code: str, streams: str = "", **environment: str) -> Any:
    """Run code after the streams were protected, under a shell's redirections."""
    code = f"import os, subprocess, sys; from rl_runner import console; console.protect(); {code}"
    command = ["bash", "-c", f'"$0" -c "$1" {streams}', sys.executable, code]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=os.environ | environment)


def test_a_sweep_goes_on_when_nobody_reads(rl_runner: Callable[..., Ended], tmp_path: Path) -> None:
    """A real command line, whose reader takes one line: `rl-runner -m ... 2>&1 | head -1`."""
    words = ("-m", *TINY, "+env.kwargs.what=talk", "seed=1,2", "hydra.sweep.dir=sweep")
    command = [sys.executable, "-m", "rl_runner", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    for seed in (1, 2):
        assert read_json(only(tmp_path / "sweep", f"seed={seed},*") / STATUS)["state"] == "finished"
    assert (tmp_path / "sweep/report/index.html").is_file()
