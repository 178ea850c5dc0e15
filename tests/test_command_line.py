"""What a shell, a newcomer and a strange platform get from the command line: TAB, --help, --version, first lines."""

import os
import re
import resource
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from omegaconf import OmegaConf
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticOmit
from sweeping import Ended

from rl_runner import header, notes
from rl_runner.commands import COMMANDS
from rl_runner.config.schema import Config, EnvConfig, RunLevel
from rl_runner.config.targets import ROLES, resolve, schema
from rl_runner.console import quiet
from rl_runner.envs.seeded import SeededEnv
from rl_runner.help import complete
from rl_runner.notes import constructor
from rl_runner.saved_policy import film

Command = Callable[..., Ended]
Shown = Callable[..., list[str]]

ALGOS = (
    "bro_fast", "c51", "crossq", "crossq_wide", "d4pg", "ddpg", "ddqn", "dqn", "droq", "flashsac", "munchausen",
    "q_learning", "qrdqn", "rainbow", "redq", "sac", "simba", "td3", "tqc", "xqc", "xqc_small",
)  # fmt: skip
SCRIPT = str(Path(sys.executable).with_name("rl-runner"))
FILES = [file for file in sorted(notes.CONFIGS.glob("*/**/*.yaml")) if "_target_: rl_runner" in file.read_text()]
FILES += sorted((notes.CONFIGS / "optimizer").glob("*.yaml"))


@pytest.fixture(scope="module")
def at_once() -> float:
    """The bar in seconds of CPU time, higher where the machine has no time even for importing Hydra."""
    return max(0.6, 2.4 * timed([sys.executable, "-c", "import hydra"])[1])


def timed(words: list[str], enough: float = 0.6, **options: Any) -> tuple[subprocess.CompletedProcess[str], float]:
    """A process that has ended, and the least CPU time of three tries in seconds, as other tests share the cores."""
    tries = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run(words, capture_output=True, text=True, check=False, **options)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        tries.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if tries[-1] < enough:
            break
    return ended, min(tries)


@pytest.fixture
def shown(rl_runner: Command, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that a command prints before it exits with 0."""

    def run(*words: str) -> list[str]:
        try:
            return rl_runner(*words).out
        except SystemExit as end:
            if end.code:
                raise
            return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run, a sweep, YAML of a user, and what is none of these."""
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/Pendulum-v1/sac/one", "outputs/sweeps/abc/job"):
        (tmp_path / name / "checkpoint").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("seed: 3\ntotal_steps: 100\nalgo:\n  gamma: 0.9\n")
    (tmp_path / "outputs/sweeps/abc/sweep.json").write_text("{}")
    (tmp_path / "outputs/.hidden").mkdir()
    (tmp_path / "mine/algo").mkdir(parents=True)
    (tmp_path / "mine/algo/my_dqn.yaml").write_text("_target_: my_package.MyDQN\nsomething_new: 3 # of mine\n")
    (tmp_path / "mine/algo/broken.yaml").write_text("gamma: [0.9\n")
    (tmp_path / "two words").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ev", {"eval", "eval_every=", "eval_episodes=", "eval_epsilon=", "eval_max_steps=", "eval_process="}),
        ("resu", {"resume"}),
        ("eval outputs/", {"outputs/Pendulum-v1/", "outputs/sweeps/"}),
        ("eval outputs/Pendulum-v1/sac/", {"outputs/Pendulum-v1/sac/one"}),
        ("eval outputs/Pendulum-v1/sac/one/", set()),
        ("eval out", {"outputs/"}),
        ("eval nowhere/", None),
        ("eval outputs/x --ep", {"--episodes"}),
        ("eval --episodes ", set()),
        ("export d --", {"--out", "--help"}),
        ("report outputs --ti", {"--title"}),
        ("report outputs out", {"outputs/"}),
        ("resume outputs/Pendulum-v1/sac/one tot", {"total_steps="}),
        ("resume outputs/Pendulum-v1/sac/one algo.", {"algo.gamma="}),
        ("algo=", {f"algo={name}" for name in ALGOS}),
        ("-m algo=", {f"algo={name}" for name in ALGOS}),
        ("-m algo=dqn,dd", {"algo=dqn,ddpg", "algo=dqn,ddqn"}),
        ("env=Pend", {"env=Pendulum-v1"}),
        ("env=froz", {"env=frozen_lake_dry"}),
        ("hydra/launcher=", {f"hydra/launcher={name}" for name in ("local", "ray", "slurm")}),
        ("hydra/launcher=slurm hydra.launcher.part", {"hydra.launcher.partition="}),
        ("optimizer.l", {"optimizer.lr="}),
        ("optimizer=sgd optimizer.", {f"optimizer.{key}=" for key in ("lr", "momentum", "weight_decay", "nesterov")}),
        ("algo=dqn algo.eps", {f"algo.epsilon_{key}=" for key in ("schedule", "min", "fraction", "decay", "mu")}),
        ("replay=prioritized replay.beta", {"replay.beta=", "replay.beta_end="}),
        ("optimizer.lr=", {"optimizer.lr=1e-3"}),  # tuned/sac_Pendulum-v1
        ("tuned=none optimizer.lr=", {"optimizer.lr=3e-4"}),
        ("critic_network=", {"critic_network=dueling", "critic_network=mlp", "critic_network=residual"}),
        ("critic_network.h", {"critic_network.hidden="}),
        ("tuned=none optimizer=sgd alpha_optimizer.l", {"alpha_optimizer.lr="}),
        ("+optimizer.l", {"+optimizer.lr="}),
        ("--config-dir mine algo=my", {"algo=my_dqn"}),
        ("--config-dir mine algo=my_dqn algo.so", {"algo.something_new="}),
        ("--vers", {"--version"}),
        ("algo=nonsense optimizer.l", {"optimizer.lr="}),
        ("'unbalanced", set()),
    ],
)
def test_tab_offers(place: Path, line: str, expected: set[str] | None) -> None:
    words = line.split() if line[-1] != " " else [*line.split(), ""]
    if expected is None:
        with pytest.raises(OSError, match="nowhere"):  # which a prompt does not get to see
            complete(words)
    else:
        assert complete(words) == expected


TABS = {
    "rl-runner ev": {"eval", "eval_every=", "eval_episodes=", "eval_epsilon=", "eval_max_steps="},
    "rl-runner eval outputs/": {"outputs/Pendulum-v1/", "outputs/sweeps/"},
    "rl-runner algo=": {f"algo={name}" for name in ALGOS},
    "rl-runner env=Pend": {"env=Pendulum-v1"},
    "rl-runner hydra/launcher=": {"hydra/launcher=local", "hydra/launcher=ray", "hydra/launcher=slurm"},
    "rl-runner eval nowhere/": set(),
    "rl-runner --config-dir nowhere algo=q": {"algo=q_learning"},
    "rl-runner --config-dir mine algo=broken algo.": set(),
}


def test_a_real_shell_completes_at_once_and_in_silence(place: Path, at_once: float) -> None:
    environment = os.environ | {"PATH": f"{Path(SCRIPT).parent}:{os.environ['PATH']}"}
    install = subprocess.run([SCRIPT, "-sc", "install=bash"], capture_output=True, text=True, check=True)
    for line, expected in TABS.items():
        press = f"""{install.stdout}
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}
        hydra_bash_completion rl-runner
        printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        ended, seconds = timed(["bash", "-c", press], env=environment)
        assert ended.stderr == ""
        assert expected <= set(ended.stdout.splitlines()), line
        assert seconds < at_once, line


@pytest.mark.parametrize("broken", ["import", "nothing asked"])
def test_a_broken_installation_says_nothing_over_the_prompt(place: Path, broken: str) -> None:
    environment = os.environ | {"PATH": f"{Path(SCRIPT).parent}:{os.environ['PATH']}"}
    install = subprocess.run([SCRIPT, "-sc", "install=bash"], capture_output=True, text=True, check=True)
    if broken == "import":
        (place / "yaml.py").write_text("raise ImportError('broken')\n")
        environment["PYTHONPATH"] = f"{place}:{environment.get('PYTHONPATH', '')}"
    press = f"{install.stdout}\nCOMP_LINE='rl-runner ' COMP_POINT=10 COMP_CWORD=1\nhydra_bash_completion rl-runner"
    if broken == "nothing asked":
        press = "rl-runner -sc query=bash"
    ended = subprocess.run(["bash", "-c", press], capture_output=True, text=True, env=environment, check=False)
    assert ended.stderr == ""


def test_printing_the_completion_into_a_closed_pipe_is_no_mistake(place: Path) -> None:
    for words in ("-sc install=bash", "--help", "--version"):
        command = f"'{SCRIPT}' {words} | true; echo ${{PIPESTATUS[0]}}"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (ended.stdout, ended.stderr) == ("0\n", "")


def yaml_of(lines: list[str]) -> Any:
    """The config that a help shows, which is YAML."""
    text = "\n".join(lines).partition("Set any value below")[2].partition("\n")[2].rpartition("\n--cfg")[0]
    return OmegaConf.to_container(OmegaConf.create(text))  # which reads 3e-4 as Hydra does


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["algo=dqn", "env=CartPole-v1", "replay=prioritized"],
        ["algo=q_learning", "env=frozen_lake_dry", "replay=last"],
        ["hydra/launcher=slurm", "optimizer=rmsprop", "network.hidden=[7]"],
        ["-m", "experiment=untuned"],
    ],
)
def test_help_shows_every_key_its_value_and_its_comment(shown: Shown, words: list[str]) -> None:
    lines = shown("--help", *words)
    config = yaml_of(lines)
    if "-m" not in words:
        composed = OmegaConf.to_container(OmegaConf.create("\n".join(shown("--cfg", "job", *words))))
        assert {key: config[key] for key in composed} == composed
    said = 0
    choices = dict(word.split("=") for word in words if "=" in word and "." not in word)
    for file in notes.files(choices, [notes.CONFIGS]):
        for key, comment in file.comments.items():
            if comment and not key.startswith("hydra."):
                said += 1
                assert any(re.match(rf"\s*{key.rpartition('.')[2]}:.*{re.escape(comment)}", line) for line in lines)
    assert said > 25


def test_a_value_from_elsewhere_says_where_it_is_from(shown: Shown) -> None:
    line = {text.split(":")[0].strip(): text for text in shown("--help", "algo=td3", "algo.tau=0.1")}
    assert "SAC and TD3 code; here from algo/td3; paper 1e-3" in line["lr"]
    assert (
        "environment steps, like every other number of steps here; here from tuned/td3_Pendulum-v1"
        in line["total_steps"]
    )
    assert "here from the command line" in line["tau"]
    assert "here from" not in line["noise_clip"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("algo=sac", ["gamma: 0.99 # number >= 0, <= 1", "alpha: auto # auto | number > 0; auto (learned)",
                      "# Soft actor-critic with a squashed Gaussian policy and an ensemble of critics."]),
        ("replay=prioritized", ["storage: memory # memory | memmap (on disk", "epsilon: 1.0e-06 # number > 0"]),
        ("network=dueling", ["hidden: [256, 256] # list of integer > 0", "activation: relu # relu | tanh | silu"]),
        ("optimizer=sgd", ["nesterov: false # true | false", "# +optimizer.dampening=... # number"]),
        ("hydra/launcher=slurm", ["timeout_min: 720 # integer > 0; after which", "# `n_jobs` in the queue at once"]),
        ("hydra/sweeper=optuna", ["n_seeds: 1 # integer > 0; per trial"]),
        ("env=CartPole-v1", ["max_episode_steps: null # integer > 0 | null; null: the environment's own time limit"]),
        ("critic_network=dueling", ["hidden: [256, 256] # list of integer > 0"]),
        ("accelerate=eager", ["accelerate: eager # auto | eager | compile | cudagraph; here from the command line"]),
    ],
)  # fmt: skip
def test_help_of_an_option_tells_types_choices_and_ranges(shown: Shown, words: str, expected: list[str]) -> None:
    lines = [" ".join(line.split()) for line in shown("--help", words)]
    for start in expected:
        assert any(line.startswith(start) for line in lines), start
    assert not any(".. math" in line for line in lines)


def test_help_is_wrapped_for_a_terminal_at_words(monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    whole = shown("--help")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    wrapped = shown("--help")
    assert max(map(len, whole)) > 120
    assert max(len(line) for line in wrapped if "#" in line or ", " in line[:20]) <= 90
    assert yaml_of(wrapped) == yaml_of(whole)


class Writable(GenerateJsonSchema):
    """What a command line can say; a tensor is left out."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Any:
        raise PydanticOmit


def validated(model: Any) -> dict[str, str]:
    """What the fields of a pydantic model, by which configs are validated, may be, in words."""
    fields = model.model_json_schema(schema_generator=Writable).get("properties", {})
    return {key: words for key, field in fields.items() if (words := in_words(field))}


def in_words(schema: dict[str, Any]) -> str:
    """A JSON schema as a reader of YAML would say it."""
    if branches := schema.get("anyOf"):
        return " | ".join(dict.fromkeys(filter(None, map(in_words, branches))))
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return " | ".join(map(str, choices))
    name = {"boolean": "true | false", "string": "text", "array": "list", "object": "mapping"}
    words = name.get(schema.get("type", ""), schema.get("type", ""))
    if items := schema.get("prefixItems", [schema[key] for key in ("items",) if schema.get(key)]):
        words += f" of {', '.join(map(in_words, items))}"
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in signs.items() if bound in schema]
    return " ".join([words, ", ".join(bounds)]).strip()


def said(target: str, wired: frozenset[str] = frozenset()) -> dict[str, str]:
    return {key: words for key, words in constructor(target)[0].items() if words and key not in wired}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_source_tells_what_a_config_is_validated_by(file: Path) -> None:
    group = "hydra.launcher" if file.parent.name == "launcher" else file.parent.name
    target = re.search(r"_target_: (\S+)", file.read_text())
    assert target is not None
    if target[1].endswith(".Ray"):
        pytest.importorskip("ray")
    told = said(target[1], ROLES[group].wired)
    assert told == validated(schema(resolve(group, target[1]), group))
    assert told or file.stem in ("last", "auto", "flat", "scalar", "tensorboard")


@pytest.mark.parametrize("model", [RunLevel, EnvConfig], ids=lambda model: model.__name__)
def test_a_source_tells_the_fields_of_a_model(model: type) -> None:
    assert said(f"{model.__module__}.{model.__name__}") == validated(model)


def test_a_source_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "parts.py").write_text("from typing import Literal as L\nimport typing as t\nMode = L['a', 'b']\n")
    (package / "agent.py").write_text(
        "import torch\nfrom .parts import Mode\nfrom . import parts, nothing\nimport typing as t\n"
        "class Base:\n"
        "    def __init__(self, *, spec: object, mode: Mode, net: torch.nn.Module, some: t.Optional[float],\n"
        "                 odd: missing.thing[3], n: int | None, plain, evil: __import__('os').abort() = 1): ...\n"
        "class Agent(Base):\n    '''What it is.'''\n"
    )
    (package / "broken.py").write_text("class Agent(:")
    monkeypatch.syspath_prepend(tmp_path)
    assert constructor("theirs.agent.Agent")[1] == "What it is."
    assert said("theirs.agent.Agent") == {"mode": "a | b", "some": "number | null", "n": "integer | null"}
    others = ("theirs.agent.Other", "theirs.broken.Agent", "theirs.no.Agent", "nothing.X", "X")
    assert [constructor(name) for name in others] == [({}, "")] * 5


@pytest.mark.parametrize(
    ("words", "expected", "bars"),
    [
        ("--help", "total_steps: ", 1),
        ("--help algo=sac", "number >= 0, <= 1", 5),
        ("--version", "hydra ", 1),
        *[(f"{command} --help", f"usage: rl-runner {command}", 1) for command in COMMANDS],
        ("eval", "", 1),
        ("report . --tagg x", "", 1),
    ],
)
def test_answers_come_at_once_and_without_torch(
    place: Path, words: str, expected: str, bars: int, at_once: float
) -> None:
    ended, seconds = timed([SCRIPT, *words.split()], bars * at_once)
    assert expected in ended.stdout
    assert seconds < bars * at_once
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    imported = subprocess.run([SCRIPT, *words.split()], capture_output=True, text=True, env=environment, check=False)
    assert not re.search(r"\| +(torch|scipy|matplotlib)$", imported.stderr, re.MULTILINE)


def test_version_names_what_decides_the_numbers(rl_runner: Command) -> None:
    (line,) = rl_runner("--version").out
    assert re.fullmatch(r"rl-runner [\d.]+, torch \d\S+, hydra \d\S+, Python \d\S+", line)


AS_ON_3_14 = """
import argparse, sys
if not hasattr(argparse.ArgumentParser, "_check_help"):
    add = argparse._ActionsContainer.add_argument
    def _check_help(self, action):  # as CPython 3.14 has it
        if action.help and hasattr(self, "_get_formatter"):
            try:
                if "%" in action.help:
                    self._get_formatter()._expand_help(action)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError("badly formed help string") from error
    def add_argument(self, *words, **options):
        action = add(self, *words, **options)
        self._check_help(action)
        return action
    argparse._ActionsContainer._check_help = _check_help
    argparse._ActionsContainer.add_argument = add_argument
from hydra._internal.utils import get_args_parser
try:
    get_args_parser()
    raise SystemExit("the stand-in checks nothing")
except ValueError:
    pass
from rl_runner.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--help", "total_steps: "),
        ("--cfg job algo=ddqn", "double: true"),
        ("--hydra-help", "Install or Uninstall shell completion"),
        ("-sc install=bash", "hydra_bash_completion"),
        ("eval --help", "--episodes"),
    ],
)
def test_python_3_14_checks_every_help(place: Path, words: str, expected: str) -> None:
    command = [sys.executable, "-c", AS_ON_3_14, *words.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert expected in ended.stdout


def test_a_help_with_a_mistake_is_still_one_on_python_3_14() -> None:
    if hasattr(ArgumentParser, "_check_help"):
        with pytest.raises(ValueError, match="badly formed"):
            ArgumentParser().add_argument("--x", help="%(no_such)s")


ELSEWHERE = {
    "a platform": "import sys; sys.platform = 'win32'",
    "a module": "import sys; sys.modules['fcntl'] = None",
    "both": "import sys; sys.platform = 'win32'; sys.modules['fcntl'] = None",
}


@pytest.mark.parametrize("fake", ELSEWHERE)
@pytest.mark.parametrize("words", ["", "--help", "eval .", "-m seed=0,1"])
def test_windows_gets_one_line(place: Path, fake: str, words: str) -> None:
    program = f"{ELSEWHERE[fake]}\nfrom rl_runner.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", program, *words.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "rl-runner runs on Linux and macOS; on Windows use WSL\n"


@pytest.mark.parametrize(
    ("total_steps", "learning_starts", "batch_size", "updates", "expected"),
    [
        (1_500, 100, 256, 1_245, "after 255 (100 random ones, then until a batch of 256 is there), 1,245 in all"),
        (1_500, 0, 64, 1_437, "after 63 (until a batch of 64 is there), 1,437 in all"),
        (1_500, 1_000, 256, 500, "after 1,000 random ones, 500 in all"),
        (1_500, 255, 256, 1_245, "after 255 random ones, 1,245 in all"),
        (1_500, 0, 1, 1_500, "per environment step, 1,500 in all"),
    ],
)
def test_the_sentence_of_the_header_adds_up(
    configure: Callable[..., Config],
    total_steps: int,
    learning_starts: int,
    batch_size: int,
    updates: int,
    expected: str,
) -> None:
    from rl_runner.train import updates_due

    config = configure("tuned=none", f"total_steps={total_steps}", f"learning_starts={learning_starts}")
    run: Any = SimpleNamespace(config=config, agent=SimpleNamespace(batch_size=batch_size))
    assert updates_due(config, batch_size, 0, total_steps) == updates
    sentence = header.learning(run, updates)
    assert sentence.endswith(expected)
    after = re.search(r"after ([\d,]+)", sentence)
    assert total_steps - (int(after[1].replace(",", "")) if after else 0) == updates


def test_lines_are_wrapped_at_words(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "environment: " + "exact continuation by replaying the running episode's actions " * 3
    for columns in (40, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = header._wrapped(line).splitlines()
        assert len(lines) > 1
        assert max(map(len, lines)) <= columns
        assert " ".join(" ".join(lines).split()) == line.strip()


@pytest.mark.parametrize(
    ("directory", "shown"),
    [
        ("outputs/Pendulum-v1/sac/one", "outputs/Pendulum-v1/sac"),
        ("outputs/sweeps/abc/job", "outputs/sweeps/abc"),
        ("two words/run", "'two words'"),
        ("run", "run"),  # beside which lies whatever else the working directory holds
    ],
)
def test_the_command_for_the_curves_can_be_pasted(place: Path, directory: str, shown: str) -> None:
    result = {"eval/return_mean": 1.0, "eval/return_std": 0.0, "episode_returns": [1.0], "sps": 3.0}
    for path in (Path(directory), place / directory):
        command = header.farewell(result, path).splitlines()[-1]
        expected = shown if path == Path(directory) else shown.replace("'", "").join([f"{place}/", ""])
        assert command.removeprefix("curves: tensorboard --logdir ") in (expected, f"'{expected}'")


class Chatty(gym.Env[Any, Any]):
    """Prints as libraries in C do, past Python's streams, whatever it does."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's own form
    render_mode = "rgb_array"

    def chat(self) -> None:
        os.write(1, b"Hello from the community\n")
        os.write(2, b"XDG_RUNTIME_DIR not set\n")
        print("moviepy is done")

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.chat()
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.chat()
        return np.zeros(2, np.float32), 0.0, True, False, {}

    def render(self) -> Any:
        self.chat()
        return np.zeros((16, 16, 3), np.uint8)

    def close(self) -> None:
        self.chat()


def test_a_video_is_made_in_silence(
    tmp_path: Path, make_agent: Callable[..., Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moviepy")
    from conftest import DISCRETE

    agent = make_agent("dqn", spec=replace(DISCRETE, obs_shape=(2,), num_actions=2))

    monkeypatch.setitem(gym.registry, "Chatty-v0", gym.envs.registration.EnvSpec("Chatty-v0", Chatty))
    env = SeededEnv(EnvConfig(id="Chatty-v0"), (0, "eval", 0))
    env.env = gym.wrappers.RecordVideo(Chatty(), str(tmp_path), lambda episode: True, name_prefix="step-1")
    capfd.readouterr()
    file = film(agent, env, max_steps=1_000)
    assert capfd.readouterr() == ("", "")
    assert file.stat().st_size > 0


def test_what_goes_wrong_in_silence_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(1, b"noise\n")
        print("noise", file=sys.stderr)
        raise ValueError("the camera")

    with pytest.raises(ValueError, match="the camera"), quiet():
        fail()
    print("after")
    assert capfd.readouterr() == ("after\n", "")


def test_what_compiles_is_imported_only_when_a_graph_is_called() -> None:
    words = ["algo=sac", "env=Pendulum-v1", "accelerate=compile", "dry_run=true"]
    code = f"import sys; from rl_runner.__main__ import main; main({words}); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
