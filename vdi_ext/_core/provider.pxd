from ..libvdi cimport CLSID, IClassFactory, IID, VdiGetClassObjectFn, VdiLiveObjectsFn

# Counts the forks between this process and its first ancestor; an object of another generation is inherited and inert.
cdef unsigned int fork_generation


cdef class Provider:
    cdef readonly str path
    cdef readonly bint classes_only
    cdef VdiGetClassObjectFn _get_class_object  # NULL: only the C++ classes
    cdef IClassFactory *_factory                # of the C++ classes, lives for ever; NULL where there is the above
    cdef VdiLiveObjectsFn _live_objects         # NULL: not the embedded provider
    cdef void *create_instance(self, const CLSID *clsid, const IID *iid) except NULL


# What `provider=` means: a Provider, "embedded", "system" or a path; None is the default of that half.
cdef Provider provider_for(object provider, bint server)
# A name as UTF-16 with its final zero, for LPCWSTR; VDInvalidError for one with a zero inside.
cdef bytes wide(str name)
