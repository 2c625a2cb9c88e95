from ..libvdi cimport BYTE, VdiBufferInfo
from .command cimport Command
from .refs cimport SetRef


cdef class MappedBuffer:
    cdef object __weakref__
    cdef SetRef _set            # keeps the mapping
    cdef readonly object handle
    cdef BYTE *_buffer          # NULL once released
    cdef VdiBufferInfo _info    # what the provider says of it
    cdef Py_ssize_t _length     # the views' shape
    cdef Py_ssize_t _exports    # live views

    cdef int _check_lent(self) except -1


cdef object handle_of(SetRef ref, Command command, object instance)
cdef MappedBuffer map_handle(SetRef ref, object handle, object instance, bint trusted)
