"""The checksums of checksums.py as compiled loops; the memory's speed is theirs from the second-level cache on.

Every function takes any object with the buffer protocol whose memory is contiguous, at any address, copies none of it,
and releases the GIL over the data.
"""
import numpy as np

from cpython.buffer cimport PyBUF_ND, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t


cdef extern from "native/kernels.h" nogil:
    const size_t MTF_SECTOR, MTF_PAGE, MTF_PAGE_SECTORS
    uint32_t mtf_rotate(uint32_t word, unsigned turns)
    void mtf_sector_xors(const void *data, size_t sectors, uint32_t *out)
    uint32_t mtf_fold(const void *words, size_t size)
    uint32_t mtf_stream_checksum(const void *data, size_t sectors)
    void mtf_page_checksums(const void *data, size_t pages, const void *xors, uint32_t *out)


cdef int take(object buffer, Py_buffer *view, size_t unit, str what) except -1:
    """Hold a buffer that is a whole number of units."""
    PyObject_GetBuffer(buffer, view, PyBUF_ND)  # without strides: contiguous
    if <size_t> view.len % unit:
        length = view.len
        PyBuffer_Release(view)
        raise ValueError(f"{length} bytes are not a whole number of {what} of {unit} bytes")
    return 0


cdef int take_words(object words, Py_buffer *view) except -1:
    """Hold a buffer of 32-bit words or their bytes."""
    take(words, view, 4, "words")
    if view.itemsize not in (1, 4):
        size = view.itemsize
        PyBuffer_Release(view)
        raise ValueError(f"items of {size} bytes are no 32-bit words")
    return 0


def sector_xors(buffer):
    """XOR of the 128 words of each 512-byte sector.

    Parameters
    ----------
    buffer : buffer
        Contiguous; a whole number of sectors, else `ValueError`.

    Returns
    -------
    numpy.ndarray of uint32, one per sector
        Owned by the caller.
    """
    cdef Py_buffer data, out
    take(buffer, &data, MTF_SECTOR, "sectors")
    try:
        result = np.empty(<size_t> data.len // MTF_SECTOR, np.uint32)
        PyObject_GetBuffer(result, &out, PyBUF_WRITABLE)
        with nogil:
            mtf_sector_xors(data.buf, <size_t> data.len // MTF_SECTOR, <uint32_t *> out.buf)
        PyBuffer_Release(&out)
    finally:
        PyBuffer_Release(&data)
    return result


def fold(words):
    """``c = 0; for x in words: c = rol32(c, 1) ^ x``.

    Parameters
    ----------
    words : buffer
        32-bit words such as `sector_xors` gives, or their bytes, little-endian; else `ValueError`.
    """
    cdef Py_buffer data
    cdef uint32_t result
    take_words(words, &data)
    with nogil:
        result = mtf_fold(data.buf, data.len)
    PyBuffer_Release(&data)
    return result


def record_checksum(buffer):
    """Checksum of a record's bytes in a compressed backup: `fold` with the last word filled up with zeros.

    Parameters
    ----------
    buffer : buffer
        Contiguous; any number of bytes.
    """
    cdef Py_buffer data
    cdef uint32_t result
    take(buffer, &data, 1, "bytes")
    with nogil:
        result = mtf_fold(data.buf, data.len)
    PyBuffer_Release(&data)
    return result


def stream_checksum(buffer):
    """Backup checksum (the content of a CSUM stream) of data that is a whole number of sectors, else `ValueError`."""
    cdef Py_buffer data
    cdef uint32_t result
    take(buffer, &data, MTF_SECTOR, "sectors")
    with nogil:
        result = mtf_stream_checksum(data.buf, <size_t> data.len // MTF_SECTOR)
    PyBuffer_Release(&data)
    return result


def combine(uint32_t first, uint32_t second, count):
    """Checksum of two parts in sequence.

    Parameters
    ----------
    first, second : int
        `fold` of each part, or `stream_checksum`; `OverflowError` where one is none.
    count : int
        Number of words (sectors) of the second part; `ValueError` if negative.
    """
    if count < 0:
        raise ValueError(f"{count} words")
    return mtf_rotate(first, count % 32) ^ second


def page_checksums(buffer, sectors=None):
    """Checksum that each 8 KB page ought to carry at byte 60; what it carries there is left out.

    Parameters
    ----------
    buffer : buffer
        Contiguous; a whole number of pages, else `ValueError`.
    sectors : buffer, optional
        `sector_xors` of the same buffer where the caller has it, so that the data is not read again; not changed.
        `ValueError` where it is not 16 words for each page.

    Returns
    -------
    numpy.ndarray of uint32, one per page
        Owned by the caller.
    """
    cdef Py_buffer data, given, out
    cdef size_t pages
    cdef const void *xors = NULL
    take(buffer, &data, MTF_PAGE, "pages")
    try:
        pages = <size_t> data.len // MTF_PAGE
        if sectors is not None:
            take_words(sectors, &given)
            xors = given.buf
        try:
            if xors != NULL and <size_t> given.len != pages * MTF_PAGE_SECTORS * sizeof(uint32_t):
                raise ValueError(f"{given.len // 4} sectors for {pages} pages")
            result = np.empty(pages, np.uint32)
            PyObject_GetBuffer(result, &out, PyBUF_WRITABLE)
            with nogil:
                mtf_page_checksums(data.buf, pages, xors, <uint32_t *> out.buf)
            PyBuffer_Release(&out)
        finally:
            if sectors is not None:
                PyBuffer_Release(&given)
    finally:
        PyBuffer_Release(&data)
    return result
