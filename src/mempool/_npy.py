"""Headers of .npy files, written, and files that appear under their names only when they are whole. csrc/npy.c reads."""

import ast
import contextlib
import errno
import os
import stat
from secrets import token_hex
from typing import Any

import numpy
from numpy.lib import format as npy_format

from mempool.errors import MappingError

__all__ = ["Draft", "dtype_from_descr", "header_bytes", "sync_folder"]

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


class Draft:
    """A sparse file of `size` bytes that begins with the header, under a name of its own until `place` gives it the right one."""

    def __init__(self, path: str | bytes, header: bytes, size: int, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self._check()
        self.target = os.path.realpath(os.fsdecode(path))
        self.folder = os.path.dirname(self.target)
        self.draft = self.where = os.path.join(self.folder, f".mempool-{token_hex(8)}.tmp")
        try:
            self._write(header, size)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise self._error(error) from None
            raise

    def _check(self) -> None:
        """Refuse a path where the file cannot be, or must not."""
        name = os.fsdecode(self.path)
        if os.path.isdir(name) or name.endswith(os.sep):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
        if not self.overwrite and os.path.exists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path)
        if not os.path.exists(name):
            return
        if not os.path.isfile(name):
            raise MappingError(f"{self.path!r} is no regular file: it is not overwritten")
        real = os.path.realpath(name)
        if not (os.path.exists(real) and os.path.samefile(name, real)):  # an open file that has no name any more
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)

    def _write(self, header: bytes, size: int) -> None:
        with open(self.draft, "xb") as file:
            file.write(header)
            file.truncate(size)

    def _error(self, error: OSError) -> OSError:
        """Return the same with the path that the caller knows."""
        return OSError(error.errno, error.strerror, self.path)

    def place(self) -> None:
        """Give the file its name. Who maps the one that had it keeps that."""
        try:
            if self.overwrite:
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(self.draft, stat.S_IMODE(os.stat(self.target).st_mode))
                os.replace(self.draft, self.target)
            else:
                self._link()
        except OSError as error:
            raise self._error(error) from None
        self.where = self.target

    def _link(self) -> None:
        """Unlike a rename, never over a file that came meanwhile."""
        try:
            os.link(self.draft, self.target)
        except FileExistsError:
            raise
        except OSError:
            os.rename(self.draft, self.target)  # a file system without hard links

    def discard(self) -> None:
        """Remove what is left of the draft."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.draft)


def sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk, where the OS lets folders be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
