# cython: annotation_typing=False
"""Libraries that implement the interface: the embedded provider, SQL Server's own, or any other."""
import errno
import os

from ..errors import VDInvalidError, VDNotSupportedError

cimport cython
from .._errors cimport check
from ..libvdi cimport (
    CLSID,
    HRESULT,
    IID,
    IClassFactory,
    IID_IClassFactory,
    VD_E_INVALID,
    VD_E_NOTSUPPORTED,
    VdiGetClassObjectFn,
    VdiLiveObjectsFn,
)


cdef extern from "<dlfcn.h>" nogil:
    const int RTLD_NOW
    const int RTLD_LOCAL
    const int RTLD_NODELETE
    void *dlopen(const char *path, int flags)
    void *dlsym(void *library, const char *name)
    char *dlerror()

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)


cdef void _count_fork() noexcept nogil:
    global fork_generation
    fork_generation += 1


# At the level of C, so that a fork from native code counts too.
if pthread_atfork(NULL, NULL, _count_fork) != 0:
    raise MemoryError("pthread_atfork failed")

cdef str _EMBEDDED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "provider",
                                  "libsqlvdi.so")
cdef str _SYSTEM = "/opt/mssql/lib/libsqlvdi.so"


@cython.final
cdef class Provider:
    """A library that implements the interface, loaded into this process for as long as the process lives.

    Made by `embedded`, `system` and `load`. May be used from any thread, and in a forked child as well.

    Attributes
    ----------
    path : str
        The library's file.

    Wraps: DllGetClassObject (vdi_provider.h)
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("use Provider.embedded(), Provider.system() or Provider.load(path)")

    def __reduce__(self):
        raise TypeError("a Provider belongs to its process; pass its path")

    def __repr__(self) -> str:
        return f"<Provider {self.path!r}>"

    @staticmethod
    def embedded() -> Provider:
        """Return the provider that comes with this package.

        Raises
        ------
        FileNotFoundError
            It was not built.
        """
        if not os.path.exists(_EMBEDDED):
            raise FileNotFoundError(
                errno.ENOENT, "the embedded provider is not built; run python setup.py build_ext --inplace", _EMBEDDED
            )
        return Provider.load(_EMBEDDED)

    @staticmethod
    def system() -> Provider:
        """Return the component that SQL Server installs.

        Raises
        ------
        FileNotFoundError
            SQL Server is not installed here.
        VDNotSupportedError
            The installed library can not be entered.
        """
        if not os.path.exists(_SYSTEM):
            raise FileNotFoundError(
                errno.ENOENT,
                "SQL Server's virtual device library is not installed; install SQL Server on this machine, "
                "or use Provider.embedded()",
                _SYSTEM,
            )
        return Provider.load(_SYSTEM)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Provider:
        """Load a library by path.

        Parameters
        ----------
        path : str or os.PathLike
            A shared library that exports ``DllGetClassObject``. It runs with all rights of this process.

        Raises
        ------
        FileNotFoundError
            No such file.
        OSError
            The file can not be loaded; the message is the loader's.
        VDNotSupportedError
            The library has no ``DllGetClassObject``.
        """
        cdef str where = os.path.abspath(os.fsdecode(path))
        if not os.path.exists(where):
            raise FileNotFoundError(errno.ENOENT, "no such provider library", where)
        cdef bytes encoded = os.fsencode(where)
        cdef const char *name = encoded
        cdef void *library
        with nogil:
            library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)
        if library == NULL:
            raise OSError(errno.ENOEXEC, (<bytes>dlerror()).decode("utf-8", "replace"), where)
        cdef Provider self = Provider.__new__(Provider)
        self.path = where
        self._get_class_object = <VdiGetClassObjectFn>dlsym(library, "DllGetClassObject")
        self._live_objects = <VdiLiveObjectsFn>dlsym(library, "VdiLiveObjects")
        if self._get_class_object == NULL:
            raise VDNotSupportedError(
                VD_E_NOTSUPPORTED,
                f"{where} does not export DllGetClassObject, by which a provider is entered; "
                "use a library that does, or Provider.embedded()",
                "load",
            )
        return self

    def live_objects(self) -> int:
        """Return how many device sets and devices of both halves are referenced in this process.

        Raises
        ------
        VDNotSupportedError
            Only the embedded provider counts them.

        Wraps: VdiLiveObjects (vdi_provider.h)
        """
        if self._live_objects == NULL:
            raise VDNotSupportedError(VD_E_NOTSUPPORTED, f"{self.path} does not count its objects", "live_objects")
        return self._live_objects()

    cdef void *create_instance(self, const CLSID *clsid, const IID *iid) except NULL:
        """A new object of a class; the caller owns its one reference."""
        cdef IClassFactory *factory = NULL
        cdef void *instance = NULL
        cdef HRESULT hr
        if self._get_class_object == NULL:
            raise TypeError("use Provider.embedded(), Provider.system() or Provider.load(path)")
        with nogil:
            check(self._get_class_object(clsid, &IID_IClassFactory, <void **>&factory), "DllGetClassObject")
            hr = factory.lpVtbl.CreateInstance(factory, NULL, iid, &instance)
            factory.lpVtbl.Release(factory)
            check(hr, "CreateInstance")
        if instance == NULL:
            raise VDNotSupportedError(VD_E_NOTSUPPORTED, f"{self.path} returned no object", "CreateInstance")
        return instance


cdef Provider provider_for(object provider, bint server):
    if isinstance(provider, Provider):
        return <Provider>provider
    if provider is None:
        if not server:
            try:
                return Provider.system()
            except (OSError, VDNotSupportedError):
                pass  # not installed, or only with the interface of its C++ classes: the default says "where usable"
        return Provider.embedded()
    if provider == "embedded":
        return Provider.embedded()
    if provider == "system":
        return Provider.system()
    if isinstance(provider, (str, os.PathLike)):
        return Provider.load(provider)
    raise TypeError(f"provider must be a Provider, 'embedded', 'system', a path or None, not {type(provider).__name__}")


cdef bytes wide(str name):
    if name is None:
        raise TypeError("a name must be a str, not None")
    if "\0" in name:
        raise VDInvalidError(VD_E_INVALID, "a name can not contain a zero character")
    return (name + "\0").encode("utf-16-le")
