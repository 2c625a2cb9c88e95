# cython: annotation_typing=False
"""Libraries that implement the interface: the embedded provider, SQL Server's own, or any other."""
import errno
import os
import struct

from ..errors import VDInvalidError, VDNotSupportedError

cimport cython
from libc.string cimport memcmp

from .._errors cimport check
from ..libvdi cimport (
    CLSID,
    CLSID_MSSQL_ClientVirtualDeviceSet,
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

cdef extern from "sqlvdi_linux.h" nogil:
    const char *const sqlvdi_functions[]
    IClassFactory *sqlvdi_class_factory(void *library)

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
cdef str _LOADER_CACHE = "/etc/ld.so.cache"


@cython.final
cdef class Provider:
    """A library that implements the interface, loaded into this process for as long as the process lives.

    Made by `embedded`, `system` and `load`. May be used from any thread, and in a forked child as well.

    Attributes
    ----------
    path : str
        The library's file.
    classes_only : bool
        Whether it has only the C++ classes of SQL Server's library on Linux: no server half, no named instances, no
        knowledge about buffers. What it prints to standard output comes out on standard error, and so does what any
        other C or C++ code of this process prints there from then on.

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

        It is looked for where SQL Server on Linux has it, then as ``libsqlvdi.so`` where the loader looks: in the
        folders of ``LD_LIBRARY_PATH``, and in the cache that ldconfig keeps.

        Raises
        ------
        FileNotFoundError
            SQL Server is not installed here.
        OSError
            The installed library can not be loaded; the message is the loader's.
        VDNotSupportedError
            The installed library can not be entered.
        """
        folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
        candidates = [_SYSTEM, *(os.path.join(folder, "libsqlvdi.so") for folder in folders)]
        # Not dlopen: under this name it gives the embedded provider where that one is loaded already.
        candidates += _cached_libraries(_LOADER_CACHE, b"libsqlvdi.so")
        failures = []
        for candidate in filter(os.path.exists, candidates):
            try:
                return Provider.load(candidate)
            except (OSError, VDNotSupportedError) as error:  # the cache names libraries of other machines as well
                failures.append(error)
        if failures:
            raise failures[0]
        raise FileNotFoundError(
            errno.ENOENT,
            "SQL Server's virtual device library is not installed; install SQL Server on this machine, "
            "or use Provider.embedded()",
            _SYSTEM,
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Provider:
        """Load a library by path.

        Parameters
        ----------
        path : str or os.PathLike
            A shared library that exports ``DllGetClassObject``, or the C++ classes of SQL Server's library on Linux
            (section 2.4). It runs with all rights of this process.

        Raises
        ------
        FileNotFoundError
            No such file.
        OSError
            The file can not be loaded; the message is the loader's.
        VDNotSupportedError
            The library has neither, or only a part of the classes; the message names what is missing.
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
            reason = (<bytes>dlerror()).decode("utf-8", "replace")
            raise OSError(
                errno.ENOEXEC,
                f"the loader says: {reason}; install what is missing, and a library for this machine's architecture",
                where,
            )
        cdef Provider self = Provider.__new__(Provider)
        self.path = where
        self._get_class_object = <VdiGetClassObjectFn>dlsym(library, "DllGetClassObject")
        self._live_objects = <VdiLiveObjectsFn>dlsym(library, "VdiLiveObjects")
        if self._get_class_object == NULL:
            _check_classes(library, where)
            self.classes_only = True
            self._factory = sqlvdi_class_factory(library)
            if self._factory == NULL:
                raise MemoryError
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
        cdef IClassFactory *factory = self._factory
        cdef void *instance = NULL
        cdef HRESULT hr
        if self._get_class_object == NULL and factory == NULL:
            raise TypeError("use Provider.embedded(), Provider.system() or Provider.load(path)")
        if factory != NULL and memcmp(clsid, &CLSID_MSSQL_ClientVirtualDeviceSet, sizeof(CLSID)) != 0:
            raise VDNotSupportedError(
                VD_E_NOTSUPPORTED,
                f"{self.path} has only the client's half, as SQL Server's library on Linux does; "
                "the server half runs on Provider.embedded()",
                "CreateInstance",
            )
        with nogil:
            if factory == NULL:
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
            except FileNotFoundError:
                pass  # one that is there and not usable is an error: on the embedded provider its server never comes
        return Provider.embedded()
    if provider == "embedded":
        return Provider.embedded()
    if provider == "system":
        return Provider.system()
    if isinstance(provider, (str, os.PathLike)):
        return Provider.load(provider)
    raise TypeError(f"provider must be a Provider, 'embedded', 'system', a path or None, not {type(provider).__name__}")


cdef int _check_classes(void *library, str where) except -1:
    """Refuse a library that does not export all that the classes need."""
    cdef Py_ssize_t number = 0
    missing = []
    while sqlvdi_functions[number] != NULL:
        if dlsym(library, sqlvdi_functions[number]) == NULL:
            missing.append((<bytes>sqlvdi_functions[number]).decode("ascii"))
        number += 1
    if len(missing) == number:
        raise VDNotSupportedError(
            VD_E_NOTSUPPORTED,
            f"{where} exports neither DllGetClassObject, by which a provider is entered, nor the classes of SQL "
            "Server's library on Linux; use a library that does, or Provider.embedded()",
            "load",
        )
    if missing:
        raise VDNotSupportedError(
            VD_E_NOTSUPPORTED,
            f"{where} does not export {', '.join(missing)}, without which the classes of SQL Server's library on "
            "Linux are of no use; install the library of another version of SQL Server, or use Provider.embedded()",
            "load",
        )
    return 0


def _cached_libraries(cache, name):
    """Paths of the libraries of a name in a cache of ldconfig (the format of glibc since 2.2)."""
    try:
        with open(cache, "rb") as file:
            image = file.read()
        start = image.index(b"glibc-ld.so.cache1.1")
        count, = struct.unpack_from("=I", image, start + 20)
        found = []
        for entry in range(count):  # flags, then where the name and the path are
            key, value = struct.unpack_from("=4xII12x", image, start + 48 + 24 * entry)
            if image.startswith(name + b"\0", start + key):
                found.append(os.fsdecode(image[start + value:image.index(b"\0", start + value)]))
        return found
    except (OSError, ValueError, struct.error):
        return []


cdef bytes wide(str name):
    if name is None:
        raise TypeError("a name must be a str, not None")
    if "\0" in name:
        raise VDInvalidError(VD_E_INVALID, "a name can not contain a zero character")
    return (name + "\0").encode("utf-16-le")
