from .libvdi cimport HRESULT


cdef int check(HRESULT hr, const char *op) except -1 nogil
