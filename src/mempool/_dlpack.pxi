# DLPack, version 1.x and the unversioned capsule before it. The structures are those of the specification.
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New

cdef enum:
    DL_CPU = 1
    DL_UINT = 1
    DL_MAJOR = 1
    DL_MINOR = 0
    DL_IS_COPIED = 2

ctypedef struct DLDevice:
    int32_t device_type
    int32_t device_id

ctypedef struct DLDataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

ctypedef struct DLTensor:
    void *data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

ctypedef struct DLPackVersion:
    uint32_t major
    uint32_t minor

ctypedef struct DLManagedTensorVersioned:
    DLPackVersion version
    void *manager_ctx
    void (*deleter)(DLManagedTensorVersioned *) noexcept nogil
    uint64_t flags
    DLTensor dl_tensor

ctypedef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *) noexcept nogil

# One allocation for either kind: what is managed, then its shape and strides.
ctypedef struct Versioned:
    DLManagedTensorVersioned managed
    int64_t extent[2]

ctypedef struct Unversioned:
    DLManagedTensor managed
    int64_t extent[2]


cdef void drop_holder(void *holder) noexcept nogil:
    """A consumer is done, in any thread. After the interpreter is gone the OS takes the memory."""
    if Py_IsInitialized():
        with gil:
            Py_DECREF(<object>holder)


cdef void delete_versioned(DLManagedTensorVersioned *managed) noexcept nogil:
    drop_holder(managed.manager_ctx)
    free(managed)


cdef void delete_unversioned(DLManagedTensor *managed) noexcept nogil:
    drop_holder(managed.manager_ctx)
    free(managed)


cdef void end_versioned(object capsule) noexcept:
    """A capsule that nobody consumed (a consumer renames it) still owns its tensor."""
    cdef DLManagedTensorVersioned *managed
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        managed = <DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        managed.deleter(managed)


cdef void end_unversioned(object capsule) noexcept:
    cdef DLManagedTensor *managed
    if PyCapsule_IsValid(capsule, "dltensor"):
        managed = <DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor")
        managed.deleter(managed)


cdef void fill_tensor(DLTensor *tensor, _Holder holder, int64_t *extent) noexcept:
    extent[0] = holder.nbytes
    extent[1] = 1
    tensor.data = holder.block.data
    tensor.device.device_type = DL_CPU
    tensor.device.device_id = 0
    tensor.ndim = 1
    tensor.dtype.code = DL_UINT
    tensor.dtype.bits = 8
    tensor.dtype.lanes = 1
    tensor.shape = &extent[0]
    tensor.strides = &extent[1]
    tensor.byte_offset = 0


cdef object versioned_capsule(_Holder holder, bint copied):
    cdef Versioned *made = <Versioned *>malloc(sizeof(Versioned))
    if made is NULL:
        raise MemoryError("no memory for a DLPack capsule")
    made.managed.version.major = DL_MAJOR
    made.managed.version.minor = DL_MINOR
    made.managed.flags = DL_IS_COPIED if copied else 0
    made.managed.deleter = delete_versioned
    made.managed.manager_ctx = <void *>holder
    fill_tensor(&made.managed.dl_tensor, holder, made.extent)
    try:
        capsule = PyCapsule_New(&made.managed, "dltensor_versioned", end_versioned)
    except:
        free(made)
        raise
    Py_INCREF(holder)
    return capsule


cdef object unversioned_capsule(_Holder holder):
    cdef Unversioned *made = <Unversioned *>malloc(sizeof(Unversioned))
    if made is NULL:
        raise MemoryError("no memory for a DLPack capsule")
    made.managed.deleter = delete_unversioned
    made.managed.manager_ctx = <void *>holder
    fill_tensor(&made.managed.dl_tensor, holder, made.extent)
    try:
        capsule = PyCapsule_New(&made.managed, "dltensor", end_unversioned)
    except:
        free(made)
        raise
    Py_INCREF(holder)
    return capsule


cdef object dlpack_capsule(Buffer buffer, object stream, object max_version, object dl_device, object copy):
    """See `Buffer.__dlpack__`."""
    if stream is not None:
        raise BufferError(f"memory on the CPU has no stream, got stream={stream!r}")
    if dl_device is not None and tuple(dl_device) != (DL_CPU, 0):
        raise BufferError(f"cannot export to device {dl_device!r}: the memory is on the CPU, (1, 0)")
    versioned = False
    if max_version is not None:
        major, _ = max_version  # not by index: bounds are not checked here
        versioned = major >= DL_MAJOR
    buffer._lent()
    if copy:
        buffer = copy_of(buffer)
    with cython.critical_section(buffer):
        holder = buffer._hold()
    return versioned_capsule(holder, bool(copy)) if versioned else unversioned_capsule(holder)


cdef Buffer copy_of(Buffer buffer):
    """A copy in a lease of the same pool, whose end is the end of its views."""
    cdef Buffer copy
    cdef _Holder holder
    with cython.critical_section(buffer):
        holder = buffer._hold()
    copy = buffer._pool._acquire_now(holder.nbytes)
    copy._flags |= OURS
    memcpy(copy._block.data, holder.block.data, holder.nbytes)
    return copy
