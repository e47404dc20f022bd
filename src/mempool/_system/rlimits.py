"""Limits of the process itself: ``RLIMIT_AS`` and ``RLIMIT_DATA``. Linux does not enforce ``RLIMIT_RSS``, so it binds nobody."""

__all__ = ["address_space", "data"]


def address_space() -> int | None:
    """Return the most bytes of address space that the process may take; None: unlimited, or the system has no such limit."""
    return _soft("RLIMIT_AS")


def data() -> int | None:
    """Return the most bytes of private writable mappings; None as for `address_space`."""
    return _soft("RLIMIT_DATA")


def _soft(name: str) -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    which = getattr(resource, name, None)
    if which is None:
        return None
    soft = resource.getrlimit(which)[0]
    unlimited = soft == resource.RLIM_INFINITY or soft < 0 or soft >= 1 << 62
    return None if unlimited else soft
