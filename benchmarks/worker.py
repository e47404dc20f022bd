"""One table in an interpreter of its own: the parent reads its report as JSON from stdout.

A process per table keeps them apart: what one leaves behind in malloc (its thresholds grow with
what was freed) or in the collector would otherwise decide the figures of the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.harness import Plan, Report

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def main() -> int:
    """Run one table and print its report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker")
    parser.add_argument("module")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    plan = Plan(arguments.quick, arguments.scratch)
    start = time.perf_counter()
    table = importlib.import_module(f"benchmarks.{arguments.module}")
    report: Report = table.run(plan)
    report.seconds = time.perf_counter() - start
    json.dump(dataclasses.asdict(report), sys.stdout)
    return 0


def apart(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function of a module in a fresh interpreter, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args, **kwargs).result()


if __name__ == "__main__":
    raise SystemExit(main())
