/* Checksums over 512-byte sectors and 32-bit words, little-endian, at any alignment. No state, no allocation. */
#ifndef VDI_EXT_MTF_KERNELS_H
#define VDI_EXT_MTF_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { MTF_SECTOR = 512, MTF_PAGE = 8192, MTF_PAGE_SECTORS = 16 };

static inline uint32_t mtf_rotate(uint32_t word, unsigned turns)
{
    return word << (turns & 31) | word >> (-turns & 31);
}

/* XOR of the 128 words of each sector. */
void mtf_sector_xors(const void *data, size_t sectors, uint32_t *out);

/* c = 0; for x in words: c = rol32(c, 1) ^ x; the last word is filled up with zeros. */
uint32_t mtf_fold(const void *words, size_t size);

/* mtf_fold of the sectors' XORs. */
uint32_t mtf_stream_checksum(const void *data, size_t sectors);

/* The checksum that each page ought to carry; `xors` (the 16 of each page) may be NULL. */
void mtf_page_checksums(const void *data, size_t pages, const void *xors, uint32_t *out);

#endif
