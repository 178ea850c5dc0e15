"""A report over directories that nobody vouches for, and over any tag."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from reporting import TAG, summary, write_group, write_run

from rl_runner.errors import UserError
from rl_runner.report import main
from rl_runner.report.aggregate import Reference, read_reference
from rl_runner.report.findings import Findings

BOMB = "a: &a [1, 2, 3]\n" + "".join(
    f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in itertools.pairwise("abcdefghijk")
)


def findings(*directories: Path, tag: str = TAG) -> Findings:
    return Findings(directories, tag, Reference())


def sentences(findings: Findings, env: str) -> list[str]:
    return [sentence for sentence, _ in findings.answers(env)]


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def config(text: str | bytes) -> Callable[[Path], object]:
    return lambda run: (run / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return replace


GOOD = "seed: 0\ntotal_steps: 10\nalgo: {_target_: a.B}\nenv: {id: E-v0}\n"
FOREIGN = {
    "seed null": config(GOOD.replace("seed: 0", "seed: null")),
    "seed a word": config(GOOD.replace("seed: 0", "seed: one")),
    "seed true": config(GOOD.replace("seed: 0", "seed: true")),
    "seed a list": config(GOOD.replace("seed: 0", "seed: [0]")),
    "seed missing": config(GOOD.replace("seed: 0\n", "")),
    "steps a word": config(GOOD.replace("10", "many")),
    "no algo": config(GOOD.replace("algo: {_target_: a.B}\n", "")),
    "algo null": config(GOOD.replace("{_target_: a.B}", "null")),
    "env a list": config(GOOD.replace("{id: E-v0}", "[E-v0]")),
    "a list": config("- 1\n- 2\n"),
    "a word": config("hello"),
    "empty": config(""),
    "no yaml": config("a: ["),
    "binary": config(bytes(range(256)) * 40),
    "nul": config(b"\0" * 100),
    "huge": config("a: " + "x" * 1_000_000),
    "deep": config("[" * 50_000),
    "bomb": config(GOOD + BOMB),
    "circle": config(GOOD + "x: &x {y: *x}\n"),
    "bad date": config(GOOD + "x: 2024-99-99\n"),
    "long number": config(GOOD + f"x: {'9' * 5000}\n"),
    "unhashable key": config(GOOD + "{}: 1\n[1]: 2\n? {a: 1}\n: 3\n"),
    "object": config(GOOD + "x: !!python/object/apply:os.system ['exit 1']\n"),
    "directory": instead("config.yaml", Path.mkdir),
    "pipe": instead("config.yaml", make_fifo),
    "dangling": instead("config.yaml", lambda path: path.symlink_to("nowhere")),
    "device": instead("config.yaml", lambda path: path.symlink_to("/dev/zero")),
    "missing": instead("config.yaml", lambda path: None),
    "deep status": lambda run: (run / "status.json").write_text("[" * 100_000),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder with two sound runs."""
    write_group(tmp_path, [1.0, 3.0])
    return tmp_path


def test_a_foreign_run_is_named_and_costs_itself_only(good: Path, capsys: pytest.CaptureFixture[str]):
    for name, damage in FOREIGN.items():
        damage(write_run(good / name, seed=7))
    found = findings(good)
    assert set(found.collection.unreadable) == set(FOREIGN)
    assert all(len(reason) <= 200 and reason.isprintable() for reason in found.collection.unreadable.values())
    assert list(found.study.scores("CartPole-v1", "dqn")) == [1, 3]
    assert main([str(good)]) == 0
    page = (good / "report/index.html").read_text()
    assert [name for name in FOREIGN if f"<td>{name}</td>" not in page] == []
    assert f"{len(FOREIGN)} cannot be read" in capsys.readouterr().out


def test_what_is_no_run_is_not_named(good: Path):
    (good / "configs").mkdir()
    (good / "configs/config.yaml").write_text("seed: 1")
    (good / "logs").mkdir()
    (good / "logs/log.txt").write_text("x")
    assert findings(good).collection.unreadable == {}


def test_no_readable_run_is_one_line(tmp_path: Path):
    for name in ("a", "b"):
        config("seed: null")(write_run(tmp_path / name))
    with pytest.raises(UserError) as error:
        main([str(tmp_path)])
    assert "can be read: a: config.yaml has no whole number as seed, and 1 more" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_named(good: Path):
    (write_run(good / "closed", seed=8) / "config.yaml").chmod(0)
    write_run(good / "folder/run", seed=9)
    (good / "folder").chmod(0)
    found = findings(good).collection.unreadable
    (good / "folder").chmod(0o700)
    assert found == {"closed": "Permission denied", "folder": "Permission denied"}


METRICS = [
    '{"step": 100, "x/y": 1.0, "x/text": "much", "x/none": null, "x/flag": true, "x/list": [1]}',
    '{"step": 300, "x/y": NaN, "x/z": Infinity}', '{"step": 300, "x/y": 1e999}', '{"step": 300, "x/y": 1e200}',
    f'{{"step": 300, "x/y": {"9" * 400}}}', "not json", "[]", "7", "null", "[" * 100_000, '{"x/y": 5.0}',
    '{"step": null, "x/y": 5.0}', '{"step": "300", "x/y": 5.0}', '{"step": NaN, "x/y": 5.0}',
    '{"step": [1], "x/y": 5.0}', '{"step": true, "x/y": 5.0}', '{"step": -5, "x/y": 5.0}',
    '{"step": 250, "x/y": 4.0}', '{"step": 200, "x/y": 2.0}', "\udcff", '{"step": 200, "x/y": 3.0}',
    '{"step": 400, "x/',
]  # fmt: skip


def test_rows_without_sense_are_passed_over(good: Path):
    run = write_run(good / "run", seed=7)
    (run / "metrics.jsonl").write_bytes("\n".join(METRICS).encode("utf-8", "surrogateescape"))
    (read,) = [run for run in findings(good).collection.runs if run.seed == 7]
    assert set(read.curves) == {"x/y"}
    assert read.curves["x/y"].steps.tolist() == [100, 200, 250], "in order, whatever theirs was"
    assert read.curves["x/y"].values.tolist() == [1, 3, 4], "the last row of a step counts"
    main([str(good), "--tag", "x/y"])


RESULTS = {
    "a list": "[1, 2]", "a number": "3", "cut": '{"eval/return_mean": 1', "empty": "", "binary": "\0\1",
    "text": '{"eval/return_mean": "3", "updates": "many", "sps": "fast"}', "true": '{"eval/return_mean": true}',
    "NaN": '{"eval/return_mean": NaN}', "large": f'{{"eval/return_mean": {"9" * 400}, "sps": [1], "updates": {{}}}}',
}  # fmt: skip


@pytest.mark.parametrize("content", RESULTS.values(), ids=RESULTS)
def test_a_finished_run_without_a_score_is_said(good: Path, content: str):
    (write_run(good / "run", seed=7) / "result.json").write_text(content)
    found = findings(good)
    assert found.headline == (
        "dqn reaches 2 [-11, 15] on CartPole-v1 (2 seeds), "
        "counting only seeds with a score (dqn: 1 of 3 without a score)."
    )
    assert found.warning == "Of 3 runs, 1 finished without a score."


@pytest.mark.parametrize("status", ["[]", '{"state": ["finished"]}', '{"state": "won"}', '{"state": 3, "error": [1]}'])
def test_a_status_without_sense_is_no_finished_run(good: Path, status: str):
    (write_run(good / "run", seed=7) / "status.json").write_text(status)
    (read,) = [run for run in findings(good).collection.runs if run.seed == 7]
    assert (read.finished, status) == (status == "[]", status), "without a state the result tells"


def test_a_damaged_search_is_left_out(good: Path):
    trial = {"number": 0, "state": "complete", "value": 1.0, "params": {"lr": 1e-3}}
    for i, record in enumerate([
        [], {"trials": 3}, {"trials": [{}], "importance": {}}, {"trials": [{**trial, "value": None}], "importance": {}},
        {"trials": [{**trial, "params": None}], "importance": {}}, {"trials": [trial], "importance": {"lr": "most"}},
    ]):  # fmt: skip
        (good / str(i)).mkdir()
        (good / str(i) / "search.json").write_text(json.dumps(record))
    assert findings(good).collection.searches == []
    (good / "0/search.json").write_text(json.dumps({"trials": [trial], "importance": {}}))
    assert [search.name for search in findings(good).collection.searches] == ["0"]


# Links


def test_links_are_followed_and_a_run_counts_once(tmp_path: Path):
    place, elsewhere = tmp_path / "outputs", tmp_path / "elsewhere"
    place.mkdir()
    run = write_run(elsewhere / "run", score=7.0, seed=1)
    write_run(place / "own", score=5.0)
    (place / "alink").symlink_to(place / "own")
    (place / "linked").symlink_to(run)
    (place / "again").symlink_to(elsewhere)
    (place / "loop").symlink_to(place)
    (place / "up").symlink_to(tmp_path.parent)
    (place / "itself").symlink_to(place / "itself")
    (place / "nowhere").symlink_to(tmp_path / "gone")
    found = findings(place)
    assert sorted(found.study.scores("CartPole-v1", "dqn")) == [5, 7]
    assert found.study.repeated == []
    assert "own" in {run.name for run in found.study.runs}
    assert found.collection.unreadable == {}
    assert len(findings(place, place / "own", run, place / "linked").study.runs) == 2, "two paths to the same"
    assert len(findings(place / "linked").study.runs) == 1


@pytest.mark.parametrize("made", ["file", "loop", "absent"])
def test_what_is_no_directory_is_one_line(tmp_path: Path, made: str):
    place = tmp_path / "place"
    {"file": place.touch, "loop": lambda: place.symlink_to(place), "absent": lambda: None}[made]()
    with pytest.raises(UserError, match="is not a directory"):
        main([str(place)])


@pytest.mark.parametrize("option", ["--out", "--markdown"])
def test_a_place_that_cannot_be_written_is_one_line(good: Path, option: str):
    (good / "file").touch()
    with pytest.raises(UserError, match="cannot be written") as error:
        main([str(good), "--out", str(good / "o"), option, str(good / "file/x")])
    assert "\n" not in str(error.value)


# Tags


def test_every_tag_that_is_offered_can_be_reported(tmp_path: Path):
    for seed in range(3):
        run = write_run(tmp_path / str(seed), seed=seed, score=100.0 + seed)
        rows = [
            {"step": step, "losses/td_loss": 1 / step, "charts/episodic_return": step + seed, "charts/SPS": 5.0,
             "my own metric": -step, "eval/periodic": 2.0 * seed, TAG: step / 10}
            for step in range(50, 1001, 50)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as error:
        findings(tmp_path, tag="no/such")
    offered = str(error.value).partition("there are ")[2].split(", ")
    assert set(offered) == {TAG, *rows[0]} - {"step"}
    for tag in offered:
        found = findings(tmp_path, tag=tag)
        assert len(found.study.scores("CartPole-v1", "dqn")) == 3, tag
        assert "3 seeds" in found.headline, tag
        main([str(tmp_path), "--tag", tag, "--out", str(tmp_path / "report")])
        assert found.study.score_words in (tmp_path / "report/index.html").read_text()
    scores = findings(tmp_path, tag="charts/episodic_return").study.scores("CartPole-v1", "dqn")
    assert scores.tolist() == [975, 976, 977], "the mean of what was logged after 900 of 1000 steps"
    assert findings(tmp_path, tag=TAG).study.scores("CartPole-v1", "dqn").tolist() == [100, 101, 102]
    assert "final evaluation" in findings(tmp_path, tag=TAG).facts
    assert "charts/SPS, mean of the last tenth" in findings(tmp_path, tag="charts/SPS").facts


def test_a_tag_that_was_not_logged_in_the_last_tenth_counts_by_its_last_value(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 500, "a/b": 1}\n{"step": 800, "a/b": 3}\n{"step": 1000, "a/c": 0}')
    assert findings(tmp_path, tag="a/b").study.scores("CartPole-v1", "dqn").tolist() == [3]


def test_a_tag_of_unfinished_runs_alone_is_not_offered_beside_finished_ones(tmp_path: Path):
    write_run(tmp_path / "0")
    other = write_run(tmp_path / "1", seed=1, score=None, status="failed")
    (other / "metrics.jsonl").write_text('{"step": 5, "only/here": 1}')
    with pytest.raises(UserError, match="no run has the tag only/here"):
        findings(tmp_path, tag="only/here")


@pytest.mark.parametrize("content", [
    "[]", "{", '{"scores": {"A": {"E": {"10": "x"}}}}', '{"scores": {"A": {"E": {"10": []}}}}',
    '{"scores": {"A": {"E": {"10": [NaN]}}}}', '{"scores": {}, "random": {"E": "low"}, "best": {"E": 1}}',
    "[" * 100_000,
])  # fmt: skip
def test_a_damaged_reference_is_one_line(tmp_path: Path, content: str):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(UserError, match="is no file of reference scores"):
        read_reference(tmp_path / "file.json", [])


def test_one_published_score_is_drawn_and_not_compared(good: Path):
    (good / "r.json").write_text(json.dumps({"scores": {"A": {"CartPole": {"500": [1.0], "1000": [2.0]}}}}))
    reference = read_reference(good / "r.json", [])
    assert Findings([good], TAG, reference).published == {"CartPole-v1": []}
    assert main([str(good), "--reference", str(good / "r.json")]) == 0


# Seeds that are missing, single, or have not learned


def test_a_failed_seed_is_said_beside_every_verdict(tmp_path: Path):
    write_group(tmp_path, [99, 100, 101], "ddqn")
    write_group(tmp_path, [59, 60, 61], "dqn")
    write_group(tmp_path, [19, 20, 21], "sac")
    for seed, status in {3: "failed", 4: "failed", 5: "interrupted"}.items():
        write_run(tmp_path / f"lost{seed}", "dqn", seed=seed, score=None, status=status)
    said = "counting only seeds with a score (dqn: 2 of 6 failed, 1 unfinished)"
    found = findings(tmp_path)
    assert found.headline == f"ddqn is the best of 3 on CartPole-v1, {said}."
    against_dqn, against_sac = sentences(found, "CartPole-v1")
    assert against_dqn.startswith(f"ddqn is better than dqn, {said}: +40")
    assert against_sac.startswith("ddqn is better than sac: +80")
    for path in tmp_path.glob("*sac*"):
        (path / "config.yaml").write_text((path / "config.yaml").read_text().replace("CartPole", "Other"))
    assert findings(tmp_path).headline.count(said) == 0, "with two environments it says where"
    assert "(dqn on CartPole-v1: 2 of 6 failed, 1 unfinished)." in findings(tmp_path).headline
    for path in tmp_path.glob("*dqn*"):
        (path / "status.json").write_text(json.dumps({"state": "failed"}))
    assert "dqn on CartPole-v1: 5 of 6 failed, 1 unfinished" in findings(tmp_path).headline


def test_a_group_whose_seeds_all_failed_is_no_silent_victory(tmp_path: Path):
    write_group(tmp_path, [99, 100, 101], "ddqn")
    for seed in range(3):
        write_run(tmp_path / f"lost{seed}", "dqn", seed=seed, score=None, status="failed")
    found = findings(tmp_path)
    assert found.headline.endswith("(3 seeds), counting only seeds with a score (dqn: 3 of 3 failed).")
    assert sentences(found, "CartPole-v1") == ["dqn has no score: 3 of 3 failed."]


def test_one_seed_makes_no_comparison(tmp_path: Path):
    for algo, score in {"dqn": 1.0, "ddqn": 50.0, "sac": 500.0}.items():
        write_run(tmp_path / algo, algo, score=score)
    assert findings(tmp_path).headline == "No comparison on CartPole-v1: ddqn, dqn and sac have one seed each."
    text = summary([tmp_path])
    assert not [word for word in ("better", "best", "highest", "winner", "leads", "+") if word in text]
    for algo in ("dqn", "ddqn"):
        write_run(tmp_path / f"{algo}1", algo, seed=1, score=2.0)
    found = findings(tmp_path)
    assert [(c.leader.group, c.other.group) for c in found.comparisons["CartPole-v1"]] == [("ddqn", "dqn")], (
        "and not sac"
    )
    assert found.headline.endswith(", leaving out sac (one seed).")
    assert "One seed makes no comparison: sac." in sentences(found, "CartPole-v1")


def never_update(*runs: Path) -> None:
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | {"updates": 0}))


def test_runs_that_never_updated_get_no_verdict(tmp_path: Path):
    for env in ("A-v0", "B-v0"):
        write_group(tmp_path, [99, 100, 101], "ddqn", env)
        write_group(tmp_path, [59, 60, 61], "q_learning", env)
    never_update(*tmp_path.glob("*q_learning*"))
    found = findings(tmp_path)
    assert found.comparisons == {"A-v0": [], "B-v0": []}
    assert found.aggregate is None
    assert "leaving out q_learning on A-v0 (never updated)" in found.headline
    assert "q_learning reaches" not in found.headline
    said = "No verdict on q_learning: never updated (learning_starts above total_steps?)."
    assert sentences(found, "A-v0") == [said]
    never_update(*tmp_path.glob("*ddqn*"))
    main([str(tmp_path)])
    page = (tmp_path / "report/index.html").read_text()
    assert "<h1>No verdict: the finished runs never updated (learning_starts above total_steps?).</h1>" in page
    assert not [
        word for word in ("better", "not distinguishable", "P(the first") if word in page.partition("<details")[0]
    ]
