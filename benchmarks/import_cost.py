"""What ``import mempool`` costs: time against ``import numpy``, memory over a bare interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.harness import Plan, Report, Row, Samples, progress, row

NAME = "import"
MEMORY_MUST, MEMORY_AIM = 3e6, 1.5e6
# The child times itself, so that the start of the interpreter, which both share, is left out.
CHILD = """\
from time import perf_counter
start = perf_counter()
{statement}
elapsed = perf_counter() - start
import os
try:
    pages = int(open("/proc/self/statm").read().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE")
except OSError:
    import psutil
    resident = psutil.Process().memory_info().rss
print(elapsed, resident)
"""
STATEMENTS = {
    "bare interpreter": "pass",
    "import numpy": "import numpy",
    "mempool": "import mempool",
}


def run(plan: Plan) -> Report:
    """Measure the rows of this table."""
    report = Report(NAME, "Import")
    samples = Samples(list(STATEMENTS))
    resident: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    measure("import numpy")
    measure("mempool")
    rounds = plan.rounds(15)
    for turn in range(rounds):
        progress(f"{NAME}: round {turn + 1} of {rounds}")
        for name in STATEMENTS:
            seconds, memory = measure(name)
            samples.seconds[name].append(seconds)
            resident[name].append(memory)
    figure = "import mempool, time"
    report.rows.append(row(samples, figure, "import numpy", "mempool", sense="cost", must=0.2, aim=0.1))
    report.rows.append(memory_row(resident))
    return report


def measure(name: str) -> tuple[float, float]:
    """Seconds that the statement takes in a fresh interpreter, and that one's memory after it."""
    code = CHILD.format(statement=STATEMENTS[name])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, resident = done.stdout.split()
    return float(seconds), float(resident)


def memory_row(resident: dict[str, list[float]]) -> Row:
    """Make the row of memory over a bare interpreter, beside numpy's."""
    bare = statistics.median(resident["bare interpreter"])
    return Row(
        "import mempool, memory over bare",
        "import numpy",
        rival_value=statistics.median(resident["import numpy"]) - bare,
        own_value=statistics.median(resident["mempool"]) - bare,
        unit="B",
        sense="at most",
        must=MEMORY_MUST,
        aim=MEMORY_AIM,
    )
