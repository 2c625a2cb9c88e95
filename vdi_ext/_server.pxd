from ._core.provider cimport Provider
from .libvdi cimport DWORD, HRESULT, IServerVirtualDeviceSet2, IVdiEmbeddedSet


cdef class ServerCore:
    cdef IServerVirtualDeviceSet2 *set  # one reference
    cdef IVdiEmbeddedSet *embedded      # one reference; NULL with a foreign provider
    cdef unsigned int forks
    cdef Py_ssize_t exports             # views of buffers
    cdef bint opened
    cdef bint closing                   # no new use
    cdef bint put_off                   # whoever drops the last view or leaves the agent closes
    cdef bint closed                    # Close has been called
    cdef bint starting                  # an own agent thread was started and has not arrived yet
    cdef bint agent                     # a thread is in ExecuteCompletionAgent
    cdef object agent_ident             # that thread
    cdef object idle                    # Event: no agent
    cdef object failure                 # what a callback raised and nobody has heard of yet
    cdef Provider provider              # keeps the library loaded
    cdef object __weakref__

    cdef IServerVirtualDeviceSet2 *native(self, str operation) except NULL
    cdef object error(self, HRESULT hr, str operation)
    cdef int check(self, HRESULT hr, str operation) except -1
    cdef DWORD state(self)
    cdef create(self, object provider)
    cdef HRESULT open(self, bytes instance, bytes name) except? -1
    cdef HRESULT request_buffers(self, DWORD size, DWORD alignment, DWORD count)
    cdef HRESULT end_configuration(self)
    cdef HRESULT abort(self, str reason) except? -1
    cdef fail(self, object error)
    cdef raise_failure(self)
    cdef HRESULT close(self)
    cdef close_if_unused(self)
    cdef HRESULT run_agent(self, bint own) except? -1
    cdef run_own_agent(self)
    cdef await_aborted_agent(self)
    cdef leave(self, double deadline)


cdef void report(object error, object where) noexcept
