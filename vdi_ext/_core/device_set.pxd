from .refs cimport SetRef


cdef class VirtualDeviceSet:
    cdef object __weakref__
    cdef SetRef _ref            # owns the native set; devices, commands and mapped buffers hold it too
    cdef object _instance       # str, or None for the default one
    cdef object _config         # as asked for, then as decided
    cdef bint _secondary

    cdef SetRef _use(self)
    cdef object _configure(self, object timeout)
