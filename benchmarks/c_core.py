"""The C core alone: its own benchmark's lines, held against what it must reach.

``make -C csrc bench`` builds and runs a program that prints one JSON object a line, each with a
``name`` and a ``ratio``. Lines of other shapes are skipped; names that are not known here become
rows without a target.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Plan, Report, Row, Spread, progress

NAME = "c_core"
SOURCE = Path(__file__).resolve().parent.parent / "csrc"
TIMEOUT = 120.0
# The name of a line, the figure, the rival, the target.
FIGURES = (
    ("two_threads_two_classes", "C: two threads, different size classes", "one thread", 1.7),
    ("two_threads_same_class", "C: two threads, the same size class", "one thread", 0.8),
    ("sixty_four_threads_vs_two", "C: 64 threads", "two threads", 0.8),
)


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "The C core's threads")
    progress(f"{NAME}: make -C csrc bench")
    lines, problem = bench_lines(plan)
    matched: set[int] = set()
    for figure, line in ((figure_of(line), line) for line in lines):
        if figure is None:
            report.rows.append(extra_row(line))
        else:
            matched.add(figure)
            report.rows.append(target_row(figure, line))
    for index in range(len(FIGURES)):
        if index not in matched:
            _, figure_text, rival, must = FIGURES[index]
            note = problem or "its benchmark printed no such line"
            report.rows.append(Row(figure_text, rival, sense="at least", must=must, note=note))
    if (os.cpu_count() or 1) < 2:
        report.notes.append("this machine has one core: the C rows say nothing about scaling.")
    return report


def bench_lines(plan: Plan) -> tuple[list[dict[str, Any]], str]:
    """Build and run the C benchmark.

    Returns
    -------
    list of dict, str
        Its lines; and why there are none, where there are none.
    """
    if shutil.which("make") is None or not (SOURCE / "Makefile").exists():
        return [], "needs make and the sources in csrc/"
    command = ["make", "-C", str(SOURCE), "bench"]
    environment = {**os.environ, "MP_BENCH_QUICK": "1"} if plan.quick else dict(os.environ)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return [], f"make -C csrc bench took longer than {TIMEOUT:.0f} s"
    lines = list(parse(done.stdout))
    if done.returncode and not lines:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        return [], f"make -C csrc bench failed: {reason}"
    return lines, ""


def parse(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among the lines of `text` that carry a name and a ratio."""
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "name" in value and is_number(value.get("ratio")):
            yield value


def is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def figure_of(line: Mapping[str, Any]) -> int | None:
    """Index of the figure that a line belongs to."""
    names = [name for name, *_ in FIGURES]
    return names.index(line["name"]) if line["name"] in names else None


def spread_of(line: Mapping[str, Any]) -> Spread:
    """The line's ratio, with its quartiles if it names them."""
    ratio = float(line["ratio"])
    low, high = line.get("low", ratio), line.get("high", ratio)
    return Spread(ratio, float(low), float(high))


def target_row(index: int, line: Mapping[str, Any]) -> Row:
    """Make the row of a figure that has a target."""
    _, figure, rival, must = FIGURES[index]
    return Row(figure, rival, unit="x", ratio=spread_of(line), sense="at least", must=must)


def extra_row(line: Mapping[str, Any]) -> Row:
    """Make the row of a line that nothing was asked of."""
    figure = "C: " + str(line["name"]).replace("_", " ")
    rival = str(line.get("against", "its own baseline"))
    return Row(figure, rival, unit="x", ratio=spread_of(line), sense="at least")
