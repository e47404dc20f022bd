# What the process knows of itself: which pools and slabs live, what they hold, what the OS says; and what makes memory leave.
cdef object _file_key = iter(range(1, 1 << 62))
cdef dict _alive_files = {}  # weak references to arrays in files


cdef list those_alive(dict references):
    """The objects, oldest first. They may be closed, or just about to be made."""
    cdef list alive = []
    for ref in list(references.values()):
        found = ref()
        if found is not None:
            alive.append(found)
    return alive


cdef list living_pools():
    cdef BufferPool pool
    cdef list alive = []
    for pool in those_alive(_alive_pools):
        if pool.account is not None:
            alive.append(pool)
    return alive


cdef int note_file(MappedArray array) except -1:
    key = next(_file_key)
    _alive_files[key] = weak_reference(array, _Forget(_alive_files, key))
    return 0


def _pools():
    """Return every `BufferPool` that lives, oldest first; closed ones too."""
    return living_pools()


def _slabs():
    """Return every `SlabAllocator` that lives, oldest first; closed ones too."""
    cdef SlabAllocator slab
    cdef list alive = []
    for slab in those_alive(_alive_slabs):
        if slab.account is not None:
            alive.append(slab)
    return alive


def _idle_of_pools():
    """Return ``(account, bytes)`` of each pool that could lend some at once."""
    cdef BufferPool pool
    cdef size_t idle
    cdef list found = []
    for pool in living_pools():
        idle = mp_pool_idle(pool._c)
        if idle > 0:
            found.append((pool.account, idle))
    return found


cdef size_t idle_under(mp_account *account) except? 0:
    """Bytes that the pools below an account could lend at once."""
    cdef BufferPool pool
    cdef size_t idle = 0
    for pool in living_pools():
        if mp_account_is_under(pool.account._c, account):
            idle += mp_pool_idle(pool._c)
    return idle


def _external():
    """Return bytes as ``(reserved, idle, mapped)``: what all accounts hold, what of it pools could lend, what of it is in files."""
    cdef size_t reserved, mapped = 0
    cdef size_t idle = idle_under(_root._c)
    cdef Account files = _array_accounts.get("mapped files")
    if files is not None:
        mapped = mp_account_used(files._c)
    reserved = mp_account_used(_root._c)
    return reserved, min(idle, reserved), min(mapped, reserved)


def _process_memory():
    """Return bytes as ``(rss, peak)``: what the process has in memory, now and at most. `OSError` where the OS does not say."""
    cdef size_t rss = 0, peak = 0
    cdef mp_status status
    with nogil:
        status = mp_process_memory(&rss, &peak)
    if status != MP_OK:
        raise OSError("the OS does not say how much memory this process has")
    return rss, peak


def _machine_memory():
    """Return bytes as ``(total, available)``. `OSError` where the OS does not say."""
    cdef size_t total = 0, available = 0
    cdef mp_status status
    with nogil:
        status = mp_machine_memory(&total, &available)
    if status != MP_OK:
        raise OSError("the OS does not say how much memory this machine has")
    return total, available


def _malloc_trim():
    """Have the C library give freed memory back to the OS; True if some went. False, too, where it cannot."""
    cdef bint some
    with nogil:
        some = mp_malloc_trim()
    return some


def _page_out():
    """Ask the OS to take the pages of all arrays in files out of memory; bytes that it was asked for. No content is lost."""
    cdef MappedArray array
    cdef size_t asked = 0
    for array in those_alive(_alive_files):
        held = array._hold()  # so that the end of the memory is a view's
        if held is not None:
            with nogil:
                asked += mp_mapping_page_out(array._c)
    return asked
