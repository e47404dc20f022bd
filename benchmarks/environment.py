"""What machine and what software the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import sysconfig
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]

import mempool

PACKAGES = ("numpy", "pyarrow", "matplotlib", "psutil", "cachetools", "lru-dict", "theine", "theine-core")


def describe() -> dict[str, str]:
    """Collect what a reader needs to judge the figures; one short text per subject."""
    facts = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil": "off" if not gil_enabled() else "on",
        "compiler": platform.python_compiler(),
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": memory_text(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "transparent huge pages": first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load at start": load_text(),
    }
    facts["mempool"] = str(mempool.__version__)
    return facts | {name: version_of(name) for name in PACKAGES}


def header(facts: dict[str, str]) -> list[str]:
    """Write the facts as the lines above the table."""
    return [
        f"{facts['python']} (GIL {facts['gil']}), NumPy {facts['numpy']}, "
        f"pyarrow {facts['pyarrow']}, mempool {facts['mempool']}",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory']}; {facts['kernel']}, "
        f"{facts['libc']}; huge pages {facts['transparent huge pages']}; "
        f"load {facts['load at start']}",
    ]


def gil_enabled() -> bool:
    """Whether this interpreter runs with its global lock."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return True
    probe = getattr(sys, "_is_gil_enabled", None)
    return bool(probe()) if probe else True


def version_of(name: str) -> str:
    """Version of a distribution, or that it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """Name of the processor, as well as the OS knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_text() -> str:
    """RAM of the machine."""
    return f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB"


def first_line(path: str) -> str:
    """First line of a small file of the kernel's; `unknown` where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def load_text() -> str:
    """Load of the last minute: others' work shows in the spread of every row."""
    try:
        return f"{os.getloadavg()[0]:.2f}"
    except (AttributeError, OSError):
        return "unknown"
