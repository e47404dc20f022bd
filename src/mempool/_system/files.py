"""Small files of the kernel, read whole and taken at their word only where they make sense.

A reading is a number that the file said, or an error that names the file: `OSError` for what is not there or may not be
read, `ValueError` for what is not a number. Figures are plain ASCII digits: `int` would take ``"1_0"`` and ``"-1"`` as well.
"""

import os

__all__ = ["below", "fields", "joined", "kilobytes", "lines", "number", "read"]

_FLAGS = (
    os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
)  # a FIFO in the place of a file must not block
_CHUNK = 1 << 16
_MOST_DIGITS = 20  # 64 bits


def joined(root: str | os.PathLike[str], path: str) -> str:
    """Return where an absolute path lies in a tree that stands for ``/``."""
    if root == "/":
        return path
    return os.path.join(os.fspath(root), path.lstrip("/"))


def read(path: str) -> bytes:
    """Return all that a file says at this moment; `OSError` with its path."""
    descriptor = os.open(path, _FLAGS)
    try:
        content = b""
        while part := os.read(descriptor, _CHUNK):  # a short read is not the end: lists come a page at a time
            content += part
        return content
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def number(digits: bytes, path: str) -> int:
    """Return what digits say; `ValueError` that names the file they come from."""
    if not digits.isdigit() or len(digits) > _MOST_DIGITS:
        raise ValueError(f"{path}: expected a number, found {digits[:60]!r}")
    return int(digits)


def lines(path: str) -> list[bytes]:
    """Return the lines of a file. The kernel ends them with a newline alone; names may hold other ends."""
    return [line for line in read(path).split(b"\n") if line]


def fields(path: str) -> dict[bytes, int]:
    """Return the figures of a file of lines such as ``inactive_file 4096``."""
    found = {}
    for line in lines(path):
        name, _, digits = line.partition(b" ")
        found[name] = number(digits.strip(), path)
    return found


def kilobytes(content: bytes, name: bytes, path: str) -> int:
    """Return the bytes of one line such as ``VmHWM:      1636 kB``."""
    start = content.find(b"\n" + name + b":") + 1
    if not start and not content.startswith(name + b":"):
        raise ValueError(f"{path}: there is no {name.decode()}")
    line = content[start : content.find(b"\n", start) if b"\n" in content[start:] else None]
    words = line.split()
    if len(words) != 3 or words[2] != b"kB":
        raise ValueError(f"{path}: expected kB, found {line[:60]!r}")
    return number(words[1], path) * 1024


def below(path: bytes, top: bytes) -> list[bytes] | None:
    """Return the names that lead from one directory of a hierarchy down to another, or None if it is not below."""
    parts = [part for part in path.split(b"/") if part]
    above = [part for part in top.split(b"/") if part]
    if parts[: len(above)] != above or b".." in parts[len(above) :]:
        return None
    return parts[len(above) :]
