"""Headers of .npy files, written, and files that appear under their names only when they are whole. csrc/npy.c reads."""

import ast
import contextlib
import errno
import os
from secrets import token_hex
from typing import Any

import numpy
from numpy.lib import format as npy_format

__all__ = ["dtype_from_descr", "header_bytes", "write_file"]

MAGIC = b"\x93NUMPY"
ALIGNMENT = 64
ROW_DIGITS = 21  # room for the first extent to grow in place: more than 64 bits have digits


def dtype_from_descr(descr: str) -> numpy.dtype[Any]:
    """Return the dtype that a header names; `descr` is a literal of strings, numbers, tuples and lists, as checked before."""
    value: Any = ast.literal_eval(descr)
    if type(value) not in (str, list, tuple):
        raise ValueError("it is no dtype")
    return npy_format.descr_to_dtype(value)


def header_bytes(dtype: numpy.dtype[Any], shape: tuple[int, ...], order: str) -> bytes:
    """Return a header as NumPy writes it, with room for more rows."""
    descr = npy_format.dtype_to_descr(dtype)
    text = f"{{'descr': {descr!r}, 'fortran_order': {order == 'F'}, 'shape': {shape!r}, }}"
    room = ROW_DIGITS - len(str(shape[0])) if shape else 0
    try:
        content, version = text.encode("latin1"), (1, 0)
    except UnicodeEncodeError:
        content, version = text.encode("utf8"), (3, 0)
    if len(content) + room + ALIGNMENT + 10 > 0xFFFF:
        version = max(version, (2, 0))
    width = 2 if version == (1, 0) else 4
    prefix = len(MAGIC) + 2 + width
    length = -(-(prefix + len(content) + room + 1) // ALIGNMENT) * ALIGNMENT - prefix
    return MAGIC + bytes(version) + length.to_bytes(width, "little") + content.ljust(length - 1) + b"\n"


def write_file(path: str | bytes, header: bytes, size: int, overwrite: bool) -> None:
    """Make a sparse file of `size` bytes that begins with the header. Where it fails, nothing is left of it."""
    target = os.path.realpath(os.fsdecode(path))
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not overwrite and os.path.exists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    folder, name = os.path.split(target)
    draft = os.path.join(folder, f".{name[:64]}.{token_hex(8)}.tmp")
    try:
        _write(draft, header, size)
        _place(draft, target, overwrite)
    except OSError as error:
        error.filename, error.filename2 = path, None  # what the caller knows
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _write(path: str, header: bytes, size: int) -> None:
    with open(path, "xb") as file:
        file.write(header)
        file.truncate(size)


def _place(draft: str, target: str, overwrite: bool) -> None:
    if overwrite:
        os.replace(draft, target)  # who maps the old file keeps it
        return
    try:
        os.link(draft, target)  # unlike a rename, never over a file that came meanwhile
    except FileExistsError:
        raise
    except OSError:
        os.rename(draft, target)  # a file system without hard links
