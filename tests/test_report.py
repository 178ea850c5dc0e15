import csv
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from reporting import TAG, summary, write_group, write_report, write_run
from scipy import stats

from rl_runner.errors import UserError
from rl_runner.report import main, statistics
from rl_runner.report.aggregate import Reference, aggregate, read_reference
from rl_runner.report.findings import Comparison, Findings
from rl_runner.report.study import RETURNS, Cell


def study_of(*directories: Path):
    return Findings(directories, TAG, Reference()).study


def compared(leader: str, scores: dict[str, np.ndarray], groups: int = 2, environments: int = 1) -> list[Comparison]:
    """The leader against each of the others."""
    cells = {name: Cell("CartPole-v1", name, [], values, Counter()) for name, values in scores.items()}
    others = [cell for name, cell in cells.items() if name != leader]
    return [Comparison(cells[leader], other, RETURNS, groups, environments) for other in others]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Statistics


def test_student_interval_by_hand():
    scores = np.array([10.0, 12.0, 17.0])  # mean 13, variance (9 + 1 + 16) / 2 = 13, t(0.975, df=2) = 4.302653
    half = 4.302653 * np.sqrt(13 / 3)
    assert statistics.mean_interval(scores) == pytest.approx((13 - half, 13 + half), rel=1e-6)
    summary = statistics.summarize(scores)
    assert (summary.n, summary.mean, summary.lowest, summary.highest) == (3, 13, 10, 17)
    assert summary.sd == pytest.approx(np.sqrt(13))


def test_welch_interval_by_hand():
    a, b = np.array([10.0, 12.0, 17.0]), np.array([1.0, 2.0, 3.0, 6.0])
    # variances 13 and 14 / 3; v = 13 / 3 + 14 / 12 = 5.5; df = 5.5^2 / ((13 / 3)^2 / 2 + (14 / 12)^2 / 3) = 3.072174
    half = stats.t.ppf(0.975, 30.25 / ((13 / 3) ** 2 / 2 + (14 / 12) ** 2 / 3)) * np.sqrt(5.5)
    assert statistics.difference_interval(a, b) == pytest.approx((10 - half, 10 + half))
    library = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert statistics.difference_interval(a, b) == pytest.approx((library.low, library.high))


def test_three_groups_widen_by_the_studentized_range():
    # q(0.95; 3, 10) = 3.877 in every printed table; Student's t for 10 degrees of freedom is 2.228.
    assert statistics.critical(10, groups=3) == pytest.approx(3.877 / np.sqrt(2), abs=1e-3)
    assert statistics.critical(10) == pytest.approx(2.228, abs=1e-3)


@pytest.mark.parametrize("df", [1.0, 1.37, 1.96, 2.44, 3.07, 9.97, 10.4, 37.2])
def test_welchs_degrees_of_freedom_are_not_rounded(df: float):
    exact = stats.studentized_range.ppf(0.95, 3, df) / np.sqrt(2)
    assert exact * (1 - 1e-4) <= statistics.critical(df, groups=3) <= exact * 1.001
    assert statistics.critical(df) == pytest.approx(stats.t.ppf(0.975, df))


@pytest.mark.parametrize("n", [20, 40])
def test_the_bootstrap_is_as_wide_as_student_asks(n: int):
    """Hesterberg: plain percentiles are short by the root of (n - 1) / n, and by what z is short of t."""
    scores = np.random.default_rng(n).normal(size=(300, n))
    low, high = statistics.mean_interval(scores)
    student = stats.t.ppf(0.975, n - 1) * scores.std(axis=-1, ddof=1) / np.sqrt(n)
    assert np.mean((high - low) / 2 / student) == pytest.approx(1, abs=0.01)
    others = np.random.default_rng(n + 1).normal(size=(100, n))
    low, high = statistics.difference_interval(scores[:100], others)
    squares = np.stack([scores[:100].var(axis=-1, ddof=1), others.var(axis=-1, ddof=1)]) / n
    df = squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0) * (n - 1)
    welch = stats.t.ppf(0.975, df) * np.sqrt(squares.sum(axis=0))
    assert np.mean((high - low) / 2 / welch) == pytest.approx(1, abs=0.01)


def test_iqm_and_improvement_over_all_resamples():
    """Two environments of three seeds: 27 x 27 resamples, all equally likely; 4 degrees of freedom in all."""
    a, b = np.array([0.0, 1.0, 5.0]), np.array([2.0, 4.0, 9.0])
    level = 2 * stats.norm.cdf(stats.t.ppf(0.975, 4) * np.sqrt(3 / 2)) - 1
    pairs = list(itertools.product(itertools.product(a, repeat=3), itertools.product(b, repeat=3)))
    every = [stats.trim_mean(np.concatenate(pair), 0.25) for pair in pairs]
    expected = np.quantile(every, [(1 - level) / 2, (1 + level) / 2])
    assert statistics.iqm([a, b])[1] == pytest.approx(expected, abs=0.15)
    assert not np.allclose(expected, np.quantile(every, [0.025, 0.975]), atol=0.3), "else this shows nothing"
    wins = [np.mean(np.sign(np.array(x)[:, None] - np.array(y)) / 2 + 0.5) for x, y in pairs]
    expected = np.quantile(wins, [(1 - level) / 2, (1 + level) / 2])
    assert statistics.probability_of_improvement([a], [b])[1] == pytest.approx(expected, abs=0.06)


def test_no_false_win_among_many_environments(tmp_path: Path):
    """Two equal groups in six environments: a win anywhere in one sweep of twenty, and not in one of four."""
    rng, wrong = np.random.default_rng(0), {1: 0, 6: 0}
    for _ in range(200):
        scores = [{"a": rng.normal(size=5), "b": rng.normal(size=5)} for _ in range(6)]
        for environments in wrong:
            found = [compared("a", one, 2, environments)[0] for one in scores]
            wrong[environments] += any(comparison.decided for comparison in found)
    assert wrong[6] / 200 <= 0.07
    assert wrong[1] / 200 > 0.15
    for env in "ABC":
        write_group(tmp_path, [1.0, 2, 4], "dqn", f"{env}-v0")
        write_group(tmp_path, [3.0, 5, 9], "sac", f"{env}-v0")
    shown = Findings([tmp_path], TAG, Reference()).comparisons["B-v0"][0].interval
    assert shown == statistics.difference_interval(np.array([3.0, 5, 9]), np.array([1.0, 2, 4]), 2, environments=3)


def test_no_false_improvement_over_the_best_of_many():
    rng, wrong = np.random.default_rng(0), {2: 0, 6: 0}
    for _ in range(60):
        scores = [[rng.normal(size=8), rng.normal(size=8)] for _ in range(6)]
        best = max(scores, key=lambda one: np.mean(one))
        for groups in wrong:
            found = [statistics.probability_of_improvement(best, one, groups)[1] for one in scores if one is not best]
            wrong[groups] += any(interval.low > 0.5 for interval in found)
    assert wrong[6] / 60 <= 0.08 < wrong[2] / 60


def test_no_false_winner_among_many_equal_groups():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        scores = {str(i): rng.normal(0, 1, 10) for i in range(6)}
        best = max(scores, key=lambda name: scores[name].mean())
        wrong += any(comparison.decided for comparison in compared(best, scores, 6))
    assert wrong / 200 <= 0.08


def test_the_best_of_our_groups_against_published_scores_is_chosen_too(tmp_path: Path):
    """One of four groups stands beside two published methods: six groups, of which any pair is 95 % sure at once."""
    for i, name in enumerate(("dqn", "ddqn", "td3", "sac")):
        write_group(tmp_path, [90 + 3 * i, 100 + 3 * i, 110 + 3 * i], name)
    published = {name: np.array(scores) for name, scores in {"A": [70.0, 72.0, 74.0], "B": [60.0, 61.0, 65.0]}.items()}
    reference = Reference({"CartPole": {name: {1000: scores} for name, scores in published.items()}})
    against_a, against_b = Findings([tmp_path], "eval/return_mean", reference).published["CartPole-v1"]
    ours = np.array([99.0, 109.0, 119.0])
    assert against_a.interval == statistics.difference_interval(ours, published["A"], 6)
    assert against_b.interval == statistics.difference_interval(ours, published["B"], 6)


def test_constant_scores_have_an_interval_of_no_width():
    assert statistics.mean_interval(np.full(5, 500.0)) == (500, 500)
    assert statistics.difference_interval(np.full(3, 500.0), np.full(3, 200.0)) == (300, 300)


def test_probability_of_improvement_counts_ties_half():
    value, _ = statistics.probability_of_improvement([np.array([1.0, 3.0])], [np.array([1.0, 2.0])])
    assert value == (0.5 + 0 + 1 + 1) / 4


def test_iqm_drops_the_outer_quarters():
    value, interval = statistics.iqm([np.array([0.0, 1.0, 2.0, 100.0]), np.array([1.0, 3.0, -50.0, 2.0])])
    assert value == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert interval.low <= value <= interval.high


# Sentences


def test_better_and_not_distinguishable():
    scores = {
        "ddqn": np.array([101.0, 99.0, 100.0]),
        "dqn": np.array([61.0, 60.0, 59.0]),
        "td3": np.array([0.0, 90, 180]),
    }
    better, open_case = compared("ddqn", scores)
    assert better.sentence() == "ddqn is better than dqn: +40.0 [37.7, 42.3]."
    # variance of td3 is 8100: half width = t(0.975, 2.0015) * sqrt(1 / 3 + 2700) = 4.3 * 51.96
    assert not open_case.decided
    assert open_case.sentence() == "ddqn and td3 are not distinguishable with 3 seeds: +10 [-214, 234]."


def test_one_score_is_no_comparison(tmp_path: Path):
    write_group(tmp_path, [3.0], "a")
    write_group(tmp_path, [1.0, 2.0], "b")
    assert Findings([tmp_path], TAG, Reference()).comparisons == {"CartPole-v1": []}


def test_headline_for_two_algorithms(tmp_path: Path):
    write_group(tmp_path, [99, 100, 101], "ddqn")
    write_group(tmp_path, [59, 60, 61], "dqn")
    assert summary([tmp_path]).startswith("On CartPole-v1, ddqn is better than dqn: +40.0 [37.7, 42.3].")


def test_headline_for_a_tie(tmp_path: Path):
    scores = {"ddpg": [0.1, 0.2, 0.3], "sac": [0.2, 0.3, 0.1], "td3": [0.3, 0.1, 0.2]}  # their sums differ in a bit
    for algo in scores:
        write_group(tmp_path, scores[algo], algo)
    assert summary([tmp_path]).startswith("No clear winner on CartPole-v1: all 3 have the same mean.")


def test_headline_over_environments(tmp_path: Path):
    for env in ("A-v0", "B-v0"):
        write_group(tmp_path, [99, 100, 101], "ddqn", env)
    write_group(tmp_path, [59, 60, 61], "dqn", "A-v0")
    write_group(tmp_path, [0, 100, 190], "dqn", "B-v0")
    assert summary([tmp_path]).startswith("ddqn is better than dqn on 1 of 2 environments, not distinguishable on 1.")


def test_more_of_a_bias_is_higher_and_not_better(tmp_path: Path):
    for algo, biases in {"ddpg": [9, 10, 11], "td3": [1, 2, 3], "sac": [-9, 10, 29]}.items():
        write_group(tmp_path, biases, algo)
    for result in tmp_path.glob("*/result.json"):
        result.write_text(result.read_text().replace(TAG, "eval/q_bias"))
    text = summary([tmp_path], "eval/q_bias")
    # Variances 1 and 1, Tukey's range of three groups: half width = q(0.95, 3, 4) / √2 * sqrt(2 / 3).
    half = stats.studentized_range.ppf(0.95, 3, 4) / np.sqrt(2) * np.sqrt(2 / 3)
    assert f"ddpg is higher than td3: +8.0 [{8 - half:.1f}, {8 + half:.1f}]." in text
    assert text.startswith("ddpg leads on CartPole-v1, but cannot be told from sac; 1 is lower.")
    assert "lowest to highest" in text
    assert "9.0 to 11.0" in text
    assert "better" not in text
    published = Reference({"CartPole": {"DDPG": {1000: np.array([1.0, 2.0])}}})
    assert Findings([tmp_path], "eval/q_bias", published).published == {"CartPole-v1": []}, "a bias beside returns"


# Grouping


def test_seed_device_and_cadence_are_no_groups(tmp_path: Path):
    for seed, device in enumerate(["cpu", "cuda", "cpu"]):
        write_run(
            tmp_path / str(seed),
            seed=seed,
            settings={"device": device, "log_every": 10 + seed, "eval_episodes": 5 + seed},
        )
    study = study_of(tmp_path)
    assert study.groups == ["dqn"]
    assert len(study.scores("CartPole-v1", "dqn")) == 3


def test_a_run_from_before_a_key_existed_has_its_default(tmp_path: Path):
    write_run(tmp_path / "0", seed=0)
    write_run(tmp_path / "1", seed=1, settings={"lr_schedule": "constant"})
    write_run(tmp_path / "2", seed=0, settings={"lr_schedule": "linear"})
    assert study_of(tmp_path).groups == ["lr_schedule=constant", "lr_schedule=linear"]


def test_groups_by_two_keys_in_the_order_of_their_values(tmp_path: Path):
    for i, (lr, gamma) in enumerate([(1e-3, 0.9), (1e-3, 0.99), (1e-2, 0.9), (3e-5, 0.9)] * 2):
        write_run(tmp_path / str(i), seed=i // 4, settings={"optimizer.lr": lr, "algo.gamma": gamma})
    assert study_of(tmp_path).groups == [
        "gamma=0.9, lr=3e-05", "gamma=0.9, lr=0.001", "gamma=0.9, lr=0.01", "gamma=0.99, lr=0.001",
    ]  # fmt: skip


def test_settings_that_follow_from_the_algorithm_or_environment_name_no_group(tmp_path: Path):
    for env in ("A-v0", "B-v0"):
        for algo, lr in (("dqn", 1e-3), ("sac", 3e-4)):
            tuned = {"optimizer.lr": lr * (2 if env == "B-v0" else 1), f"algo.only_{algo}": 1}
            write_run(tmp_path / f"{env}{algo}", algo, env, settings=tuned)
    study = study_of(tmp_path)
    assert study.groups == ["dqn", "sac"]
    write_report([tmp_path], tmp_path / "report")
    assert "optimizer.lr,0.001 | 0.002,0.0003 | 0.0006" in (tmp_path / "report/settings_that_differ.csv").read_text()


def test_keys_that_move_together_give_one_name_and_the_command_line_chooses_it(tmp_path: Path):
    for i, tau in enumerate([0.1, 0.2]):
        settings = {"algo.tau": tau, "algo.a_consequence": i}
        write_run(tmp_path / str(i), settings=settings, command=[f"algo.tau={tau}"])
    assert study_of(tmp_path).groups == ["tau=0.1", "tau=0.2"]


def test_a_key_that_cannot_matter_separates_runs_of_the_same_seed(tmp_path: Path):
    for accelerate in ("eager", "graph"):
        for seed in (0, 1):
            write_run(tmp_path / f"{accelerate}{seed}", seed=seed, settings={"accelerate": accelerate})
    assert study_of(tmp_path).groups == ["accelerate=eager", "accelerate=graph"]


def test_a_repeated_run_counts_once(tmp_path: Path):
    write_run(tmp_path / "1", score=10)
    write_run(tmp_path / "2", score=20)
    write_run(tmp_path / "3", score=None, status="failed")
    findings = Findings([tmp_path], TAG, Reference())
    assert findings.study.scores("CartPole-v1", "dqn") == [20]
    assert "2 repeated runs" in findings.warning


def test_environment_settings_are_environments(tmp_path: Path):
    for slippery in (True, False):
        write_run(tmp_path / str(slippery), env="FrozenLake-v1", settings={"env.kwargs.is_slippery": slippery})
    assert study_of(tmp_path).envs == ["FrozenLake-v1, is_slippery=False", "FrozenLake-v1, is_slippery=True"]


# Directories in any state


def test_a_single_run(tmp_path: Path):
    page = write_report([write_run(tmp_path / "run", score=42)], tmp_path / "out")
    assert (
        "dqn reaches 42.0 on CartPole-v1 (1 seed); one seed does not tell how far others lie from it."
        in page.read_text()
    )


def test_failed_cut_and_broken_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_group(tmp_path, [99, 100, 101])
    write_run(tmp_path / "failed", seed=3, score=None, status="failed", error="Traceback\n  <b>loss</b> is NaN")
    cut = write_run(tmp_path / "cut", seed=4, score=None, status="interrupted")
    (cut / "metrics.jsonl").write_text('{"step": 100, "eval/return_mean": 1.0}\nnot json\n[]\n{"step": 200, "eval/re')
    empty = write_run(tmp_path / "empty", seed=5, score=None, status="running")
    (empty / "metrics.jsonl").unlink()
    torn = write_run(tmp_path / "torn", seed=6, score=None)
    (torn / "status.json").write_text("{")
    broken = write_run(tmp_path / "broken", seed=7)
    (broken / "config.yaml").write_text("a: [")
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "&lt;b&gt;loss&lt;/b&gt; is NaN" in page
    assert "Of 8 runs, 1 failed, 3 did not finish yet and 1 cannot be read." in page
    out = capsys.readouterr().out
    assert "dqn reaches 100.0 [97.5, 102.5] on CartPole-v1 (3 seeds), counting only seeds with a score" in out
    assert "(dqn: 1 of 7 failed, 3 unfinished)." in out
    assert "broken: " in out
    (row,) = read_csv(tmp_path / "report/results.csv")
    assert (row["seeds"], row["failed"], row["unfinished"]) == ("3", "1", "3")
    assert [float(row[name]) for name in ("mean", "sd", "low", "high")] == pytest.approx([100, 1, 97.5159, 102.4841])


def test_nothing_finished_yet(tmp_path: Path):
    write_run(tmp_path / "run", score=None, status="running")
    assert "No run has finished yet: 1 running." in write_report([tmp_path], tmp_path / "out").read_text()


def test_no_run_is_one_line(tmp_path: Path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/config.yaml").write_text("seed: 1")
    for arguments in ([str(tmp_path)], [str(tmp_path / "absent")], []):
        with pytest.raises(UserError) as error:
            main(arguments)
        assert "\n" not in str(error.value)


def test_unknown_tag_names_the_known_ones(tmp_path: Path):
    write_run(tmp_path / "run")
    with pytest.raises(UserError, match="no run has the tag eval/retrun; there are eval/q_bias, eval/return_mean"):
        main([str(tmp_path), "--tag", "eval/retrun"])


def test_a_run_that_was_not_evaluated_yet_has_no_score(tmp_path: Path):
    run = write_run(tmp_path / "run", score=None, status="running")
    (run / "metrics.jsonl").write_text('{"step": 1, "losses/td_loss": 1.0}\n')
    with pytest.raises(UserError, match="no run has been evaluated yet; choose with --tag from losses/td_loss"):
        main([str(tmp_path)])


def test_hydras_own_copy_is_no_run(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_run(run / ".hydra", seed=1)
    assert len(study_of(tmp_path).runs) == 1


# Several environments, published scores, output


def test_aggregate_over_environments(tmp_path: Path):
    for env, low, high in (("A-v0", 0, 100), ("B-v0", -1000, 0)):
        middle = (low + high) / 2
        write_group(tmp_path, [low, middle], "dqn", env)
        write_group(tmp_path, [middle, high], "sac", env)
    study = study_of(tmp_path)
    result = aggregate(study, Reference())
    assert result.best == "sac"
    assert result.improvement["dqn"][0] == (0.5 + 1 + 1 + 1) / 4
    assert result.iqm == {}, "the extremes of these runs are no scale"
    result = aggregate(study, Reference(anchors={"A": (0, 100), "B": (-1000, 0)}))
    assert {group: value for group, (value, _) in result.iqm.items()} == {"sac": 0.75, "dqn": 0.25}
    assert result.profiles["sac"][0] == 1
    assert result.profiles["sac"][100] == 0.5
    (file := tmp_path / "reference.json").write_text(
        json.dumps({"scores": {}, "random": {"A": 0, "B": 1}, "td3_1M": {"A": 2, "B": 3}})
    )
    reference = read_reference(file, [])
    assert aggregate(study, reference).scale(study.envs) == "IQM: 0 and 1 = the file's random and td3_1M."
    page = write_report([tmp_path], tmp_path / "out").read_text()
    assert "Across environments" in page
    assert "No IQM: it needs scores from elsewhere" in page
    assert "IQM of normalised scores" in write_report([tmp_path], tmp_path / "out", reference=reference).read_text()


def test_groups_without_common_environments_are_not_aggregated(tmp_path: Path):
    write_group(tmp_path, [1, 2], "dqn", "A-v0")
    write_group(tmp_path, [1, 2], "sac", "B-v0")
    assert aggregate(study_of(tmp_path), Reference()) is None
    assert summary([tmp_path]).startswith("dqn reaches 1.5 [-4.9, 7.9] on A-v0 (2 seeds) and sac reaches")


def test_published_scores_and_markdown(tmp_path: Path):
    write_group(tmp_path / "runs", [99, 100, 101], "sac", "Hopper-v4")
    published = {"500": [40.0, 45.0], "1000": [59.0, 60.0, 61.0], "5000": [900.0, 910.0]}
    content = {"scores": {"SAC": {"Hopper": published}, "PPO": {"Hopper": published}}, "random": {"Hopper": 1}}
    (tmp_path / "reference.json").write_text(json.dumps(content))
    arguments = [str(tmp_path / "runs"), "--reference", str(tmp_path / "reference.json"), "--method", "SAC"]
    main([*arguments, "--markdown", str(tmp_path / "docs/results.md"), "--out", str(tmp_path / "docs/hopper")])
    text = (tmp_path / "docs/results.md").read_text()
    assert "| Hopper-v4 | sac | 3 | 100.0 ± 1.0 | 99.0 | [97.5, 102.5] | 1000 |" in text
    assert "| Hopper-v4 | SAC (published) | 3 | 60.0 ± 1.0 | 59.0 | [57.5, 62.5] | – |" in text
    assert "sac is better than SAC (published): +40.0 [37.7, 42.3]." in text
    assert "](hopper/curves.png)" in text
    assert (tmp_path / "docs/hopper/curves.png").stat().st_size > 1000
    with pytest.raises(UserError, match="has no method A2C; it has SAC, PPO"):
        main([*arguments, "--method", "A2C"])


def test_the_page_is_self_contained_and_dark_too(tmp_path: Path):
    write_group(tmp_path, [99, 100, 101], "ddqn")
    write_group(tmp_path, [59, 60, 61], "dqn")
    page = write_report([tmp_path], tmp_path / "report", "A & B").read_text()
    assert "<title>A &amp; B</title>" in page
    assert not [link for link in ("<script", "<link", "src=", "@import", "url(http") if link in page]
    assert "prefers-color-scheme: dark" in page
    assert "#0072b2" not in page.replace("--blue: #0072b2", "")
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"index.html", "curves.png", "results.csv", "differences.csv", "curves.csv", "all_runs.csv"} <= names


def test_a_report_needs_no_torch():
    command = "import sys, rl_runner.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_the_same_runs_give_the_same_page(tmp_path: Path):
    write_group(tmp_path, list(range(25)))
    pages = [write_report([tmp_path], tmp_path / f"report{i}", "same").read_text() for i in range(2)]
    assert pages[0] == pages[1]


def test_forty_runs_of_a_thousand_points_are_thinned(tmp_path: Path):
    rng = np.random.default_rng(0)
    for algo, mean in (("dqn", 100), ("ddqn", 130)):
        for env in ("A-v0", "B-v0"):
            write_group(tmp_path, list(rng.normal(mean, 10, 10)), algo, env, points=1000)
    page = write_report([tmp_path], tmp_path / "report")
    assert page.stat().st_size < 2_000_000, "curves are thinned"
