"""Decompression of the records of compressed backups: LZ77 with Huffman codes, as [MS-XCA] describes it."""
from cpython.buffer cimport PyBUF_ND, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stddef cimport size_t

from .findings import MtfError


cdef extern from "native/xpress.h" nogil:
    enum mtf_xpress_status:
        MTF_XPRESS_OK
        MTF_XPRESS_TOO_SHORT
        MTF_XPRESS_NO_CODE
        MTF_XPRESS_LENGTH
        MTF_XPRESS_OUTSIDE
    mtf_xpress_status mtf_xpress_decompress(
        const void *data, size_t in_size, void *out, size_t out_size, size_t *used)


_REASONS = {
    MTF_XPRESS_TOO_SHORT: "it ends too early",
    MTF_XPRESS_NO_CODE: "its code lengths are no code",
    MTF_XPRESS_LENGTH: "a match is shorter than it can be",
    MTF_XPRESS_OUTSIDE: "a match points out of the output",
}


class CompressionError(MtfError, ValueError):
    """Compressed data that nothing can be made of."""


cdef size_t unpack(object packed, char *out, size_t size) except? 0:
    cdef Py_buffer data
    cdef mtf_xpress_status status
    cdef size_t used = 0
    PyObject_GetBuffer(packed, &data, PyBUF_ND)  # without strides: contiguous
    with nogil:
        status = mtf_xpress_decompress(data.buf, data.len, out, size, &used)
    PyBuffer_Release(&data)
    if status != MTF_XPRESS_OK:
        raise CompressionError(f"a compressed block of {data.len} bytes: {_REASONS[status]}")
    return used


def decompress(packed, Py_ssize_t size):
    """Decompress a block whose result has a known size.

    Parameters
    ----------
    packed : buffer
        Contiguous, at any address; may be anything, even change meanwhile. What follows the block is not looked at.
    size : int
        Bytes that come out; they are allocated before anything is read.

    Returns
    -------
    bytes

    Raises
    ------
    CompressionError
        It is no such block, or one of another size.
    ValueError
        `size` is negative.
    """
    if size < 0:
        raise ValueError(f"{size} bytes")
    out = PyBytes_FromStringAndSize(NULL, size)
    unpack(packed, PyBytes_AS_STRING(out), size)
    return out


def decompress_into(packed, out):
    """Decompress a block into memory of the size of the result; the GIL is released meanwhile.

    Parameters
    ----------
    packed : buffer
        As for `decompress`.
    out : writable buffer
        Contiguous; filled to its end. After an error its content is unspecified.

    Returns
    -------
    int
        Bytes of `packed` that were used; SQL Server's records have at most two more.

    Raises
    ------
    CompressionError
        It is no such block, or one of another size.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(out, &view, PyBUF_ND | PyBUF_WRITABLE)
    try:
        return unpack(packed, <char *> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
