from ..libvdi cimport HRESULT, VDC_Command
from .command cimport Command
from .refs cimport DeviceRef


cdef class VirtualDevice:
    cdef object __weakref__
    cdef readonly str name
    cdef DeviceRef _ref     # keeps the native device and the set

    cdef Command _next(self, object timeout)
    cdef HRESULT _wait(self, object timeout, VDC_Command **p_command) except? -1


cdef VirtualDevice new_device(DeviceRef ref, str name)
