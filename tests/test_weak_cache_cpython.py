"""CPython's own tests of weak mappings, run on a WeakCache and a WeakKeyCache."""

import types
import unittest
import weakref
from typing import Any

import pytest

from mempool.cache import WeakCache, WeakKeyCache

cpython = pytest.importorskip("test.test_weakref", reason="this Python comes without its tests")

OTHER = {
    "test_remove_closure": "asks for a private function",
    "test_weak_valued_consistency": "asks for a private dict",
    "test_weak_keyed_cascading_deletes": "counts comparisons, and a lookup here begins again where comparing changed the table",
    "test_threaded_weak_value_dict_deepcopy": "takes seconds; copying is tested all the same",
    "test_threaded_weak_key_dict_deepcopy": "takes seconds; copying is tested all the same",
    "test_make_weak_valued_dict_misc": "keyword arguments of a cache are its bounds",
    "test_make_weak_valued_dict_repr": "its own, with a name and counts",
    "test_make_weak_keyed_dict_repr": "its own, with a name and counts",
    "test_weak_keys_destroy_while_iterating": "asks for a dict's order",
    "test_weak_values_destroy_while_iterating": "asks for a dict's order",
}
CASES = ("MappingTestCase", "WeakValueDictionaryTestCase", "WeakKeyDictionaryTestCase")
ADOPTED = types.SimpleNamespace(
    **{name: getattr(weakref, name) for name in dir(weakref)}
    | {"WeakValueDictionary": WeakCache, "WeakKeyDictionary": WeakKeyCache}
)


def names() -> list[tuple[str, str]]:
    found = unittest.TestLoader()
    return [(case, name) for case in CASES for name in found.getTestCaseNames(getattr(cpython, case))]


@pytest.mark.parametrize(("case", "name"), names())
def test_of_cpython(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in OTHER:
        pytest.skip(OTHER[name])
    monkeypatch.setattr(cpython, "weakref", ADOPTED)
    adopted: Any = getattr(cpython, case)(name)
    if "Dictionary" in case:
        adopted.type2test = WeakCache if "Value" in case else WeakKeyCache
    result = unittest.TestResult()
    adopted.run(result)
    assert result.testsRun == 1
    assert not result.failures + result.errors, (result.failures + result.errors)[0][1]


def test_they_are_many() -> None:
    """Should a later Python move them elsewhere, this one tells."""
    assert len(names()) >= 60
