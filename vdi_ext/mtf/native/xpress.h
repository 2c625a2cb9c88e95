/* The decompressor of [MS-XCA] LZ77 with Huffman codes, for input that may be anything. No state, no allocation. */
#ifndef VDI_EXT_MTF_XPRESS_H
#define VDI_EXT_MTF_XPRESS_H

#include <stddef.h>
#include <stdint.h>

enum mtf_xpress_status {
    MTF_XPRESS_OK,
    MTF_XPRESS_TOO_SHORT, /* the input ends before the output is full */
    MTF_XPRESS_NO_CODE,   /* the code lengths are no complete prefix code */
    MTF_XPRESS_LENGTH,    /* a match that is shorter than its form allows */
    MTF_XPRESS_OUTSIDE,   /* a match from before the output's beginning or over its end */
};

/* Fills `out` and says in `*used` how much of the input that took (on an error: an unspecified number).
 * Reads and writes nothing outside of either, also where the input is changed meanwhile. What an error leaves in `out`
 * is unspecified. */
enum mtf_xpress_status mtf_xpress_decompress(const void *in, size_t in_size, void *out, size_t out_size, size_t *used);

#endif
