"""Names are never markup and never too long, wherever a report shows them."""

import csv
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from reporting import TAG, write_group, write_run

from rl_runner.console import printable
from rl_runner.report import as_text, main, tables
from rl_runner.report.aggregate import Reference, read_reference
from rl_runner.report.findings import Findings
from rl_runner.report.load import file_name
from rl_runner.report.study import LONGEST, shown
from rl_runner.report.tables import markdown_escaped

HOSTILE = [
    "$", r"$\frac{1}{2}$", "a$b$c", "$x", r"\$", "<b>bold</b>", '"><script>alert(1)</script>', "&lt;i&gt;", "'quoted'",
    "#0072b2", ' id="axes_1"', ' d="M 1.23456 7.89012"', "_under", "*bold* _it_ `code` ~~no~~", "[a](http://b.c)",
    "![a](b)", "a|b", "=1+1", "+1", "-1", "@SUM(A1)", "日本語", "\u202eesrever", "a\nb\r\tc", "\0\x1b[31m", "\udcff",
    "w" * 300, "w" * 301, "{x}", "%s %d", "${title}", "]]>", "<!-- -->", "-->", "a/b", "..", " ", "\\",
]  # fmt: skip
SHORT = """<b>$\\frac{1}|_*'"\n&lt;"""  # what an environment and a directory are named after
ELEMENTS = re.split(
    r"\s+",
    "html head meta title style body main header p h1 h2 h3 ul li i section div table thead tbody tr th td figure "
    "figcaption details summary footer nav a svg defs g path use text rect clippath tspan",
)


class Elements(HTMLParser):
    """The page's elements, their ids and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.names: set[str] = set()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")], "a handler"
        self.ids += [str(value) for name, value in attrs if name == "id"]
        self.targets += [str(value) for name, value in attrs if name == "href" and str(value).startswith("#section")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def everywhere(root: Path) -> tuple[Path, Path]:
    """Runs named as environment, group, tag, directory, error, search and parameter; a file of published methods."""
    runs = root / "runs"
    for i, name in enumerate(HOSTILE):
        for seed in range(2):
            run = write_run(runs / f"{i}{seed} {SHORT}", env=f"{SHORT}/E-v0", seed=seed, score=i + seed,
                            settings={"algo.kind": name})  # fmt: skip
            rows = [{"step": step, name: 1.0, TAG: 1.0} for step in (500, 1000)]
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        error = f"ValueError: {name}"
        settings = {"algo.kind": name}
        write_run(
            runs / f"f{i}", env=f"{SHORT}/E-v0", seed=9, score=None, status="failed", error=error, settings=settings
        )
    (write_run(runs / f"bad {SHORT}") / "config.yaml").write_text("a: [")
    trial = {"number": 0, "state": "complete", "value": 1.0, "params": {name: name for name in HOSTILE}}
    (runs / f"search {SHORT}").mkdir()
    search = {"trials": [trial], "importance": dict.fromkeys(HOSTILE, 1.0)}
    (runs / f"search {SHORT}/search.json").write_text(json.dumps(search))
    (runs / "sweep.json").write_text(json.dumps({"command": ["-m", *HOSTILE]}))
    published = {name: {f"{printable(SHORT)}/E": {"1000": [1.0, 2.0]}} for name in HOSTILE}
    (root / "reference.json").write_text(json.dumps({"scores": published}))
    return runs, root / "reference.json"


def test_no_name_is_markup(tmp_path: Path):
    runs, reference = everywhere(tmp_path)
    out = tmp_path / "report"
    words = ["--out", str(out), "--title", "".join(HOSTILE), "--markdown", str(tmp_path / "results.md")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        main([str(runs), *words, "--reference", str(reference)])
    page = Elements((out / "index.html").read_text(encoding="utf-8"))
    assert page.names <= set(ELEMENTS), page.names - set(ELEMENTS)
    assert len(page.ids) == len(set(page.ids))
    text = "".join(page.text)
    for name in HOSTILE:
        label = printable(f"kind={name.replace(' ', '')}")
        assert len(label) > LONGEST or label in text, "it is shown as it is"
    for path in out.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert [cell for cell in cells if cell.startswith(("=", "+", "@")) or re.match(r"-(?![\d.])", cell)] == []
    lines = (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}, "a table of seven columns"
    assert len(rows) == 2 + 2 * len(HOSTILE)
    assert not [line for line in lines if re.search(r"(?<!\\)[<$`*]", line.strip("*"))]


def findings(root: Path) -> Findings:
    return Findings([root], TAG, Reference())


def test_long_names_stay_distinct_and_stand_in_full_on_the_page(tmp_path: Path):
    names = ["w" * 100 + str(i) for i in range(3)]
    for i, name in enumerate(names):
        for seed in range(2):
            write_run(tmp_path / f"{i}{seed}", seed=seed, score=i, settings={"algo.kind": name})
    found = findings(tmp_path)
    assert len(set(found.study.groups)) == 3
    assert max(map(len, found.study.groups)) <= LONGEST
    main([str(tmp_path)])
    assert all(f"kind={name}" in (tmp_path / "report/names_in_full.csv").read_text() for name in names)
    assert max(len(line) for line in as_text(found).splitlines() if "seeds" in line) < 250


def test_names_that_look_alike_stay_apart():
    names = ["a b", "a\tb", "a\nb", "", " ", "\0"]
    assert len(set(shown(names).values())) == len(names)
    assert shown(["dqn", "lr=0.001"]) == {"dqn": "dqn", "lr=0.001": "lr=0.001"}


def test_file_names_are_short_and_plain():
    assert file_name("CartPole-v1_eval/return_mean") == "CartPole-v1_eval_return_mean"
    assert len(file_name("é" * 500).encode()) <= 130
    assert file_name("x" * 500 + "a") != file_name("x" * 500 + "b")


def test_markdown_shows_what_was_written():
    assert markdown_escaped("dqn is better: +40 [37.7, 42.3]; q_learning -3 (1 of 5 failed)") == (
        "dqn is better: +40 [37.7, 42.3]; q_learning -3 (1 of 5 failed)"
    )
    assert markdown_escaped("<b> $x$ `y` *z* _u_ [a](b)") == r"\<b\> \$x\$ \`y\` \*z\* \_u\_ [a\](b)"


def test_pictures_are_sound_and_say_the_name(tmp_path: Path):
    """What is between the tags of a picture stays as it is, even where it looks like a colour or a path."""
    for name in (r"$\frac{1}", ' d="M 1.23456"', "#0072b2", "<i>&amp;"):
        for seed in range(2):
            run = write_run(tmp_path / f"{len(list(tmp_path.iterdir()))}", seed=seed, settings={"algo.kind": name})
            (run / "metrics.jsonl").write_text('{"step": 500, "<b>$x": 1}\n{"step": 1000, "<b>$x": 2}\n')
    main([str(tmp_path), "--tag", "<b>$x"])
    page = (tmp_path / "report/index.html").read_text()
    assert "b" not in Elements(page).names, "not the tag's, in any title"
    pictures = [f"<svg{part.partition('</svg>')[0]}</svg>" for part in page.split("<svg")[1:]]
    texts = ["".join(ElementTree.fromstring(picture).itertext()) for picture in pictures]
    for name in (r"kind=$\frac{1}", 'kind=d="M1.23456"', "kind=#0072b2", "kind=<i>&amp;"):
        assert any(name in text for text in texts), name


def test_two_environments_whose_names_differ_in_signs_have_sections_of_their_own(tmp_path: Path):
    for env in ("日本", "本日", "A-v0", "a_v0", "details"):
        (write_run(tmp_path / env, env=env) / "metrics.jsonl").unlink()
    main([str(tmp_path)])
    page = Elements((tmp_path / "report/index.html").read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids)) >= 6
    assert len(page.targets) == len(set(page.targets)) >= 5


def test_two_files_of_a_reference_that_differ_in_their_end_stay_apart(tmp_path: Path):
    content = {"scores": {"w" * 80 + end: {"E": {"10": [1.0, 2.0]}} for end in "ab"}}
    (tmp_path / "r.json").write_text(json.dumps(content))
    assert len(read_reference(tmp_path / "r.json", []).curves("E-v0")) == 2


# What else the page has to say


def test_the_page_lists_all_that_differs_and_the_commands(tmp_path: Path):
    for seed in range(2):
        for kind, width in (("MLP", 64), ("Dueling", 256)):
            settings = {
                "network._target_": f"rl_runner.networks.{kind}", "network.hidden": [width], "algo.batch_size": width,
                "learning_starts": width, "final_eval_episodes": width, "env.kwargs.gravity": 9.0,
            }  # fmt: skip
            command = [f"network={kind.lower()}", f"seed={seed}"]
            write_run(tmp_path / f"{kind}{seed}", seed=seed, settings=settings, command=command)
    found = findings(tmp_path)
    assert found.study.groups == ["network=Dueling", "network=MLP"]
    assert found.differing == (
        "The groups differ in algo.batch_size, learning_starts and network.hidden, too: see Settings that differ."
    )
    main([str(tmp_path)])
    page = (tmp_path / "report/index.html").read_text()
    assert found.differing in page
    with (tmp_path / "report/settings_that_differ.csv").open(newline="") as file:
        rows = {row["setting"]: (row["network=Dueling"], row["network=MLP"]) for row in csv.DictReader(file)}
    assert rows == {
        "algo.batch_size": ("256", "64"), "eval_every": ("10 | 20", "10 | 20"), "final_eval_episodes": ("256", "64"),
        "learning_starts": ("256", "64"), "network._target_": ("Dueling", "MLP"), "network.hidden": ("[256]", "[64]"),
    }  # fmt: skip
    assert "<td>rl-runner network=mlp seed=...</td>" in page
    (tmp_path / "sweep.json").write_text(json.dumps({"command": ["-m", "network=mlp,dueling", "seed=0,1"]}))
    main([str(tmp_path)])
    assert "<td>rl-runner -m network=mlp,dueling seed=0,1</td>" in (tmp_path / "report/index.html").read_text()


def test_columns_without_content_are_shown_nowhere_but_in_the_csv(tmp_path: Path):
    write_group(tmp_path, [1.0, 2.0])
    table = tables.results(findings(tmp_path), "CartPole-v1")
    shown_head = table.text().splitlines()[0].split("  ")
    assert "failed" not in "".join(shown_head)
    main([str(tmp_path), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report/index.html").read_text()
    assert [heading for heading in re.findall("<th[^>]*>(.*?)</th>", page) if heading == "failed"] == []
    write_run(tmp_path / "lost", seed=5, score=None, status="failed")
    assert "failed" in tables.results(findings(tmp_path), "CartPole-v1").text()


def test_the_best_mean_stands_out_only_where_it_can_be_told(tmp_path: Path):
    write_group(tmp_path, [1.0, 5.0], "dqn")
    write_group(tmp_path, [2.0, 6.0], "ddqn")
    assert tables.results(findings(tmp_path), "CartPole-v1").strong == frozenset()
    write_group(tmp_path, [100.0, 101.0], "sac")
    assert tables.results(findings(tmp_path), "CartPole-v1").strong == frozenset([0])


def test_every_csv_holds_numbers(tmp_path: Path):
    for env in ("A-v0", "B-v0"):
        write_group(tmp_path, [99.0, 100.5, 101.25], "ddqn", env)
        write_group(tmp_path, [1.0, 2.0, 4.0], "dqn", env)
    main([str(tmp_path)])
    text = {
        "results": {"environment", "group"}, "differences": {"environment", "leader", "other"},
        "curves": {"environment", "group"}, "speed": {"environment", "group"},
        "all_runs": {"environment", "group", "status", "run"},
    }  # fmt: skip
    for name, names in text.items():
        with (tmp_path / f"report/{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows, name
        for row in rows:
            numbers = {key: float(cell) for key, cell in row.items() if key not in names and cell != ""}
            assert len(numbers) >= 3, (name, row)
