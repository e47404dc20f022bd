"""Put the tables of the last run into README.md and the documentation, between their markers.

``python -m benchmarks.publish`` reads ``benchmarks/out/results.json``; figures there must come from a full run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import plots
from benchmarks.contenders import OPTIMUM, THEINE
from benchmarks.harness import Report, Row, Spread, size_text, time_text
from benchmarks.report import has_target, losses, ratio_text, target_text, value_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "out" / "results.json"
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", DOCS / "benchmarks.md", DOCS / "choosing-a-policy.md")
# Which tables' plots the documentation shows.
DRAWN = {"hit_ratio"}
HEAD = ("figure", "against", "its value", "mempool", "ratio")
ALIGN = ("---", "---", "---", "---:", "---:")
# Who takes part in the table of hit ratios without being mempool's.
OTHERS = (OPTIMUM, THEINE)
SECTION = re.compile(r"(<!-- benchmark: (?!end)([\w-]+) -->\n).*?(<!-- benchmark: end -->)", re.DOTALL)


def main() -> int:
    """Fill every section of every page; the exit status is 1 if the last run was none to publish."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    if document["quick"]:
        print("the last run was a quick one: run `make bench` first", file=sys.stderr)
        return 1
    reports = [read_report(table) for table in document["tables"]]
    texts = sections(reports, document["environment"])
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(
            SECTION.sub(lambda found: f"{found[1]}\n{texts[found[2]]}\n\n{found[3]}", text), encoding="utf-8"
        )
    if not plots.draw_all([report for report in reports if report.name in DRAWN], DOCS, suffix=".svg"):
        print("the plots are as they were: matplotlib is not installed", file=sys.stderr)
    return 0


def sections(reports: Sequence[Report], facts: dict[str, str]) -> dict[str, str]:
    """Write what belongs between each pair of markers."""
    asked = [row for report in reports for row in report.rows if has_target(row)]
    return {
        "readme": f"{environment(facts)}\n\n{table(asked)}",
        "targets": f"{environment(facts)}\n\n{table(asked, targets=True)}",
        "others": "\n\n".join(others(reports)),
        "break-even": "\n\n".join(break_even(reports)),
        "hit-ratio": hit_ratios(reports),
        "losses": "\n".join(f"- {line}" for line in losses(reports)),
    }


def environment(facts: dict[str, str]) -> str:
    """Say in one sentence where the figures come from."""
    machine = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory']}"
    system = f"{facts['kernel'].split('-')[0]}, {facts['libc']}"
    software = f"{facts['python']}, NumPy {facts['numpy']}, pyarrow {facts['pyarrow']}"
    return f"Measured on {machine}; {system}; {software}. Load of the machine when the run began: {facts['load at start']}."


def table(rows: Iterable[Row], *, targets: bool = False) -> str:
    """Write rows as a table; with `targets` also what was asked and whether it was met."""
    head, align = list(HEAD), list(ALIGN)
    if targets:
        head += ["must", "aim", "met"]
        align += ["---"] * 3
    return "\n".join(line(cells) for cells in [head, align, *(cells_of(row, targets=targets) for row in rows)])


def cells_of(row: Row, *, targets: bool) -> list[str]:
    """Write the cells of one row."""
    ratio = "not measured" if row.judged is None else ratio_text(row)
    cells = [row.figure, row.rival, value_text(row.rival_value, row.unit), value_text(row.own_value, row.unit), ratio]
    return [*cells, target_text(row, row.must), target_text(row, row.aim), row.verdict] if targets else cells


def line(cells: Iterable[str]) -> str:
    """Write one line of a table."""
    return f"| {' | '.join(cell or '  ' for cell in cells)} |"


def others(reports: Iterable[Report]) -> Iterable[str]:
    """Write what has no target, table by table, with its remarks."""
    for report in reports:
        rows = [row for row in report.rows if not has_target(row)]
        if rows:
            yield f"### {report.title}\n\n{table(rows)}"
            yield from report.notes if report.name != "break_even" else ()


def break_even(reports: Iterable[Report]) -> Iterable[str]:
    """Write times by size, a table for each kind of work."""
    (report,) = (report for report in reports if report.name == "break_even")
    yield from report.notes
    for title, curves in report.curves.items():
        names = [*(name for name in curves if name != "mempool"), "mempool"]
        points = {name: dict(curves[name]) for name in names}
        yield "\n".join(
            [
                line([title, *names]),
                line(["---", *["---:"] * len(names)]),
                *(
                    line([size_text(int(size)), *(time_text(points[name][size]) for name in names)])
                    for size in points["mempool"]
                ),
            ]
        )


def hit_ratios(reports: Iterable[Report]) -> str:
    """Write the mean hit ratio of each cache on each trace, and over all; the best of mempool's is bold."""
    (report,) = (report for report in reports if report.name == "hit_ratio")
    means = {
        name: [fmean(ratio for _, ratio in curves[name]) for curves in report.curves.values()]
        for name in next(iter(report.curves.values()))
    }
    columns = {name: [*values, fmean(values)] for name, values in means.items()}
    own = [values for name, values in columns.items() if name not in OTHERS]
    best = [max(column) for column in zip(*own, strict=True)]
    lines = [line(["mean hit ratio", *report.curves, "all"]), line(["---", *["---:"] * len(best)])]
    for name, values in columns.items():
        cells = [f"{value:.1%}" for value in values]
        if name not in OTHERS:
            pairs = zip(cells, best, strict=True)
            cells = [f"**{cell}**" if cell == f"{highest:.1%}" else cell for cell, highest in pairs]
        lines.append(line([name, *cells]))
    return "\n".join(lines)


def read_report(document: dict[str, Any]) -> Report:
    """Read one table back from its JSON."""
    curves = {
        panel: {name: [(size, value) for size, value in points] for name, points in of.items()}
        for panel, of in document["curves"].items()
    }
    rows = [read_row(row) for row in document["rows"]]
    return Report(document["name"], document["title"], rows, curves, document["notes"], document["losses"])


def read_row(document: dict[str, Any]) -> Row:
    """Read one row back; what it says of itself follows from the rest."""
    values = {key: value for key, value in document.items() if key not in {"verdict", "loses"}}
    if values["ratio"] is not None:
        values["ratio"] = Spread(**values["ratio"])
    return Row(**values)


if __name__ == "__main__":
    sys.exit(main())
