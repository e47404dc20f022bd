# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, freethreading_compatible=True
# cython: auto_pickle=False, cdivision=True
"""The compiled part of caches: a table of entries, and the policies that say which of them goes next.

Read the parts in this order: `_keys.pxi` (comparing keys, the lock, the clock), `_entries.pxi` (slots and index), `_expiry.pxi`
(deadlines), `_policy.pxi` (what a policy is), one file a policy, but for the default one, which has four (`_sketch.pxi`,
`_segments.pxi`, `_shadow.pxi`, `_tinylfu.pxi`), `_order.pxi` (policies by name and by priority), `_leaving.pxi` (eviction, and what
becomes of what leaves), `_table.pxi` (lookup, insertion, removal), `_collector.pxi` (garbage), `_walk.pxi` (iteration) and
`_probe.pxi` (what tests look at).

It links nothing of `csrc/`. One rule: no lock is held while Python runs. Hashes and weights are taken before, foreign `__eq__` runs
between two looks, and what leaves is dropped, counted and told after it has left.
"""
cimport cython
from cpython.object cimport PyTypeObject, inquiry, traverseproc
from cpython.ref cimport Py_XDECREF, PyObject
from libc.math cimport INFINITY
from libc.stdint cimport int16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

# C variables, not module globals: finalisers that run late at exit find the module's dict empty.
cdef object CacheFull, CAUSES_BY_NUMBER, log, real_bytes, shown, urandom
from os import urandom

from mempool.cache.records import CAUSES_BY_NUMBER, CacheFull, log
from mempool.cache.weighing import real_bytes
from mempool.units import shown

include "_keys.pxi"
include "_entries.pxi"
include "_expiry.pxi"
include "_policy.pxi"
include "_lru.pxi"
include "_sketch.pxi"
include "_segments.pxi"
include "_shadow.pxi"
include "_tinylfu.pxi"
include "_order.pxi"
include "_leaving.pxi"
include "_table.pxi"
include "_collector.pxi"
include "_walk.pxi"
include "_probe.pxi"
