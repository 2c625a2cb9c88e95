from ..libvdi cimport BYTE, DWORD, DWORDLONG, HRESULT, VDC_Command
from .refs cimport DeviceRef


cdef class Command:
    cdef object __weakref__
    cdef DeviceRef _device          # keeps device and set, and so the buffer's mapping, as long as a view keeps us
    cdef VDC_Command *_c            # taken out before it is completed: NULL from then on
    cdef BYTE *_buffer
    cdef DWORD _code
    cdef DWORD _size
    cdef DWORDLONG _position
    cdef Py_ssize_t _exports        # live views of data and prefix zone
    cdef Py_ssize_t _length         # the views' shape
    cdef bint _deferred             # completion waits for the last view
    cdef DWORD _deferred_code

    cdef bint _carries_data(self) noexcept
    cdef bint _outstanding(self) noexcept
    cdef int _check_outstanding(self) except -1
    cdef HRESULT _finish(self, DWORD code, DWORD transferred, DWORDLONG position) noexcept
    cdef HRESULT _give_up(self, DWORD code) noexcept
    cdef int _export(self) except -1
    cdef void _release(self) noexcept


cdef Command new_command(DeviceRef device, VDC_Command *c)
cdef int fill_buffer(
    object exporter, Py_buffer *view, int flags, void *data, Py_ssize_t *length, bint readonly
) except -1
