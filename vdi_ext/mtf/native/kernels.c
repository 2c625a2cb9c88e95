#include "kernels.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "SQL Server's formats are little-endian, and so is every machine that this is written for"
#endif

/* As wide as every x86-64 and every 64-bit ARM has them. Wider ones gain nothing: see benchmarks/README.md. */
typedef uint32_t vector __attribute__((vector_size(16)));
typedef uint32_t source __attribute__((vector_size(16), aligned(1), may_alias));

enum { ROW = 128, CHUNK = 64 * ROW, BATCH = 512 };

static inline vector load(const char *from)
{
    return *(const source *)from;
}

void mtf_sector_xors(const void *data, size_t sectors, uint32_t *out)
{
    const char *p = data;
    for (size_t i = 0; i < sectors; i++) {
        vector a = {0}, b = a, c = a, d = a;
        for (const char *end = p + MTF_SECTOR; p != end; p += 64) {
            a ^= load(p);
            b ^= load(p + 16);
            c ^= load(p + 32);
            d ^= load(p + 48);
        }
        a ^= b ^ c ^ d;
        out[i] = a[0] ^ a[1] ^ a[2] ^ a[3];
    }
}

static uint32_t fold_on(uint32_t sum, const void *words, size_t count)
{
    const char *p = words;
    for (size_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, p + 4 * i, sizeof word);
        sum = mtf_rotate(sum, 1) ^ word;
    }
    return sum;
}

/* Words that are 32 apart are rotated alike: rows of 32 are XORed, and one row is left to fold. */
static void add_rows(vector row[8], const char *data, size_t rows)
{
    for (size_t column = 0; column < 8; column += 4) {
        vector a = row[column], b = row[column + 1], c = row[column + 2], d = row[column + 3];
        const char *p = data + 16 * column;
        for (size_t i = 0; i < rows; i++, p += ROW) {
            a ^= load(p);
            b ^= load(p + 16);
            c ^= load(p + 32);
            d ^= load(p + 48);
        }
        row[column] = a, row[column + 1] = b, row[column + 2] = c, row[column + 3] = d;
    }
}

uint32_t mtf_fold(const void *words, size_t size)
{
    const char *p = words;
    vector row[8] = {{0}};
    while (size >= ROW) { /* a chunk stays in the first-level cache for the second half of its columns */
        size_t n = size < CHUNK ? size / ROW : CHUNK / ROW;
        add_rows(row, p, n);
        p += n * ROW;
        size -= n * ROW;
    }
    uint32_t sum = fold_on(fold_on(0, row, 32), p, size / 4);
    if (size % 4 == 0)
        return sum;
    uint32_t last = 0;
    memcpy(&last, p + size / 4 * 4, size % 4);
    return mtf_rotate(sum, 1) ^ last;
}

uint32_t mtf_stream_checksum(const void *data, size_t sectors)
{
    const char *p = data;
    uint32_t xors[BATCH], sum = 0;
    while (sectors) {
        size_t n = sectors < BATCH ? sectors : BATCH;
        mtf_sector_xors(p, n, xors);
        sum = mtf_rotate(sum, (unsigned)n) ^ mtf_fold(xors, n * sizeof *xors);
        p += n * MTF_SECTOR;
        sectors -= n;
    }
    return sum;
}

void mtf_page_checksums(const void *data, size_t pages, const void *xors, uint32_t *out)
{
    const char *page = data, *given = xors;
    uint32_t own[MTF_PAGE_SECTORS], field;
    for (size_t i = 0; i < pages; i++, page += MTF_PAGE) {
        if (given)
            memcpy(own, given + i * sizeof own, sizeof own);
        else
            mtf_sector_xors(page, MTF_PAGE_SECTORS, own);
        memcpy(&field, page + 60, sizeof field);
        own[0] ^= field; /* which counts as zero */
        out[i] = fold_on(0, own, MTF_PAGE_SECTORS);
    }
}
