"""The benchmark's command line: every table in a process of its own, one table at the end.

Run ``python -m benchmarks`` from the repository root, or this file. ``--quick`` takes some thirty
seconds, ``--only NAME`` runs one table (and may be given more than once). A missed target is
printed, never an error: only a wrong content or a table that cannot run makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__" and str(ROOT) not in sys.path:
    # Run as a file: the package it belongs to is not importable yet.
    sys.path.insert(0, str(ROOT))

from benchmarks import environment, plots, report  # noqa: E402
from benchmarks.harness import Report, peer  # noqa: E402

# Name on the command line: module. The order is that of the table.
TABLES = {
    "lease": "lease",
    "views": "views",
    "window": "window",
    "read": "read",
    "c_core": "c_core",
    "import": "import_cost",
    "accounting": "accounting",
    "policy": "policy",
    "leaks": "leak_finding",
    "files": "files",
    "break_even": "break_even",
    "slab": "slab",
    "mapped": "mapped",
    "ring": "ring",
    "shared": "shared",
    "io": "io_read",
    "chunks": "chunks",
    "stream": "bytes_stream",
    "numpy": "numpy_pool",
    "aio": "aio",
    "pressure": "pressure",
    "cache": "cache",
    "hit_ratio": "hit_ratio",
}
TIMEOUT = 180.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tables that were asked for; 0 unless one failed."""
    options = parse(arguments)
    start = time.perf_counter()
    facts = environment.describe()
    options.out.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []
    failures: list[str] = []
    names = options.only or list(TABLES)
    with tempfile.TemporaryDirectory(prefix="mempool-benchmark-") as scratch:
        for position, name in enumerate(names):
            say(f"[{position + 1}/{len(names)}] {name} ...")
            outcome = run_table(name, Path(scratch), quick=options.quick)
            if isinstance(outcome, Report):
                reports.append(outcome)
                say(f"[{position + 1}/{len(names)}] {name}: {outcome.seconds:.1f} s", last=True)
            else:
                failures.append(outcome)
                say(f"[{position + 1}/{len(names)}] {outcome}", last=True)
    finish(reports, facts, failures, options, time.perf_counter() - start)
    return 1 if failures else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fast check, about 30 seconds")
    parser.add_argument("--only", action="append", choices=list(TABLES), metavar="NAME", help=", ".join(TABLES))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent / "out",
        help="where JSON and plots go (benchmarks/out)",
    )
    return parser.parse_args(arguments)


def run_table(name: str, scratch: Path, *, quick: bool) -> Report | str:
    """Run one table in a process of its own.

    Returns
    -------
    Report or str
        Its report; or why it failed.
    """
    command = [sys.executable, "-m", "benchmarks.worker", TABLES[name], str(scratch)]
    command += ["--quick"] if quick else []
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=variables,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{name} took longer than {TIMEOUT:.0f} s"
    if done.returncode:
        return f"{name} failed with exit status {done.returncode}; its message is above"
    return Report.from_json(json.loads(done.stdout))


def finish(
    reports: Sequence[Report],
    facts: dict[str, str],
    failures: Sequence[str],
    options: argparse.Namespace,
    seconds: float,
) -> None:
    """Print the table; write the JSON and the plots."""
    results = options.out / "results.json"
    report.write_json(results, reports, facts, quick=options.quick, seconds=seconds)
    drawn = plots.draw_all(reports, options.out)
    print(report.render(reports, facts, failures, seconds))
    print(f"JSON: {results}")
    missing = "none, matplotlib is not installed" if peer("matplotlib") is None else "none"
    print(f"plots: {', '.join(path.name for path in drawn) or missing}", flush=True)


def say(text: str, *, last: bool = False) -> None:
    """Show progress on stderr: rewritten in place on a terminal, whole lines elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
    elif last:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
