# How mapped arrays begin: what a file's header and the caller say of its content, agreed and checked before anything is mapped.
cdef object _os, _os_open, _fspath, _isdir, _errno, _npy
import os as _os
import errno as _errno
from os import fspath as _fspath, open as _os_open
from os.path import isdir as _isdir

# More addresses than the file needs, so that it can grow in place. They take no memory.
cdef size_t GROWTH_ROOM = (<size_t>16) << 30
# Enough for the header of any plain array, in one read.
cdef enum:
    FIRST_READ = 512
# What indices and offsets can count.
cdef size_t MOST_BYTES = SIZE_MAX // 2

cdef dict OPEN_FLAGS = {
    "r": _os.O_RDONLY,
    "c": _os.O_RDONLY,
    "r+": _os.O_RDWR,
    "w+": _os.O_RDWR | _os.O_CREAT,
}
# A pipe that nobody writes must not hang who opens it by mistake.
cdef int OPEN_ALWAYS = getattr(_os, "O_NONBLOCK", 0) | getattr(_os, "O_BINARY", 0)


@cython.final
cdef class _Content:
    """What lies where in a file."""

    cdef object dtype          # None: not said yet
    cdef npy_intp dims[64]
    cdef int ndim              # -1: not said yet
    cdef bint fortran
    cdef uint64_t offset       # of the first element
    cdef bytes header          # of the file; None if there is none
    cdef bint header_first     # it begins the file


def open_array(path, mode="r", *, dtype=None, shape=None, offset=0, order="C"):
    """Map an array in a file.

    Parameters
    ----------
    path : str, bytes or os.PathLike
        A regular file.
    mode : {"r", "r+", "w+", "c"}
        As `numpy.memmap`: read-only; read and write; make a raw file of zeros, or overwrite one; private copy, whose changes never
        reach the file.
    dtype : dtype-like or None
        None: the file has a .npy header, of version 1.0 to 3.0. Otherwise the content is raw; if there is a header all the same,
        `dtype` and `shape` have to agree with it.
    shape : int, tuple of int or None
        None: as the header says, or one dimension up to the end of the file.
    offset : int
        Where header or raw content begin in the file, in bytes; any number.
    order : {"C", "F"}
        Of raw content: row-major or column-major.

    Returns
    -------
    MappedArray

    Raises
    ------
    MappingError
        The file is no regular one, shorter than header or shape say, or its header is broken or of objects.
    OSError
        The file cannot be opened so.
    ValueError, TypeError
        Arguments that make no sense, or contradict the header; the value is named.

    Examples
    --------
    >>> import mempool, numpy, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.npy")
    >>> numpy.save(path, numpy.arange(6.0).reshape(2, 3))
    >>> with mempool.open_array(path) as a:
    ...     a.array[1].tolist()
    [3.0, 4.0, 5.0]
    """
    cdef _Content content = read_arguments(dtype, shape, offset, order)
    path = _fspath(path)
    if not isinstance(mode, str) or mode not in OPEN_FLAGS:
        raise ValueError(f"mode must be one of {', '.join(OPEN_FLAGS)}, not {mode!r}")
    if mode == "w+":
        if content.dtype is None or content.ndim < 0:
            raise ValueError("mode 'w+' needs dtype and shape")
        size = content.offset + content_bytes(content)
        if size > MOST_BYTES:
            raise ValueError(f"a file of {size} bytes is too large")
        return open_new(path, content, size)
    file = _os_open(path, OPEN_FLAGS[mode] | OPEN_ALWAYS)
    try:
        read_content(content, file, path)
        return map_file(content, file, path, mode, False)
    except:
        _os.close(file)
        raise


cdef _Content read_arguments(object dtype, object shape, object offset, object order):
    cdef _Content content = _Content.__new__(_Content)
    content.fortran = array_flags(order) == NPY_ARRAY_FARRAY
    if offset is not 0:
        content.offset = to_extent(offset, "offset")
    content.ndim = -1
    need_numpy()
    if dtype is not None:
        content.dtype = plain_dtype(dtype)
    if shape is not None:
        content.ndim = read_shape(shape, content.dims)
    if content.dtype is not None:
        absorb_subarray(content)
        if content.ndim >= 0:
            content_bytes(content)
    return content


cdef object plain_dtype(object dtype):
    cdef PyArray_Descr *descr = NULL
    PyArray_DescrConverter(dtype, &descr)
    made = <object>descr
    Py_DECREF(made)
    check_plain(descr)
    return made


cdef int absorb_subarray(_Content content) except -1:
    """An array of sub-arrays has their axes behind its own, as NumPy has it."""
    if content.dtype.subdtype is None:
        return 0
    base, inner = content.dtype.subdtype
    if content.ndim < 0:
        raise ValueError(f"dtype {content.dtype} is a sub-array: give its base, and a shape")
    if content.ndim + len(inner) > NPY_MAXDIMS:
        raise ValueError(f"an array has at most {NPY_MAXDIMS} dimensions, not {content.ndim + len(inner)}")
    for extent in inner:
        content.dims[content.ndim] = extent
        content.ndim += 1
    content.dtype = base
    return 0


cdef tuple shape_of(_Content content):
    cdef int i
    extents = []
    for i in range(content.ndim):
        extents.append(content.dims[i])
    return tuple(extents)


cdef object content_bytes(_Content content):
    """Bytes of all elements; strides of arrays without elements have to fit too."""
    cdef int i
    nbytes = PyDataType_ELSIZE(<PyArray_Descr *><PyObject *>content.dtype)
    strides = nbytes
    for i in range(content.ndim):
        nbytes = nbytes * content.dims[i]
        strides = strides * max(1, content.dims[i])
    if strides > MOST_BYTES:
        raise ValueError(f"shape {shape_of(content)} of {content.dtype} is larger than any memory: {strides} bytes")
    return nbytes


# ---- an existing file ----


cdef uint64_t regular_size(int file, object path) except? 0:
    cdef uint64_t size = 0
    cdef int error = 0
    cdef mp_status status
    with nogil:
        status = mp_file_size(file, &size, &error)
    if status == MP_ERR_OS:
        raise os_error(error, path)
    if status != MP_OK and _isdir(path):
        raise os_error(_errno.EISDIR, path)
    if status != MP_OK:
        raise MappingError(f"{path!r} is no regular file: it cannot be mapped")
    return size


cdef size_t read_file(int file, uint64_t at, char *out, size_t size, object path) except? 0:
    cdef int error = 0
    cdef mp_status status
    with nogil:
        status = mp_file_read(file, at, out, &size, &error)
    if status != MP_OK:
        length = regular_size(file, path)  # what cannot be read is seldom a file
        if at > length:
            raise MappingError(f"{path!r} has {length} bytes, offset {at} is behind its end")
        raise os_error(error, path)
    return size


cdef int read_content(_Content content, int file, object path) except -1:
    """Header and caller have to agree. Whether the file is as long as they say is seen when it is mapped."""
    cdef char head[FIRST_READ]
    cdef size_t length = 0
    if content.dtype is None or content.offset == 0:
        length = read_file(file, content.offset, head, FIRST_READ, path)
    if content.dtype is None or (length >= 6 and memcmp(head, b"\x93NUMPY", 6) == 0):
        read_header(content, file, head, length, path)
    elif content.ndim < 0:
        count_elements(content, regular_size(file, path), path)
    return 0


cdef int count_elements(_Content content, uint64_t size, object path) except -1:
    cdef Py_ssize_t itemsize = PyDataType_ELSIZE(<PyArray_Descr *><PyObject *>content.dtype)
    left = <int64_t>size - <int64_t>content.offset
    if left < 0:
        raise MappingError(f"{path!r} has {size} bytes, offset {content.offset} is behind its end")
    if left % itemsize:
        raise ValueError(f"{left} bytes of {path!r} are no multiple of the item size of {content.dtype}, {itemsize}")
    content.ndim, content.dims[0] = 1, left // itemsize
    return 0


cdef int read_header(_Content content, int file, char *head, size_t length, object path) except -1:
    cdef mp_npy found
    cdef bytes header
    if mp_npy_measure(head, length, &found) != MP_OK:
        hint = "" if content.dtype is not None else "; for raw content give a dtype"
        raise MappingError(f"{path!r}: {found.problem.decode()}{hint}")
    header = whole_header(file, content.offset, found.data_offset, path)
    if mp_npy_parse(header, found.data_offset, &found) != MP_OK:  # writes into it: nobody else has it yet
        raise MappingError(f"{path!r} has a broken header: {found.problem.decode()}")
    use_header(content, &found, header, path)
    content.header = header
    content.header_first = content.offset == 0
    content.offset += found.data_offset
    return 0


cdef bytes whole_header(int file, uint64_t at, size_t length, object path):
    cdef bytes header = PyBytes_FromStringAndSize(NULL, length)
    cdef size_t got = read_file(file, at, header, length, path)
    if got < length:
        raise MappingError(f"{path!r} ends within its header: {length} bytes are needed, {got} there")
    return header


cdef int use_header(_Content content, mp_npy *found, bytes header, object path) except -1:
    cdef unsigned i
    cdef _Content told = _Content.__new__(_Content)
    told.dtype = header_dtype(found, header, path)
    told.fortran = found.fortran_order
    told.ndim = found.ndim
    for i in range(found.ndim):
        if found.shape[i] > MOST_BYTES:
            raise MappingError(f"{path!r} has a header of an extent that no memory has: {found.shape[i]}")
        told.dims[i] = found.shape[i]
    try:
        content_bytes(told)
        absorb_subarray(told)
    except ValueError as error:
        raise MappingError(f"{path!r} has a header that cannot be: {error}") from None
    check_agreement(content, told, path)
    content.dtype, content.fortran, content.ndim = told.dtype, told.fortran, told.ndim
    content.dims = told.dims
    return 0


cdef int check_agreement(_Content given, _Content told, object path) except -1:
    """What the caller said must be what the header says."""
    if given.dtype is not None and given.dtype != told.dtype:
        raise ValueError(f"dtype {given.dtype} was asked for, the header of {path!r} says {told.dtype}")
    if given.ndim >= 0 and shape_of(given) != shape_of(told):
        raise ValueError(f"shape {shape_of(given)} was asked for, the header of {path!r} says {shape_of(told)}")
    if given.fortran and not told.fortran and told.ndim > 1:
        raise ValueError(f"order 'F' was asked for, the header of {path!r} says 'C'")
    return 0


cdef object header_dtype(mp_npy *found, bytes header, object path):
    cdef PyArray_Descr *descr = NULL
    text = header[found.descr_start:found.descr_stop]
    quoted = text[:1] in (b"'", b'"') and b"\\" not in text
    try:
        text = text.decode("utf8" if found.major == 3 else "latin1")
        dtype = _numpy_dtype(text[1:len(text) - 1]) if quoted else need_npy().dtype_from_descr(text)
        descr = <PyArray_Descr *><PyObject *>dtype
        check_plain(descr)
    except MemoryError:
        raise
    except Exception as error:
        raise MappingError(f"{path!r} has a header of a dtype that cannot be mapped, {text[:200]}: {error}") from None
    return dtype


cdef object need_npy():
    global _npy
    if _npy is None:
        from mempool import _npy as module
        _npy = module
    return _npy


# ---- a new file ----


cdef object open_new(object path, _Content content, object size):
    """Mode "w+". A file that is there keeps its content if it cannot be made as long as needed."""
    try:
        file, made = _os_open(path, OPEN_FLAGS["w+"] | _os.O_EXCL | OPEN_ALWAYS, 0o666), True
    except FileExistsError:
        file, made = _os_open(path, OPEN_FLAGS["w+"] | OPEN_ALWAYS, 0o666), False
    try:
        return map_blank(content, file, path, size)
    except:
        if made:
            _os.unlink(path)
        raise


cdef object map_blank(_Content content, int file, object path, object size):
    """Nothing of what was in the file goes before all that can be refused was granted."""
    cdef MappedArray array
    cdef int error = 0
    cdef mp_status status
    cdef bint longer = False
    cdef uint64_t before = 0
    try:
        before = regular_size(file, path)
        longer = before < size
        if longer:
            _os.truncate(file, size)
        array = map_file(content, file, path, "w+", True)
    except:
        if longer and regular_size(file, path) == size:
            _os.truncate(file, before)
        _os.close(file)
        raise
    with nogil:
        status = mp_mapping_make_blank(array._c, &error)
    array._check(status, error)
    return array


def create_array(path, shape, dtype, *, order="C", overwrite=False):
    """Make a .npy file of zeros, sparse where the file system can, and map it for reading and writing.

    The file appears under its name only when it is whole. With `overwrite` it takes the place of the old one, which stays what it
    is for those who map it. The header has room for more rows.

    Parameters
    ----------
    path : str, bytes or os.PathLike
    shape : int or tuple of int
    dtype : dtype-like
        Anything but object types.
    order : {"C", "F"}
        Row-major or column-major; only the first can grow.
    overwrite : bool
        False: `FileExistsError` if there is such a file.

    Returns
    -------
    MappedArray

    Raises
    ------
    OSError
        If the file is there, or cannot be made.
    ValueError, TypeError
        Arguments that make no sense; the value is named.
    """
    if shape is None or dtype is None:
        raise TypeError(f"shape and dtype must be given, not {shape!r} and {dtype!r}")
    cdef _Content content = read_arguments(dtype, shape, 0, order)
    path = _fspath(path)
    replaces = check_bool(overwrite, "overwrite")
    content.header = need_npy().header_bytes(content.dtype, shape_of(content), order)
    content.header_first = True
    content.offset = len(content.header)
    size = content.offset + content_bytes(content)
    if size > MOST_BYTES:
        raise ValueError(f"a file of {size} bytes is too large")
    draft = need_npy().Draft(path, content.header, size, replaces)
    try:
        array = place_array(content, draft, path)
    finally:
        draft.discard()
    return array


cdef object place_array(_Content content, object draft, object path):
    """Mapped first and named last, so that a failure leaves nothing behind; an open file of Windows cannot be renamed."""
    if ON_WINDOWS:
        draft.place()
    file = _os_open(draft.where, OPEN_FLAGS["r+"] | OPEN_ALWAYS)
    try:
        array = map_file(content, file, path, "w+", True)
    except:
        _os.close(file)
        raise
    if not ON_WINDOWS:
        draft.place()
    (<MappedArray>array)._folder = draft.folder
    return array


def anonymous_array(shape, dtype, *, max_rows=None, shared=False):
    """Map an array of zeros that is in no file.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : dtype-like
        Anything but object types.
    max_rows : int or None
        How many rows it may grow to in place; addresses are reserved for them. None: as many as it has.
    shared : bool
        True: processes that are forked from this one see the same memory.

    Returns
    -------
    MappedArray
        In C order.

    Raises
    ------
    AccountLimitExceeded
        An account's limit would be passed.
    ValueError, TypeError
        Arguments that make no sense; the value is named.
    """
    if shape is None or dtype is None:
        raise TypeError(f"shape and dtype must be given, not {shape!r} and {dtype!r}")
    cdef _Content content = read_arguments(dtype, shape, 0, "C")
    cdef mp_mapping_config config
    rows = content.dims[0] if content.ndim else 1
    most = rows if max_rows is None else to_extent(max_rows, "max_rows")
    if content.ndim == 0 and max_rows is not None:
        raise ValueError("an array without a dimension has no rows to grow by")
    if most < rows:
        raise ValueError(f"max_rows {most} is less than the {rows} rows to begin with")
    config.file = -1
    config.max_rows = most
    config.shared = check_bool(shared, "shared")
    config.fresh = True
    return map_content(content, &config, None, "w+")


# ---- the mapping ----


cdef object map_file(_Content content, int file, object path, str mode, bint fresh):
    cdef mp_mapping_config config
    cdef size_t row, room
    config.file = file
    config.max_rows = 0
    config.shared = False
    config.fresh = fresh
    if mode in ("r+", "w+") and content.ndim > 0 and not is_fortran(content) and (content.header is None or content.header_first):
        row = row_bytes(content)
        room = max(GROWTH_ROOM, <size_t>content.dims[0] * row)
        config.max_rows = <size_t>content.dims[0] + room // (row if row > 0 else 1)
    return map_content(content, &config, path, mode)


cdef bint is_fortran(_Content content):
    return content.fortran and content.ndim > 1


cdef size_t row_bytes(_Content content) except? 0:
    cdef size_t nbytes = PyDataType_ELSIZE(<PyArray_Descr *><PyObject *>content.dtype)
    cdef int i
    for i in range(1, content.ndim):
        nbytes *= content.dims[i]
    return nbytes


cdef object map_content(_Content content, mp_mapping_config *config, object path, str mode):
    """The one place where a MappedArray begins. The file is its own from here on."""
    cdef MappedArray array = MappedArray.__new__(MappedArray)
    cdef mp_account *binding = NULL
    cdef mp_status status
    cdef int error = 0, tries = 0
    array._dims = content.dims
    array._ndim = content.ndim
    array.dtype = content.dtype
    array.path = path
    array.mode = mode
    array._is_file = config.file >= 0
    array._by_rows = content.ndim > 0 and not is_fortran(content)
    array._header_inside = content.header is not None and not content.header_first
    array._row_bytes = row_bytes(content) if array._by_rows else content_bytes(content)
    config.row_bytes = array._row_bytes
    config.rows = content.dims[0] if array._by_rows else 1
    config.max_rows = max(config.max_rows, config.rows)
    config.access = MP_ACCESS_READ if mode == "r" else MP_ACCESS_COPY if mode == "c" else MP_ACCESS_WRITE
    config.offset = content.offset
    config.header = NULL
    if config.max_rows > config.rows and content.header is not None:
        config.header = content.header
        config.header_size = len(content.header)
    config.account = array._account()._c
    config.source = NULL
    while True:
        with nogil:
            status = mp_mapping_create(config, &array._c, &binding, &error)
        if status != MP_ERR_ACCOUNT or not room_in_account(array._account(), binding, config.rows * config.row_bytes, &tries):
            break
    if status != MP_OK:
        array._c = NULL
        refuse(array, content, status, error, binding, config)
    array._layout = layout_of(array, is_fortran(content), mode == "r")
    array._trace()
    if array._is_file:
        note_file(array)
    grew(config.rows * config.row_bytes)
    return array


cdef int refuse(
    MappedArray array, _Content content, mp_status status, int error, mp_account *binding, mp_mapping_config *config
) except -1:
    if status == MP_ERR_ACCOUNT:
        raise _account_error(array._account(), binding, config.rows * config.row_bytes)
    if status == MP_ERR_LOST:
        size = regular_size(config.file, array.path)
        raise MappingError(
            f"{array.path!r} has {size} bytes, too few for shape {shape_of(content)} of {content.dtype} from byte {content.offset}"
        )
    if status == MP_ERR_INVALID:
        if array._is_file:
            regular_size(config.file, array.path)
        raise ValueError(f"shape {shape_of(content)} of {content.dtype} from byte {content.offset} cannot be addressed")
    array._check(status, error)
    return 0


cdef int layout_of(MappedArray array, bint fortran, bint readonly):
    cdef mp_mapping_state state
    cdef int flags = NPY_ARRAY_FARRAY if fortran else NPY_ARRAY_CARRAY
    mp_mapping_look(array._c, &state)
    if readonly:
        flags &= ~NPY_ARRAY_WRITEABLE
    if <uintptr_t>state.data % <uintptr_t>PyDataType_ALIGNMENT(<PyArray_Descr *><PyObject *>array.dtype):
        flags &= ~NPY_ARRAY_ALIGNED
    return flags


def guard_truncation():
    """From now on, touching memory that a truncated file took away reads zeros instead of ending the process with a bus error.

    Installs a handler for SIGBUS, which deals with lost pages of mapped arrays only and passes every other fault on to the handler
    that was there before. Each array that lost something says so: `truncated`, and `MappingError` at its next use. Idempotent; a
    handler that is installed later comes first (enable `faulthandler` before).

    Raises
    ------
    OSError
        Where the OS has no such signal.
    """
    cdef int error = 0
    cdef mp_status status
    with nogil:
        status = mp_guard_truncation(&error)
    if status == MP_ERR_OS:
        raise os_error(error, None)
    if status != MP_OK:
        raise MemoryError("no memory for the handler of lost pages")
