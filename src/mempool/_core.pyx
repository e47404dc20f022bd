# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, freethreading_compatible=True
# cython: auto_pickle=False
"""The compiled layer: leases of native memory through Python's protocols.

Read the parts in this order: `_account.pxi` (what is taken from the OS), `_room.pxi` (who is asked for room),
`_buffer.pxi` (a lease and its views), `_arrays.pxi` and `_dlpack.pxi` (views for NumPy and others), `_leaks.pxi` (stacks and
warnings), `_waiting.pxi` (who waits for memory), `_pool.pxi` (where leases come from), `_default.pxi` (the pool of the process),
`_slab_arguments.pxi` and `_slab.pxi` (items with handles), `_mapping_view.pxi`, `_mapping.pxi`, `_blocks.pxi` and `_opening.pxi`
(arrays in files), `_ring.pxi` and `_arena.pxi`; then what the movement modules are built on: `_chain.pxi` and `_stream.pxi`
(io.BytesStream), `_inbox.pxi` (aio), `_shared.pxi` (shared) and `_heap.pxi` (numpy); `_process.pxi` (what the process knows
of itself); and `_weighing.pxi` (what a value keeps alive, for caches).

Two rules hold everywhere: no lock is held while Python runs, and no Python runs before freed memory is back in the pool. And one
habit: no list comprehensions, as Cython 3.3 drops an item twice when an append finds no memory.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_ExceptionMatches, PyErr_Fetch, PyErr_Restore
from cpython.long cimport PyLong_CheckExact
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.number cimport PyIndex_Check
from cpython.object cimport Py_EQ, Py_NE, PyTypeObject, destructor
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from mempool._libmempool cimport *

# C variables, not module globals: finalisers that run late at exit find the module's dict empty.
cdef object AccountLimitExceeded, PoolExhausted, StaleHandle
cdef object PoolStats, SizeClassStats, SlabStats, parse_duration, parse_size, shown
from _thread import get_ident as _get_ident

from mempool._records import PoolStats, SizeClassStats, SlabStats
from mempool.errors import AccountLimitExceeded, PoolExhausted, StaleHandle
from mempool.units import parse_duration, parse_size, shown

cdef extern from "Python.h":
    int PyTraceMalloc_Track(unsigned int domain, uintptr_t ptr, size_t size) nogil
    int PyTraceMalloc_Untrack(unsigned int domain, uintptr_t ptr) nogil
    int PyErr_WarnExplicitObject(
        object category, object message, object filename, int lineno, object module, PyObject *registry
    ) except -1
    object PyPickleBuffer_FromObject(object)
    bint Py_IsInitialized() nogil
    void PyObject_GC_UnTrack(PyObject *)
    Py_ssize_t refcount "Py_REFCNT"(PyObject *)
    # -1 with an exception set for what does not fit; the caller looks.
    Py_ssize_t as_ssize "PyLong_AsSsize_t"(object) noexcept
    PyObject *new_int "PyLong_FromLongLong"(long long) noexcept  # NULL with an exception set; the caller looks
    int64_t as_int64 "PyLong_AsLongLongAndOverflow"(object, int *overflow) except? -1
    int get_buffer "PyObject_GetBuffer"(object, Py_buffer *, int) noexcept

cdef extern from *:
    const size_t SIZE_MAX

TRACEMALLOC_DOMAIN = 0x6D656D70
cdef unsigned int DOMAIN = 0x6D656D70

# What is larger than this is cleared and copied without the GIL.
cdef size_t LONG_WORK = 1 << 20

include "_account.pxi"
include "_room.pxi"
include "_buffer.pxi"
include "_arrays.pxi"
include "_dlpack.pxi"
include "_leaks.pxi"
include "_waiting.pxi"
include "_pool.pxi"
include "_default.pxi"
include "_slab_arguments.pxi"
include "_slab.pxi"
include "_mapping_view.pxi"
include "_mapping.pxi"
include "_blocks.pxi"
include "_opening.pxi"
include "_ring.pxi"
include "_arena.pxi"
include "_chain.pxi"
include "_stream.pxi"
include "_inbox.pxi"
include "_shared.pxi"
include "_heap.pxi"
include "_process.pxi"
include "_weighing.pxi"
