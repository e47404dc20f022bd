"""The one table that a run prints, and the JSON that it leaves behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import header
from benchmarks.harness import Report, Row, time_text

HEADINGS = (
    "figure",
    "plain Python",
    "peer",
    "mempool",
    "ratio",
    "quartiles",
    "must",
    "aim",
    "met",
)
LEGEND = (
    "Medians of interleaved rounds in one run. 'cost': mempool's time over the rival's; "
    "'faster': the rival's over mempool's.",
    "met: 'aim' and 'must' are reached, MISS is not, n/a was not measured, '-' has no target.",
)


def render(reports: Sequence[Report], facts: dict[str, str], failures: Sequence[str], seconds: float) -> str:
    """Write the whole report as text."""
    lines = ["", *header(facts), *LEGEND, ""]
    lines += table(reports)
    lines += ["", "Where mempool loses", *bulleted(losses(reports))]
    lines += ["", "Notes", *bulleted(notes(reports))]
    lines += ["", *summary(reports), *(f"FAILED {failure}" for failure in failures)]
    lines.append(f"{seconds:.0f} s in all.")
    return "\n".join(lines)


def table(reports: Sequence[Report]) -> list[str]:
    """Write the table: first what has a target, then the rest by subject."""
    sections: list[tuple[str, list[Row]]] = [
        (
            "What it must reach",
            [row for report in reports for row in report.rows if has_target(row)],
        )
    ]
    sections += [(report.title, [row for row in report.rows if not has_target(row)]) for report in reports]
    cells = [[cells_of(row) for row in rows] for _, rows in sections]
    widths = [
        max(len(line[column]) for line in [list(HEADINGS), *(c for group in cells for c in group)])
        for column in range(len(HEADINGS))
    ]
    ruler = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [align(HEADINGS, widths), ruler]
    for (title, rows), group in zip(sections, cells, strict=True):
        if rows:
            lines += [title, *(align(line, widths) for line in group), ruler]
    return lines


def align(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Pad the cells to their columns: text to the left, numbers to the right."""
    padded = [
        cell.rjust(width) if column in (3, 4, 5, 6, 7) else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def has_target(row: Row) -> bool:
    """Whether something was asked of a row."""
    return row.must is not None


def cells_of(row: Row) -> list[str]:
    """Write the cells of one row."""
    rival = f"{row.rival} {value_text(row.rival_value, row.unit)}".strip()
    return [
        row.figure,
        rival if row.plain else "",
        "" if row.plain else rival,
        value_text(row.own_value, row.unit),
        "not measured" if row.judged is None else ratio_text(row),
        "" if row.ratio is None else f"{row.ratio.low:.3g}-{row.ratio.high:.3g}",
        target_text(row, row.must),
        target_text(row, row.aim),
        row.verdict,
    ]


def value_text(value: float | None, unit: str) -> str:
    """Write one measured value with its unit; empty if there is none."""
    if value is None:
        return ""
    if unit == "s":
        return time_text(value)
    if unit == "B":
        return f"{value / 1e6:.2f} MB" if value >= 1e4 else f"{value / 1e3:.2f} kB"
    if unit == "hits":
        return f"{value:.1%}"
    if unit == "points":
        return f"{value:.2f} points"
    return f"{value:.3g}"


def ratio_text(row: Row) -> str:
    """Write the ratio so that it reads as a sentence."""
    if row.ratio is None:
        return ""
    median = row.ratio.median
    text = f"{median:.0f}x" if median >= 100 else f"{median:.3g}x"
    if row.sense == "cost":
        return f"{text} cost"
    if row.sense == "at least":
        return text
    return f"{text} faster" if median >= 1 else f"{text} SLOWER" if row.loses else f"{text} even"


def target_text(row: Row, target: float | None) -> str:
    """Write a target with its direction."""
    if target is None:
        return ""
    if row.unit == "B" and row.ratio is None:
        return f"<= {target / 1e6:.3g} MB"
    sign = {"cost": "<=", "below": "<", "at most": "<="}.get(row.sense, ">=")
    if row.unit == "points":
        return f"{sign} {target:g} points"
    return f"{sign} {target:g}" + ("" if row.sense == "below" else "x")


def losses(reports: Sequence[Report]) -> Iterable[str]:
    """Say where something else was faster in this run, the worst first."""
    rows = [row for report in reports for row in report.rows if row.loses]
    rows.sort(key=lambda row: row.ratio.median if row.ratio else 1.0)
    for row in rows:
        if row.ratio is not None and row.rival_value is not None and row.own_value is not None:
            yield (
                f"{row.figure}: {time_text(row.own_value)} against {row.rival} "
                f"{time_text(row.rival_value)}, {1 / row.ratio.median:.2f}x as slow"
            )
    for report in reports:
        yield from report.losses


def notes(reports: Sequence[Report]) -> Iterable[str]:
    """Say what the tables remarked, and why a row has no value; each once."""
    absent: dict[str, list[str]] = {}
    for report in reports:
        yield from report.notes
        for row in report.rows:
            if row.judged is None:
                absent.setdefault(row.note, []).append(f"{row.figure} against {row.rival}")
    for reason, figures in absent.items():
        yield f"not measured, {reason}: {'; '.join(figures)}."


def summary(reports: Sequence[Report]) -> list[str]:
    """Count what was reached, and name what was not."""
    rows = [row for report in reports for row in report.rows if has_target(row)]
    counts = {verdict: [r for r in rows if r.verdict == verdict] for verdict in VERDICTS}
    text = ", ".join(f"{len(found)} {VERDICTS[key]}" for key, found in counts.items() if found)
    names = [f"  {row.figure}, against {row.rival}" for row in counts["MISS"] + counts["n/a"]]
    return [f"Targets: {text or 'none measured'}.", *names]


VERDICTS = {
    "aim": "reach the aim",
    "must": "reach the must",
    "MISS": "miss",
    "n/a": "not measured",
}


def bulleted(lines: Iterable[str]) -> list[str]:
    """Indent lines as a list; say so if there are none."""
    return [f"  - {line}" for line in lines] or ["  - nothing in this run"]


def write_json(path: Path, reports: Sequence[Report], facts: dict[str, str], *, quick: bool, seconds: float) -> None:
    """Write everything measured, for those who want to draw their own conclusions."""
    document = {
        "environment": facts,
        "quick": quick,
        "seconds": round(seconds, 1),
        "tables": [as_json(report) for report in reports],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def as_json(report: Report) -> dict[str, Any]:
    """Turn one report into plain values, with the verdict of each row."""
    document = dataclasses.asdict(report)
    for row, item in zip(report.rows, document["rows"], strict=True):
        item["verdict"], item["loses"] = row.verdict, row.loses
        if row.ratio is not None:
            item["ratio"] = row.ratio._asdict()
    return document
