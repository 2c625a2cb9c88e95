"""From HRESULT to exception; `check` fits into a line that runs without the GIL."""
from .errors import error_from_hresult

from .libvdi cimport HRESULT


cdef int check(HRESULT hr, const char *op) except -1 nogil:
    if hr >= 0:
        return 0
    return _raise(hr, op)


cdef int _raise(HRESULT hr, const char *op) except -1 with gil:
    raise error_from_hresult(hr, op.decode("ascii"))
