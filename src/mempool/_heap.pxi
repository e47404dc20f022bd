# NumPy's own arrays, over a pool (NEP 49).
#
#     ndarray --mem_handler--> capsule --> Tap --> mp_heap --> the pool's C structures       use_pool: a context variable of NumPy
#
#     ndarray --mem_handler--> NumPy's default handler, whose functions are ours --> the current mp_heap       install: all threads
#
# An array names the handler that made it and is freed through that, so a handler may never go before its arrays: the capsule of
# `use_pool` is kept by them, and NumPy's default handler is static. What an array keeps alive is a heap (csrc/heap.c), never the
# `BufferPool`: arrays and capsules are no garbage to the collector, so a pool that reaches an array of its own would stay for ever.
#
# `install` puts our functions into NumPy's default handler, as each context without a handler of its own uses that one, in every
# thread, whoever started it. Rejected: to set the context variable (other contexts do not see it), and to set it anew where threads
# start (those that run already, and those made in C, go on without). Our functions stay there after `uninstall`, as arrays of
# ours may live and others may have copied them; they then pass everything on.
#
# So any function here may be handed any pointer, and asks the heaps whether it is one of theirs. It never goes by the size: an
# array that was made shorter behind NumPy's back is freed with the size that it then has.
#
# What is small stays with NumPy, which keeps arrays below 1 KiB in a cache of its own; where a pool is closed, the memory is
# NumPy's as well. A limit is a limit: no memory, and NumPy raises MemoryError.
#
# The functions run with the GIL, at any time: in the collector, with an exception set, at the end of the interpreter. They make no
# objects. While an array is resized nobody else may run: it still has the address of the memory that is just going back.
from cpython.pycapsule cimport PyCapsule_Destructor
from libc.stdlib cimport calloc
from libc.string cimport strcpy

cdef extern from "numpy/ndarraytypes.h" nogil:
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept
        void *(*calloc)(void *ctx, size_t nelem, size_t elsize) noexcept
        void *(*realloc)(void *ctx, void *ptr, size_t new_size) noexcept
        void (*free)(void *ctx, void *ptr, size_t size) noexcept

    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator

cdef extern from "numpy/arrayobject.h":
    object PyDataMem_SetHandler(object handler)
    object PyDataMem_GetHandler()
    PyObject *PyDataMem_DefaultHandler

cdef extern from "Python.h":
    bint PyGILState_Check() nogil
    # They cannot fail as they are used here; with Cython's declarations NULL would be looked at as an error, and one that is on its
    # way be taken for theirs.
    void *pointer_of "PyCapsule_GetPointer"(object capsule, const char *name) noexcept
    PyCapsule_Destructor destructor_of "PyCapsule_GetDestructor"(object capsule) noexcept

cdef extern from "<stdatomic.h>" nogil:
    ctypedef enum memory_order:
        memory_order_release
    void atomic_thread_fence(memory_order)

cdef char *HANDLER = "mem_handler"

# Bytes. Below, malloc is as quick, and packs closer than whole pages.
cdef size_t SMALL = MP_HEAP_LEAST

cdef struct Tap:
    PyDataMem_Handler handler  # first: NumPy sees nothing else
    mp_heap *heap
    PyObject *previous         # owned: the handler before, until the context goes back to it
    bint left                  # before one that was entered later, which still stands above it
    bint off                   # there was no memory to leave it as it should be: nothing more comes through it

# How NumPy does it without us.
cdef PyDataMemAllocator original
cdef bint _patched = False
cdef BufferPool _installed = None
cdef object _install_turn = object()


# ---- what NumPy calls ----


cdef void *take(mp_heap *heap, size_t size, bint zero) noexcept:
    cdef void *memory = NULL
    cdef mp_status status = mp_heap_alloc(heap, size, zero, &memory)
    if status == MP_ERR_CLOSED:
        return original.calloc(original.ctx, size, 1) if zero else original.malloc(original.ctx, size)
    return memory if status == MP_OK else NULL


cdef void *tap_malloc(void *ctx, size_t size) noexcept:
    if (<Tap *>ctx).off:
        return shared_malloc(ctx, size)
    if size < SMALL:
        return original.malloc(original.ctx, size)
    return take((<Tap *>ctx).heap, size, False)


cdef void *tap_calloc(void *ctx, size_t nelem, size_t elsize) noexcept:
    cdef size_t size = nelem * elsize
    if elsize != 0 and nelem > SIZE_MAX // elsize:
        return NULL
    if (<Tap *>ctx).off:
        return shared_calloc(ctx, nelem, elsize)
    if size < SMALL:
        return original.calloc(original.ctx, nelem, elsize)
    return take((<Tap *>ctx).heap, size, True)


cdef void *shared_malloc(void *ctx, size_t size) noexcept:
    cdef mp_heap *heap = NULL if size < SMALL else mp_heap_current()
    if heap is NULL:
        return original.malloc(original.ctx, size)
    memory = take(heap, size, False)
    drop_heap(heap)
    return memory


cdef void *shared_calloc(void *ctx, size_t nelem, size_t elsize) noexcept:
    cdef size_t size = nelem * elsize
    cdef mp_heap *heap
    if elsize != 0 and nelem > SIZE_MAX // elsize:
        return NULL
    heap = NULL if size < SMALL else mp_heap_current()
    if heap is NULL:
        return original.calloc(original.ctx, nelem, elsize)
    memory = take(heap, size, True)
    drop_heap(heap)
    return memory


cdef void any_free(void *ctx, void *ptr, size_t size) noexcept:
    cdef mp_block *block
    cdef mp_heap *heap = mp_heap_take_out(ptr, &block)
    cdef bint waited
    if heap is NULL:
        original.free(original.ctx, ptr, size)
        return
    if mp_heap_clears(heap) and block.capacity > LONG_WORK and may_run_python():
        with nogil:
            waited = mp_pool_release(block, MP_END_RELEASED)
    else:
        waited = mp_pool_release(block, MP_END_RELEASED)
    if waited and may_run_python():
        wake_owner(heap)
    drop_heap(heap)


cdef void *any_realloc(void *ctx, void *ptr, size_t size) noexcept:
    cdef size_t used
    cdef void *memory = NULL
    cdef mp_heap *waiting
    cdef mp_status status
    if not mp_heap_has(ptr, &used):
        return original.realloc(original.ctx, ptr, size)
    if size < SMALL:
        memory = move_out(ptr, used, size)
        if memory is not NULL:
            return memory
    status = mp_heap_realloc(ptr, size, &memory, &waiting)
    if status == MP_ERR_CLOSED:
        return move_out(ptr, used, size)
    if status != MP_OK:
        return NULL
    if waiting is not NULL:
        wake_later(waiting)
    return memory


cdef void *move_out(void *ptr, size_t used, size_t size) noexcept:
    """From a pool to NumPy's own memory; NULL, and nothing has changed."""
    cdef mp_block *block
    cdef mp_heap *heap
    cdef void *memory = original.malloc(original.ctx, size)
    if memory is NULL:
        return NULL
    memcpy(memory, ptr, used if used < size else size)
    heap = mp_heap_take_out(ptr, &block)
    if mp_pool_release(block, MP_END_RELEASED):
        wake_later(heap)
    drop_heap(heap)
    return memory


# ---- heaps, seen from Python: the owner is a weak reference to the pool ----


cdef bint may_run_python() noexcept nogil:
    return Py_IsInitialized() and PyGILState_Check()


cdef mp_heap *new_heap(BufferPool pool) except NULL:
    cdef mp_heap *heap
    pool._check_open()
    if mp_heap_create(pool._c, <void *>pool._weak, &heap) != MP_OK:
        raise MemoryError(f"no memory for arrays of pool {pool.name!r}")
    Py_INCREF(pool._weak)
    return heap


cdef void drop_heap(mp_heap *heap) noexcept:
    cdef PyObject *owner = <PyObject *>mp_heap_release(heap)
    if owner is not NULL and may_run_python():
        Py_DECREF(<object>owner)


cdef void wake_owner(mp_heap *heap) noexcept:
    """Somebody waits for what came back."""
    cdef PyObject *kind
    cdef PyObject *error
    cdef PyObject *traceback
    PyErr_Fetch(&kind, &error, &traceback)
    pool = (<object>mp_heap_owner(heap))()
    if pool is not None:
        wake(pool)
    PyErr_Restore(kind, error, traceback)


cdef void wake_later(mp_heap *heap) noexcept:
    """The same when the array is in order again, in the main thread. Where that is busy, the waiters look up by themselves."""
    mp_heap_retain(heap)
    if not may_run_python() or Py_AddPendingCall(wake_now, heap) != 0:
        drop_heap(heap)


cdef int wake_now(void *heap) noexcept:
    wake_owner(<mp_heap *>heap)
    drop_heap(<mp_heap *>heap)
    return 0


# ---- use_pool ----


cdef PyDataMem_Handler *default_handler() except NULL:
    """NumPy's, from which what we pass things on to is taken before it is changed."""
    global original
    cdef PyDataMem_Handler *handler
    need_numpy()
    handler = <PyDataMem_Handler *>pointer_of(<object>PyDataMem_DefaultHandler, HANDLER)
    if original.malloc is NULL:
        original = handler.allocator
    return handler


cdef object new_tap(BufferPool pool):
    cdef Tap *tap
    default_handler()
    tap = <Tap *>calloc(1, sizeof(Tap))
    if tap is NULL:
        raise MemoryError(f"no memory for arrays of pool {pool.name!r}")
    try:
        tap.heap = new_heap(pool)
        strcpy(tap.handler.name, "mempool")
        tap.handler.version = 1
        tap.handler.allocator.ctx = tap
        tap.handler.allocator.malloc = tap_malloc
        tap.handler.allocator.calloc = tap_calloc
        tap.handler.allocator.realloc = any_realloc
        tap.handler.allocator.free = any_free
        return PyCapsule_New(tap, HANDLER, free_tap)
    except:
        if tap.heap is not NULL:
            drop_heap(tap.heap)
        free(tap)
        raise


cdef void free_tap(object capsule) noexcept:
    """One after the other, as a long chain of them would be too deep for the stack."""
    cdef Tap *tap = <Tap *>pointer_of(capsule, HANDLER)
    cdef PyObject *previous = tap.previous
    cdef PyObject *below
    drop_heap(tap.heap)
    free(tap)
    while previous is not NULL:
        below = NULL
        tap = tap_of(previous)
        if tap is not NULL and refcount(previous) == 1:
            below, tap.previous = tap.previous, NULL
        Py_DECREF(<object>previous)
        previous = below


cdef Tap *tap_of(PyObject *handler) noexcept:
    """NULL if the handler is none of ours."""
    if not PyCapsule_IsValid(<object>handler, HANDLER):
        return NULL
    if destructor_of(<object>handler) != <PyCapsule_Destructor>free_tap:
        return NULL
    return <Tap *>pointer_of(<object>handler, HANDLER)


@cython.final
cdef class _PoolScope:
    """What `mempool.numpy.use_pool` returns."""

    cdef BufferPool _pool
    cdef object _capsule  # while entered

    def __init__(self):
        raise TypeError("made by mempool.numpy.use_pool()")

    def __enter__(self):
        capsule, previous = new_tap(self._pool), PyDataMem_GetHandler()
        with cython.critical_section(self):
            if self._capsule is not None:
                raise RuntimeError(f"{self!r} is entered already: nest two of them, or enter it again when it was left")
            self._capsule = capsule
        Py_INCREF(previous)
        tap_of(<PyObject *>capsule).previous = <PyObject *>previous
        try:
            PyDataMem_SetHandler(capsule)
        except:  # and yet it is set, if only the answer found no memory
            self._capsule = None
            give_up(capsule, previous)
            raise
        return self._pool

    def __exit__(self, kind, error, traceback):
        with cython.critical_section(self):
            capsule, self._capsule = self._capsule, None
        if capsule is None:
            raise RuntimeError(f"{self!r} was not entered")
        current = PyDataMem_GetHandler()
        if not is_within(capsule, current):
            raise RuntimeError(f"{self!r} was entered in another context, which keeps its pool")
        tap_of(<PyObject *>capsule).left = True
        outer = not_left(current)
        if outer is current:
            return
        try:
            PyDataMem_SetHandler(outer)
        except:
            give_up(capsule, outer)
            raise
        forget_left(current)

    def __repr__(self):
        name = None if self._pool is None else self._pool.name
        return f"<mempool.numpy.use_pool of {name!r}>"


cdef bint is_within(object capsule, object current) noexcept:
    """Whether the scope was entered in this context: it is the current one, or others were entered since."""
    cdef PyObject *handler = <PyObject *>current
    while handler is not NULL and handler is not <PyObject *>capsule:
        handler = tap_of(handler).previous if tap_of(handler) is not NULL else NULL
    return handler is not NULL


cdef object not_left(object current):
    """The innermost handler whose scope is still there; NumPy's default if none is."""
    cdef PyObject *handler = <PyObject *>current
    while handler is not NULL and tap_of(handler) is not NULL and tap_of(handler).left:
        handler = tap_of(handler).previous
    return <object>PyDataMem_DefaultHandler if handler is NULL else <object>handler


cdef int forget_left(object current) except -1:
    """They need what was before them no more; contexts that began inside them go on with them."""
    cdef Tap *tap = tap_of(<PyObject *>current)
    while tap is not NULL and tap.left:
        tap.left = False
        if tap.previous is NULL:
            break
        below = <object>tap.previous
        tap.previous = NULL
        Py_DECREF(below)  # the reference that the tap had
        current = below  # which may be the end of the tap
        tap = tap_of(<PyObject *>current)
    return 0


cdef int give_up(object capsule, object outer) except -1:
    """There was no memory to enter or leave a scope: try again, and in any case nothing more comes through it."""
    cdef Tap *tap = tap_of(<PyObject *>capsule)
    tap.left = tap.off = True
    try:
        PyDataMem_SetHandler(outer)
    except MemoryError:
        pass  # the one that the caller raises says so
    return 0


cdef BufferPool as_pool(object pool):
    if not isinstance(pool, BufferPool):
        raise TypeError(f"pool must be a BufferPool, not {pool!r}")
    (<BufferPool>pool)._check_open()
    return <BufferPool>pool


def _use_pool(pool):
    cdef _PoolScope scope
    checked = as_pool(pool)
    scope = _PoolScope.__new__(_PoolScope)
    scope._pool = checked
    return scope


# ---- install ----


def _install_pool(pool):
    global _installed
    cdef PyDataMem_Handler *handler
    cdef mp_heap *heap
    cdef mp_heap *before
    checked = as_pool(pool)
    handler = default_handler()
    with cython.critical_section(_install_turn):
        heap = new_heap(checked)
        patch(handler)
        before = mp_heap_set_current(heap)
        _installed, replaced = checked, _installed
    if before is not NULL:
        drop_heap(before)


def _uninstall_pool():
    global _installed
    cdef mp_heap *before
    with cython.critical_section(_install_turn):
        before = mp_heap_set_current(NULL)
        _installed, replaced = None, _installed
    if before is not NULL:
        drop_heap(before)


def _installed_pool():
    return _installed


cdef void patch(PyDataMem_Handler *handler) noexcept:
    """What frees comes first: another thread may allocate while we are at it."""
    global _patched
    if _patched:
        return
    handler.allocator.free = any_free
    handler.allocator.realloc = any_realloc
    atomic_thread_fence(memory_order_release)
    handler.allocator.malloc = shared_malloc
    handler.allocator.calloc = shared_calloc
    _patched = True
