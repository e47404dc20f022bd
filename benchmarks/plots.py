"""The plots: one PNG per subject, drawn without a display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, cheaper_text, peer, size_text

Curve = Sequence[tuple[float, float]]
# One look per way through all plots; mempool stands out, its rivals recede.
LOOKS: dict[str, dict[str, Any]] = {
    "mempool": {"color": "#c2410c", "linewidth": 2.6, "marker": "o", "zorder": 5},
    "object()": {"color": "#111827", "linestyle": ":", "marker": ""},
    "bytearray": {"color": "#64748b", "marker": "s"},
    "f.read()": {"color": "#0f766e", "marker": "D"},
    "np.empty": {"color": "#2563eb", "marker": "^"},
    "np.fromfile": {"color": "#7c3aed", "marker": "P"},
    "pyarrow.allocate_buffer": {"color": "#a16207", "marker": "v"},
    "pure-Python pool": {"color": "#15803d", "marker": "x"},
    "preallocated": {"color": "#9ca3af", "marker": "*"},
    "np.memmap": {"color": "#2563eb", "marker": "^"},
    "np.memmap, still mapped": {"color": "#9ca3af", "marker": "*"},
    "np.save": {"color": "#7c3aed", "marker": "P"},
    "slotted objects in a list": {"color": "#64748b", "marker": "s"},
    "default": {"color": "#c2410c", "linewidth": 2.6, "marker": "o", "zorder": 5},
    "lru": {"color": "#111827", "linestyle": "--", "marker": "s"},
    "s3fifo": {"color": "#2563eb", "marker": "^"},
    "lru-dict": {"color": "#64748b", "marker": "D"},
    "cachetools.LRUCache": {"color": "#0f766e", "marker": "v"},
    "theine": {"color": "#7c3aed", "marker": "P"},
}
OWN_POLICIES = {"default", "lru", "s3fifo"}
# Contenders for hits: the default policy stands out, what knows the future bounds them, simple ones are dashed.
HIT_LOOKS: dict[str, dict[str, Any]] = {
    "optimum": {"color": "#9ca3af", "linestyle": ":", "linewidth": 1.6},
    "tinylfu": {"color": "#c2410c", "linewidth": 2.6, "marker": "o", "markersize": 5, "zorder": 5},
    "s3fifo": {"color": "#2563eb", "marker": "^", "markersize": 5},
    "sieve": {"color": "#0f766e", "marker": "D", "markersize": 4},
    "lru": {"color": "#111827", "linestyle": "--"},
    "lfu": {"color": "#a16207", "linestyle": "--", "marker": "v", "markersize": 4},
    "fifo": {"color": "#64748b", "linestyle": "--", "marker": "s", "markersize": 4},
    "random": {"color": "#64748b", "linestyle": "-.", "linewidth": 1},
    "theine": {"color": "#7c3aed", "marker": "P", "markersize": 5},
}


def draw_all(reports: Sequence[Report], folder: Path, suffix: str = ".png") -> list[Path]:
    """Draw what was measured.

    Parameters
    ----------
    reports, folder
        What to draw, and where.
    suffix
        ``.png`` or ``.svg``.

    Returns
    -------
    list of Path
        The files written; none where matplotlib is not installed.
    """
    if peer("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    # A drawing changes only if what it shows does, and its words stay words.
    matplotlib.rcParams.update({"svg.hashsalt": "mempool", "svg.fonttype": "none"})
    written = []
    for report in reports:
        if report.curves and report.name in DRAWERS:
            written.append(DRAWERS[report.name](report, folder / f"{report.name}{suffix}"))
    return written


def figure_with(panels: int, title: str, height: float = 4.8) -> tuple[Any, list[Any]]:
    """Make a figure with panels side by side."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(6.2 * panels + 0.8, height), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure, list(axes[0])


def save(figure: Any, path: Path) -> Path:
    """Write a figure and forget it."""
    from matplotlib import pyplot

    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=130, metadata=metadata)
    pyplot.close(figure)
    return path


def lines(axis: Any, curves: Mapping[str, Curve], scale: float = 1.0) -> None:
    """Draw the curves over size, both axes logarithmic."""
    for name, points in curves.items():
        look = {"markersize": 5, "linewidth": 1.4, **LOOKS.get(name, {})}
        sizes, values = zip(*points, strict=True)
        axis.plot(sizes, [value * scale for value in values], label=name, **look)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    every = sorted({size for points in curves.values() for size, _ in points})
    ticks = every if len(every) <= 8 else every[::2]
    texts = [size_text(size, digits=3) for size in ticks]
    axis.set_xticks(ticks, texts, rotation=35, ha="right")
    axis.grid(visible=True, which="major", alpha=0.3)
    axis.legend(fontsize=9, framealpha=0.9)


def nanoseconds(axis: Any) -> None:
    """Label the y axis with the unit that fits each decade."""
    from matplotlib.ticker import FuncFormatter

    def text(value: float, _: int) -> str:
        for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
            if value >= factor:
                return f"{value / factor:g} {unit}"
        return f"{value:g} ns"

    axis.yaxis.set_major_formatter(FuncFormatter(text))
    axis.set_ylabel("time per operation")


def draw_break_even(report: Report, path: Path) -> Path:
    """Cost by size: acquiring alone, and acquiring to fill."""
    figure, axes = figure_with(len(report.curves), "Where pooling pays")
    for axis, (panel, curves) in zip(axes, report.curves.items(), strict=True):
        lines(axis, curves, 1e9)
        nanoseconds(axis)
        said = ", ".join(f"{name} {cheaper_text(curves, name)}" for name in ("bytearray", "np.empty"))
        axis.set_title(f"{panel}\nmempool is no dearer than: {said}", fontsize=10)
        axis.set_xlabel("bytes asked for")
    return save(figure, path)


def draw_lease(report: Report, path: Path) -> Path:
    """Acquire and drop by size, with the line that must not be crossed."""
    figure, (axis,) = figure_with(1, "pool.acquire(n) and drop, warm")
    (curves,) = report.curves.values()
    lines(axis, curves, 1e9)
    base = dict(curves["object()"])
    for factor, name, color in ((1.5, "must", "#b91c1c"), (1.1, "aim", "#15803d")):
        sizes = list(base)
        values = [base[size] * factor * 1e9 for size in sizes]
        axis.plot(sizes, values, "--", color=color, linewidth=1, label=f"{name}: {factor}x")
    axis.set_yscale("linear")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("ns per operation")
    axis.set_xlabel("bytes asked for")
    axis.legend(fontsize=9, loc="lower right")
    return save(figure, path)


def draw_read(report: Report, path: Path) -> Path:
    """Throughput by file size."""
    figure, (axis,) = figure_with(1, "Whole file into memory, from the page cache")
    lines(axis, report.curves["throughput"], 1 / (1 << 30))
    axis.set_yscale("linear")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("GiB/s (open, read, drop)")
    axis.set_xlabel("file size")
    return save(figure, path)


def draw_files(report: Report, path: Path) -> Path:
    """Throughput of the main job by mean size of each group of files."""
    figure, (axis,) = figure_with(1, "Files of this machine into NumPy")
    lines(axis, report.curves["files"], 1 / (1 << 30))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylabel("GiB/s (open, read, array, drop)")
    axis.set_xlabel("mean size of the files of a group")
    return save(figure, path)


def draw_window(report: Report, path: Path) -> Path:
    """Time and page faults of one operation, as bars; each time with its ratio to mempool's."""
    figure, axes = figure_with(len(report.curves), report.title, height=3.6)
    ratios = {row.rival: row.ratio.median for row in report.rows if row.ratio is not None}
    for axis, (panel, curves) in zip(axes, report.curves.items(), strict=True):
        timed = panel.startswith("time")
        names = list(curves)[::-1]
        values = [curves[name][0][1] * (1e6 if timed else 1.0) for name in names]
        colors = [LOOKS.get(name, {}).get("color", "#64748b") for name in names]
        texts = [f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in values]
        if timed:
            texts = [
                f"{text} us ({ratios[name]:.2f}x mempool)" if name in ratios else f"{text} us"
                for name, text in zip(names, texts, strict=True)
            ]
        axis.bar_label(axis.barh(names, values, color=colors), texts, padding=4, fontsize=9)
        axis.margins(x=0.62 if timed else 0.15)
        axis.set_title(panel)
        axis.set_xlabel("us" if timed else "faults")
        axis.grid(visible=True, axis="x", alpha=0.3)
    return save(figure, path)


def draw_slab(report: Report, path: Path) -> Path:
    """Time of an item by how many there are at once; memory of a record, as bars."""
    figure, (left, right) = figure_with(2, "Records in a slab")
    times, memory = report.curves["time of an item"], report.curves["memory of a record"]
    lines(left, times, 1e9)
    nanoseconds(left)
    numbers(left, times)
    left.set_ylabel("time of an item")
    left.set_xlabel("items at once: allocated, then freed")
    names = list(memory)[::-1]
    values = [memory[name][0][1] for name in names]
    bars = right.barh(names, values, color=[LOOKS.get(name, LOOKS["mempool"])["color"] for name in names])
    right.bar_label(bars, [f"{value:.0f} B" for value in values], padding=4, fontsize=9)
    right.margins(x=0.15)
    right.set_xlabel("bytes of process memory (USS), a record of 32 bytes with its handle")
    return save(figure, path)


def numbers(axis: Any, curves: Mapping[str, Curve]) -> None:
    """Label the x axis with plain numbers, as what is counted there are no bytes."""
    ticks = sorted({number for points in curves.values() for number, _ in points})
    axis.set_xticks(ticks, [f"{number:,.0f}" for number in ticks], rotation=35, ha="right")


def draw_mapped(report: Report, path: Path) -> Path:
    """Peak memory and speed by size of the block; speed of appending by rows at a time."""
    figure, axes = figure_with(len(report.curves), "Arrays in files")
    for axis, (panel, curves) in zip(axes, report.curves.items(), strict=True):
        peak, append = panel.startswith("peak"), panel == "append"
        lines(axis, curves, 1 / (1 << 20) if peak else 1 / (1 << 30))
        axis.set_title(panel)
        axis.set_xlabel("rows of 8 bytes an append" if append else "bytes of a block")
        axis.set_ylabel("MiB of resident memory" if peak else "GiB/s")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if append:
            numbers(axis, curves)
        if not peak:
            axis.set_yscale("linear")
            axis.set_ylim(bottom=0)
    return save(figure, path)


def draw_hit_ratio(report: Report, path: Path) -> Path:
    """Hits by size of the cache, a panel for each trace, one legend for all."""
    from matplotlib import pyplot

    columns = min(3, len(report.curves))
    rows = -(-(len(report.curves) + (columns == 3)) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.7 * rows), squeeze=False, layout="constrained"
    )
    for axis, (panel, curves) in zip(grid.flat, report.curves.items(), strict=False):
        for name, points in curves.items():
            sizes, ratios = zip(*points, strict=True)
            axis.plot(sizes, [100 * ratio for ratio in ratios], label=name, **HIT_LOOKS[name])
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:g} %" for size in sizes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_title(panel)
        axis.set_xlabel(f"size of the cache, % of {'all bytes' if panel.endswith('by bytes') else 'the keys'}")
        axis.grid(visible=True, alpha=0.3)
    for axis in grid[:, 0]:
        axis.set_ylabel("hits, % of requests")
    finish_hit_ratio(figure, list(grid.flat), len(report.curves))
    return save(figure, path)


def finish_hit_ratio(figure: Any, axes: list[Any], used: int) -> None:
    """Put the legend where a panel is left over, or below all."""
    names: dict[str, Any] = {}
    for axis in axes[:used]:
        handles, labels = axis.get_legend_handles_labels()
        names.update(zip(labels, handles, strict=True))
    for axis in axes[used:]:
        axis.set_axis_off()
    if axes[used:]:
        axes[used].legend(names.values(), names, loc="center left", fontsize=10)
    else:
        figure.legend(names.values(), names, loc="outside lower center", ncols=5)


def draw_cache(report: Report, path: Path) -> Path:
    """Time of a request by size of the cache; memory of an entry, as bars."""
    figure, (left, right) = figure_with(2, "Caches")
    times, memory = report.curves["get or put, Zipf 1.1"], report.curves["memory of an entry"]
    lines(left, times, 1e9)
    nanoseconds(left)
    numbers(left, times)
    left.set_ylabel("get, and put what was missing")
    left.set_xlabel("entries of the cache; 100,000 keys")
    left.set_ylim(top=4 * left.get_ylim()[1])
    left.legend(loc="upper center", ncols=2, fontsize=9)
    names = list(memory)[::-1]
    colors = ["#c2410c" if name in OWN_POLICIES else "#64748b" for name in names]
    bars = right.barh(names, [memory[name][0][1] for name in names], color=colors)
    right.bar_label(bars, fmt="%.0f B", padding=4, fontsize=9)
    right.margins(x=0.15)
    right.set_xlabel("bytes of process memory (USS) of an entry, without key and value")
    return save(figure, path)


DRAWERS: dict[str, Callable[[Report, Path], Path]] = {
    "break_even": draw_break_even,
    "lease": draw_lease,
    "read": draw_read,
    "window": draw_window,
    "files": draw_files,
    "slab": draw_slab,
    "mapped": draw_mapped,
    "hit_ratio": draw_hit_ratio,
    "cache": draw_cache,
}
