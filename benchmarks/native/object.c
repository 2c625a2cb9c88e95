/* The same reading for Python: of anything with the buffer protocol, without the GIL. */
#include <Python.h>

#include "bench.h"

EXPORT unsigned long long object_read_all(PyObject *object) {
    Py_buffer view;
    uint64_t x;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE))
        return 0; /* the exception is raised by the caller, ctypes.PyDLL */
    Py_BEGIN_ALLOW_THREADS;
    x = bench_read_all(view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&view);
    return x;
}
