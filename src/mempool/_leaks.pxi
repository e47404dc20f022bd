# Leak detection: where a lease was acquired, and the warning if nobody released it.
cdef object LEAK_MODES, lookup, parse_leak_mode, parse_limit
from mempool.settings import LEAK_MODES, lookup, parse_leak_mode, parse_limit

cdef enum:
    LEAKS_OFF = 0
    LEAKS_SAMPLED = 1
    LEAKS_FULL = 2
    SAMPLE_EVERY = 128
    STACK_DEPTH = 32


cdef int leak_mode(object value) except -1:
    """None: what `configure` or the environment says, else full under ``python -X dev``."""
    if value is None:
        value = lookup("leak_detection")
    if value is None:
        value = "full" if _sys.flags.dev_mode else "off"
    return LEAK_MODES.index(parse_leak_mode(value))


cdef tuple whereabouts():
    """The module that runs, and the frames as (file name, line, function), innermost first, without this package's own."""
    cdef list stack = []
    try:
        frame = _sys._getframe(0)
    except ValueError:  # a thread whose whole work is one call into compiled code
        return "<unknown>", (("<unknown>", 0, "<unknown>"),)
    module = frame.f_globals.get("__name__", "<unknown>")
    while isinstance(module, str) and module.startswith("mempool.") and frame.f_back is not None:
        frame = frame.f_back
        module = frame.f_globals.get("__name__", "<unknown>")
    while frame is not None and len(stack) < STACK_DEPTH:
        stack.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    PyErr_Clear()  # without memory `f_back` is None and leaves its error behind; a shorter stack will do
    return module, tuple(stack)


cdef int note_origin(Buffer buffer) except -1:
    """Remember who acquires, in the mode of the pool."""
    cdef BufferPool pool = buffer._pool
    if pool._leaks == LEAKS_SAMPLED:
        pool._draw += 1
        if pool._draw % SAMPLE_EVERY:
            return 0
    origin = (<Py_ssize_t>buffer._block.requested, *whereabouts())
    Py_INCREF(origin)
    buffer._origin = <PyObject *>origin
    buffer._flags |= WATCHED
    return 0


cdef void warn_of_leak(tuple origin, BufferPool pool) noexcept:
    """Blames the line that acquired. Where a filter makes it an error, nobody can catch that here: it is reported as unraisable."""
    nbytes, module, stack = origin
    text = f"Buffer of {nbytes} bytes from pool {pool.name!r} was never released; acquired at:"
    for file, line, function in reversed(stack):
        text += f'\n  File "{file}", line {line}, in {function}'
    PyErr_WarnExplicitObject(ResourceWarning, text, stack[0][0], stack[0][1], module, NULL)
