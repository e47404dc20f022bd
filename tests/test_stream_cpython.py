"""CPython's own tests of io.BytesIO, run on a BytesStream."""

import io
import unittest
from typing import Any

import pytest

from mempool.io import BytesStream

memoryio = pytest.importorskip("test.test_memoryio", reason="this Python comes without its tests")

OTHER = {
    "test_sizeof": "asks for the size of BytesIO's C struct",
    "test_cow_truncate": "counts references to the bytes object that BytesIO shares, and a stream copies",
    "test_cow_write": "counts references to the bytes object that BytesIO shares, and a stream copies",
    "test_cow_setstate": "counts references to the bytes object that BytesIO shares, and a stream copies",
}


class Adopted(memoryio.CBytesIOTest):  # type: ignore[misc,unused-ignore]
    """Both classes of tests: the second is built on the first."""

    __test__ = False
    ioclass = BytesStream
    UnsupportedOperation = io.UnsupportedOperation


def names() -> list[str]:
    return unittest.TestLoader().getTestCaseNames(Adopted)  # type: ignore[no-any-return,unused-ignore]


@pytest.mark.parametrize("name", names())
def test_of_cpython(name: str) -> None:
    if name in OTHER:
        pytest.skip(OTHER[name])
    result = unittest.TestResult()
    case: Any = Adopted(name)
    case.run(result)
    assert result.testsRun == 1
    assert not result.failures + result.errors, (result.failures + result.errors)[0][1]


def test_they_are_many() -> None:
    """Should a later Python move them elsewhere, this one tells."""
    assert len(names()) >= 39
