"""Trees that stand for ``/``: a ``/proc`` and control groups in files, as the kernel writes them."""

import os
from collections.abc import Mapping
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
UNLIMITED_V1 = (1 << 63) - PAGE

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
OTHER_MOUNTS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)


def plant(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def process(
    root: Path, *, rss: int = 8 * MIB, peak: int = 9 * MIB, space: int = 64 * MIB, data: int = 16 * MIB
) -> Path:
    """Plant a process with so many bytes."""
    status = f"Name:\tpython\nVmPeak:\t{space // KIB} kB\nVmSize:\t{space // KIB} kB\n"
    status += f"VmHWM:\t{peak // KIB:8} kB\nVmRSS:\t{rss // KIB:8} kB\nVmData:\t{data // KIB:8} kB\nThreads:\t1\n"
    rollup = "55b69efbc000-7ffff1449000 ---p 00000000 00:00 0                          [rollup]\n"
    rollup += f"Rss: {rss // KIB:12} kB\nShared_Clean: 1584 kB\nPrivate_Clean: 40 kB\n"
    rollup += "Private_Dirty: 112 kB\nPrivate_Hugetlb: 0 kB\n"
    return plant(
        root,
        {
            "proc/self/statm": f"{space // PAGE} {rss // PAGE} 415 5 0 {data // PAGE} 0\n",
            "proc/self/status": status,
            "proc/self/smaps_rollup": rollup,
        },
    )


def machine(root: Path, total: int = 16 * GIB, available: int = 12 * GIB) -> Path:
    text = f"MemTotal:       {total // KIB} kB\nMemFree:        1000 kB\nMemAvailable:   {available // KIB} kB\n"
    text += "HugePages_Total:       0\n"
    return plant(root, {"proc/meminfo": text})


def group_v2(
    root: Path,
    name: str = "",
    *,
    current: int = 100 * MIB,
    limit: int | str = "max",
    high: int | str = "max",
    inactive: int = 20 * MIB,
    mount: str = "/sys/fs/cgroup",
) -> Path:
    """Plant the files of one v2 group."""
    folder = f"{mount}/{name}".rstrip("/")
    return plant(
        root,
        {
            f"{folder}/memory.current": f"{current}\n",
            f"{folder}/memory.max": f"{limit}\n",
            f"{folder}/memory.high": f"{high}\n",
            f"{folder}/memory.stat": f"anon 1000\nfile 2000\ninactive_file {inactive}\nactive_file 10\n",
            f"{folder}/memory.events": "low 0\nhigh 3\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n",
            f"{folder}/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        },
    )


def group_v1(
    root: Path,
    name: str = "",
    *,
    usage: int = 100 * MIB,
    limit: int = UNLIMITED_V1,
    hierarchical: int = UNLIMITED_V1,
    inactive: int = 20 * MIB,
    hierarchy: int = 1,
    mount: str = "/sys/fs/cgroup/memory",
) -> Path:
    """Plant the files of one v1 group; its `hierarchical` limit is the smallest of all that bind it."""
    folder = f"{mount}/{name}".rstrip("/")
    stat = (
        f"cache 1\nrss 2\ninactive_file 5\nhierarchical_memory_limit {hierarchical}\ntotal_inactive_file {inactive}\n"
    )
    return plant(
        root,
        {
            f"{folder}/memory.usage_in_bytes": f"{usage}\n",
            f"{folder}/memory.limit_in_bytes": f"{limit}\n",
            f"{folder}/memory.stat": stat,
            f"{folder}/memory.failcnt": "5\n",
            f"{folder}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            f"{folder}/memory.use_hierarchy": f"{hierarchy}\n",
        },
    )


def member_v2(root: Path, path: str = "/", *, mounts: str = V2_MOUNT) -> Path:
    """Plant a process that is in the v2 group `path`."""
    return plant(root, {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": OTHER_MOUNTS + mounts})


def member_v1(root: Path, path: str = "/", *, mounts: str = V1_MOUNT, more: str = "") -> Path:
    """Plant a process that is in the v1 group `path`."""
    places = f"9:name=systemd:/\n4:cpu,cpuacct:/elsewhere\n3:memory:{path}\n{more}"
    return plant(root, {"proc/self/cgroup": places, "proc/self/mountinfo": OTHER_MOUNTS + mounts})
