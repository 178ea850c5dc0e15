"""The report's numbers as CSV files, for whoever draws their own figures."""

from collections.abc import Mapping
from pathlib import Path

from rl_runner.report.curves import group_band
from rl_runner.report.study import Study
from rl_runner.report.table import Cell, Table


def write_csvs(study: Study, named: Mapping[str, Table], out: Path) -> None:
    """One file per table, named after it, and the groups' learning curves."""
    for name, table in {**named, "curves": _curves(study)}.items():
        table.csv(out / f"{name.lower().replace(' ', '_')}.csv")


def _curves(study: Study) -> Table:
    rows: list[list[Cell]] = []
    for (env, group), cell in study.cells.items():
        band = group_band(cell, study.tag)
        points = zip(*band, strict=True) if band else []
        rows += [[env, group, *map(float, point)] for point in points]
    return Table(["environment", "group", "step", "mean", "low", "high"], rows)
