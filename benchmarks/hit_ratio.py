"""The part of requests that caches answer: every policy over traces, made here or read from files, at five sizes.

``python -m benchmarks.hit_ratio --trace FILE --out FOLDER`` runs any trace: text, gzip or not, a line ``key`` or
``key size`` a request. Without ``--trace`` it makes its own. Where a trace has sizes, caches bounded by bytes run too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean

from benchmarks import plots, report, traces
from benchmarks.contenders import (
    CACHETOOLS,
    DEFAULT,
    FIFO,
    LRU,
    OPTIMUM,
    POLICIES,
    THEINE,
    Job,
    Score,
    play,
)
from benchmarks.harness import Plan, Report, Row, Spread, progress
from benchmarks.traces import PERCENTS, Trace

NAME = "hit_ratio"
TITLE = "Hit ratio of caches"
QUICK = 0.1
# What is drawn and listed; the references and cachetools' LRU would lie on lru's curve.
SHOWN = (OPTIMUM, *POLICIES, THEINE)
# In a list of losses, what is less than this is noise of the trace.
SLIGHT = 0.005


def run(plan: Plan) -> Report:
    """Measure the rows of this table, on the traces that need no file."""
    return judged(play_all(jobs_of(traces.synthetic(QUICK if plan.quick else 1.0))))


def jobs_of(of: Sequence[Trace]) -> list[Job]:
    """All sizes of all traces, by entries and, where a trace has sizes, by bytes; the longest first."""
    jobs = [Job(trace, percent) for trace in of for percent in PERCENTS]
    return jobs + [Job(trace, percent, True) for trace in of if trace.sizes is not None for percent in PERCENTS]


def play_all(jobs: Sequence[Job]) -> list[Score]:
    """Play the jobs on all cores: what is counted is the same however slow the machine is."""
    scores = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(jobs)), mp_context=context) as executor:
        for number, score in enumerate(executor.map(play, jobs), 1):
            progress(f"{NAME}: {number} of {len(jobs)}, {score.trace}")
            scores.append(score)
    return scores


# ---- what it says ----


def judged(scores: Sequence[Score]) -> Report:
    """Make the rows, curves and remarks of what was counted."""
    made = Report(NAME, TITLE)
    made.rows += [against_lru(scores), *against_theine(scores), agreement(scores, "lru", LRU)]
    made.rows += [agreement(scores, "fifo", FIFO), *by_trace(scores)]
    if CACHETOOLS in scores[0].hits:
        made.rows.append(agreement(scores, "lru", CACHETOOLS))
    add_curves(made, scores)
    made.losses += losses(scores)
    sizes = ", ".join(f"{percent:g}" for percent in PERCENTS)
    made.notes.append(
        f"Caches of {sizes} % of the keys of a trace (of their bytes, where it says so); one run for each. A run is "
        "get, and put what was missing. A point is a hundredth of the requests. The optimum knows the future."
    )
    return made


def add_curves(made: Report, scores: Sequence[Score]) -> None:
    """Add what is drawn: hit ratio by size, a panel for each trace."""
    for score in scores:
        for name in SHOWN:
            if name in score.hits:
                made.point(panel(score), name, score.percent, score.ratio(name))


def panel(score: Score) -> str:
    """What the curves of a trace are called."""
    return f"{score.trace}, by bytes" if score.by_bytes else score.trace


def mean(scores: Sequence[Score], name: str) -> float:
    """The mean hit ratio of one contender, each run counting the same."""
    return fmean(score.ratio(name) for score in scores)


def against_lru(scores: Sequence[Score]) -> Row:
    """How far below exact LRU the default falls at its worst."""

    def points(score: Score) -> float:
        return 100 * (score.hits[LRU] - score.hits[DEFAULT]) / score.requests

    worst = max(scores, key=points)
    return Row(
        f"default policy, most below LRU of {len(scores)} runs: {panel(worst)}, {worst.percent:g} %",
        LRU,
        True,
        own_value=points(worst),
        unit="points",
        sense="at most",
        must=1.0,
        aim=0.0,
    )


def against_theine(scores: Sequence[Score]) -> list[Row]:
    """The mean of the default over that of theine, which has no sizes in bytes."""
    counted = [score for score in scores if THEINE in score.hits]
    figure = f"default policy, mean hit ratio of {len(counted)} runs"
    if not counted:
        return [Row(figure, THEINE, note="theine is not installed")]
    return [means(figure, counted, THEINE, must=1.0)]


def means(figure: str, scores: Sequence[Score], rival: str, *, plain: bool = False, must: float | None = None) -> Row:
    """Make the row of two mean hit ratios."""
    own, other = mean(scores, DEFAULT), mean(scores, rival)
    if not other and must is None:
        # Nothing to divide by: both values are shown, and no ratio.
        return Row(figure, rival, plain, other, own, unit="hits", sense="at most")
    ratio, note = (Spread.of([own / other]), "") if other else (None, f"{rival} has no hits")
    return Row(figure, rival, plain, other, own, unit="hits", ratio=ratio, sense="at least", must=must, note=note)


def agreement(scores: Sequence[Score], policy: str, exact: str) -> Row:
    """How many hits a policy has more or fewer than what does exactly the same."""
    apart = sum(abs(score.hits[policy] - score.hits[exact]) for score in scores)
    requests = sum(score.requests for score in scores)
    figure = f"{policy}: other hits than {exact}, of {requests:,} requests"
    return Row(figure, exact, exact != CACHETOOLS, own_value=apart, unit="x", sense="at most", must=0.0)


def by_trace(scores: Sequence[Score]) -> Iterator[Row]:
    """The means of each trace."""
    for name, group in grouped(scores).items():
        for rival in (LRU, THEINE, OPTIMUM):
            if rival in group[0].hits:
                yield means(f"default policy, mean hit ratio: {name}", group, rival, plain=rival != THEINE)


def grouped(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The runs of each trace, and those by bytes apart."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(panel(score), []).append(score)
    return groups


def losses(scores: Sequence[Score]) -> Iterator[str]:
    """Say where another policy, or theine, has more hits than the default."""
    for name, group in grouped(scores).items():
        own = mean(group, DEFAULT)
        better = {rival: mean(group, rival) for rival in (*POLICIES, THEINE) if rival in group[0].hits}
        found = [f"{rival} {ratio:.1%}" for rival, ratio in better.items() if ratio > own + SLIGHT]
        if found:
            yield f"mean hit ratio, {name}: {own:.1%} of the default policy against {', '.join(found)}"


# ---- on its own ----


def table(scores: Sequence[Score]) -> str:
    """Write every hit ratio: a block for each trace, then the means over all."""
    lines = []
    for name, group in grouped(scores).items():
        bounds = " ".join(f"{score.percent:>6g} %" for score in group)
        lines += ["", f"{name}, {group[0].requests:,} requests", f"{'size':<16}{bounds}     mean"]
        lines.append(" " * 16 + " ".join(f"{score.bound:>8.3g}" for score in group))
        for contender in group[0].hits:
            ratios = " ".join(f"{score.ratio(contender):>8.2%}" for score in group)
            lines.append(f"{contender:<16}{ratios} {mean(group, contender):>8.2%}")
    lines += ["", "mean over all that every contender ran"]
    common = set.intersection(*(set(score.hits) for score in scores))
    return "\n".join([*lines, *(f"{name:<16}{mean(scores, name):>8.2%}" for name in scores[0].hits if name in common)])


def read_all(paths: Sequence[Path]) -> list[Trace]:
    """Read each file once; those of one name are called by their paths, as what is of one name is one trace."""
    files = list(dict.fromkeys(paths))
    found = [traces.read(path) for path in files]
    names = Counter(trace.name for trace in found)
    pairs = zip(files, found, strict=True)
    return [trace if names[trace.name] == 1 else trace._replace(name=str(path)) for path, trace in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the traces that were named, or those made here; print, and draw into the folder that was given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hit_ratio", description=__doc__)
    parser.add_argument("--trace", action="append", type=Path, metavar="FILE", help="may be given more than once")
    parser.add_argument("--made", action="store_true", help="the traces made here, beside those named")
    parser.add_argument("--quick", action="store_true", help="smaller traces, where they are made here")
    parser.add_argument("--out", type=Path, help="a folder for hit_ratio.svg")
    options = parser.parse_args(arguments)
    try:
        found = read_all(options.trace or ())
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.made or not found:
        found += traces.synthetic(QUICK if options.quick else 1.0)
    scores = play_all(jobs_of(found))
    made = judged(scores)
    print(table(scores), "", *report.table([made]), *report.bulleted(made.losses), sep="\n")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        drawn = plots.draw_all([made], options.out, suffix=".svg")
        print(f"drawn: {', '.join(map(str, drawn)) or 'nothing, matplotlib is not installed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
