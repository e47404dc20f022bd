# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, freethreading_compatible=True
# cython: auto_pickle=False, cdivision=True
"""The compiled part of caches: a table of entries, and the policies that say which of them goes next.

Read the parts in this order: `_keys.pxi` (comparing keys, the lock, the clock), `_entries.pxi` (slots and index), `_expiry.pxi`
(deadlines), `_policy.pxi` (what a policy is), one file a policy, `_order.pxi` (policies by name and by priority), `_values.pxi`
(what values keep in memory), `_pins.pxi` (memory that evicted values leave to others), `_loading.pxi` (claims of loads),
`_leaving.pxi` (what becomes of what leaves), `_passing.pxi` (eviction that goes on), `_notes.pxi` (versions, tags, names),
`_lookup.pxi`, `_table.pxi` (insertion, removal), `_collector.pxi` (garbage), `_walk.pxi` (iteration), `_weakly.pxi` (weakness)
and `_probe.pxi` (for tests).
The default policy has four: `_sketch.pxi`, `_segments.pxi`, `_shadow.pxi`, `_tinylfu.pxi`.

It links nothing of `csrc/`. One rule: no lock is held while Python runs. Hashes and weights are taken before, foreign `__eq__` runs
between two looks, and what leaves is dropped, counted and told after it has left.
"""
cimport cython
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyTypeObject, destructor, inquiry, traverseproc
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_XDECREF, PyObject
from libc.math cimport INFINITY
from libc.stdint cimport int16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memmove, memset

# C variables, not module globals: finalisers that run late at exit find the module's dict empty.
cdef object Buffer, CacheFull, CAUSES_BY_NUMBER, GenericAlias, _core_weighing, log, report, shown
cdef object start_new_thread, urandom, weak_reference
from _thread import start_new_thread
from os import urandom
from types import GenericAlias
from weakref import ref as weak_reference

from mempool._core import Buffer, _report as report, _weighing as _core_weighing
from mempool.cache.records import CAUSES_BY_NUMBER, CacheFull, log
from mempool.units import shown

include "_keys.pxi"
include "_entries.pxi"
include "_expiry.pxi"
include "_policy.pxi"
include "_lru.pxi"
include "_lfu.pxi"
include "_sieve.pxi"
include "_soonest.pxi"
include "_ghosts.pxi"
include "_s3fifo.pxi"
include "_sketch.pxi"
include "_segments.pxi"
include "_shadow.pxi"
include "_tinylfu.pxi"
include "_order.pxi"
include "_values.pxi"
include "_pins.pxi"
include "_loading.pxi"
include "_leaving.pxi"
include "_passing.pxi"
include "_notes.pxi"
include "_lookup.pxi"
include "_table.pxi"
include "_collector.pxi"
include "_walk.pxi"
include "_weakly.pxi"
include "_probe.pxi"
