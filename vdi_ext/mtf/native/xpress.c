#include "xpress.h"

#include <stdbool.h>
#include <string.h>

/* Before each 64 KiB of output stand 256 bytes with the lengths of 512 codes, four bits each. Then come bits, in 16-bit
 * words from the most significant one down, and between the words the bytes of long matches' lengths. Where those lie
 * follows from when a decoder with 32 bits at hand takes the next word: as soon as it has fewer than 16. This one
 * has up to 64 bits at hand, and puts words back before it reads a length. */

enum {
    SYMBOLS = 512,
    TABLE = SYMBOLS / 2,
    LONGEST = 15,
    DIRECT = 11, /* codes up to this length are decoded by one look-up */
    BLOCK = 65536,
    WILD = 16, /* most copies write fewer than this many bytes more than they were asked for */
};

struct code {
    uint16_t direct[1 << DIRECT]; /* symbol << 4 | length; 0: a longer code */
    uint16_t sorted[SYMBOLS];     /* symbols in the order of their codes */
    uint32_t limit[LONGEST + 1];  /* by length: the first 15 bits that belong to a longer code, */
    uint32_t first[LONGEST + 1];  /* the first 15 bits of this length, and where its symbols begin in `sorted` */
    uint16_t begin[LONGEST + 1];
};

struct input {
    const uint8_t *data;
    size_t size, place; /* place may be past the end: there are zeros, see `exhausted` */
    uint64_t bits;      /* the next ones at the top, zeros behind them */
    unsigned count;
};

static bool make_code(struct code *code, const uint8_t lengths[TABLE])
{
    unsigned of_length[LONGEST + 1] = {0}, next[LONGEST + 1];
    uint8_t length[SYMBOLS];
    for (unsigned i = 0; i < TABLE; i++) {
        of_length[length[2 * i] = lengths[i] & 15]++;
        of_length[length[2 * i + 1] = lengths[i] >> 4]++;
    }
    uint32_t at = 0;
    unsigned begin = 0;
    for (unsigned n = 1; n <= LONGEST; n++) {
        code->first[n] = at;
        code->begin[n] = (uint16_t)(next[n] = begin);
        at += (uint32_t)of_length[n] << (LONGEST - n);
        code->limit[n] = at;
        begin += of_length[n];
    }
    if (at != 1u << LONGEST)
        return false;
    for (unsigned symbol = 0; symbol < SYMBOLS; symbol++)
        if (length[symbol])
            code->sorted[next[length[symbol]]++] = (uint16_t)symbol;
    uint16_t *entry = code->direct;
    for (unsigned n = 1, i = 0; n <= DIRECT; n++)
        for (unsigned end = i + of_length[n]; i < end; i++) {
            uint16_t value = (uint16_t)(code->sorted[i] << 4 | n);
            for (unsigned copies = 1u << (DIRECT - n); copies; copies--)
                *entry++ = value;
        }
    memset(entry, 0, (size_t)((char *)(code->direct + (1 << DIRECT)) - (char *)entry));
    return true;
}

/* At least 33 bits. */
static inline void refill(struct input *in)
{
    if (in->count > 32)
        return;
    uint32_t words = 0;
    if (in->place + 4 <= in->size)
        memcpy(&words, in->data + in->place, 4);
    else if (in->place < in->size)
        memcpy(&words, in->data + in->place, in->size - in->place);
    in->place += 4;
    in->bits |= (uint64_t)(words << 16 | words >> 16) << (32 - in->count);
    in->count += 32;
}

/* Where a decoder with 32 bits at hand would be. */
static inline size_t settled(const struct input *in)
{
    return in->place + 2 - in->count / 16 * 2;
}

static inline bool exhausted(const struct input *in)
{
    return __builtin_expect(in->place > in->size, 0) && settled(in) > in->size;
}

/* Leaves as many bits as that decoder has; there are at least 16. */
static inline void put_back(struct input *in)
{
    in->place = settled(in);
    in->count = in->count % 16 + 16;
    in->bits &= ~UINT64_C(0) << (64 - in->count);
}

static inline unsigned take(struct input *in, unsigned count)
{
    unsigned value = (unsigned)(in->bits >> 1 >> (63 - count));
    in->bits <<= count;
    in->count -= count;
    return value;
}

static inline unsigned symbol(struct input *in, const struct code *code)
{
    unsigned entry = code->direct[in->bits >> (64 - DIRECT)], length = entry & 15;
    if (__builtin_expect(length != 0, 1)) {
        take(in, length);
        return entry >> 4;
    }
    uint32_t next = (uint32_t)(in->bits >> (64 - LONGEST));
    for (length = DIRECT + 1; next >= code->limit[length]; length++)
        ; /* the last limit is above every 15 bits */
    take(in, length);
    return code->sorted[code->begin[length] + ((next - code->first[length]) >> (LONGEST - length))];
}

/* The rest of a length whose first part is 15; MTF_XPRESS_OK, or why there is none. */
static enum mtf_xpress_status long_length(struct input *in, size_t *length)
{
    uint8_t byte;
    uint16_t word = 0;
    uint32_t both = 0;
    put_back(in);
    if (in->place >= in->size)
        return MTF_XPRESS_TOO_SHORT;
    byte = in->data[in->place++];
    if (byte < 255) {
        *length = byte + 15u;
        return MTF_XPRESS_OK;
    }
    if (in->size - in->place < 2)
        return MTF_XPRESS_TOO_SHORT;
    memcpy(&word, in->data + in->place, 2);
    in->place += 2;
    *length = word;
    if (word == 0) {
        if (in->size - in->place < 4)
            return MTF_XPRESS_TOO_SHORT;
        memcpy(&both, in->data + in->place, 4);
        in->place += 4;
        *length = both;
    }
    return *length < 15 ? MTF_XPRESS_LENGTH : MTF_XPRESS_OK;
}

/* `length` bytes from `distance` before; `room` is what there is from `to` on. */
static inline void copy(uint8_t *to, size_t distance, size_t length, size_t room)
{
    const uint8_t *from = to - distance;
    if (distance >= 8 && length + WILD <= room) {
        uint8_t *end = to + length;
        size_t step = distance >= 16 ? 16 : 8;
        do {
            if (step == 16)
                memcpy(to, from, 16);
            else
                memcpy(to, from, 8);
            to += step, from += step;
        } while (to < end);
        return;
    }
    for (; length > distance; distance *= 2) { /* it overlaps what it makes, which repeats itself */
        memcpy(to, from, distance);
        to += distance, length -= distance;
    }
    memcpy(to, from, length);
}

enum mtf_xpress_status mtf_xpress_decompress(const void *input, size_t in_size, void *output, size_t out_size,
                                             size_t *used)
{
    struct input in = {input, in_size, 0, 0, 0};
    struct code code;
    uint8_t lengths[TABLE];
    uint8_t *out = output;
    size_t done = 0;
    while (done < out_size) {
        if (in_size - in.place < TABLE + 4)
            return MTF_XPRESS_TOO_SHORT;
        memcpy(lengths, in.data + in.place, TABLE); /* a copy: they are read once */
        if (!make_code(&code, lengths))
            return MTF_XPRESS_NO_CODE;
        in.place += TABLE;
        in.bits = in.count = 0;
        size_t end = out_size - done < BLOCK ? out_size : done + BLOCK;
        while (done < end) {
            refill(&in);
            unsigned value = symbol(&in, &code);
            if (value < 256) {
                out[done++] = (uint8_t)value;
                if (done == end)
                    break;
                value = symbol(&in, &code); /* 18 bits at least are left, and then 3 */
                if (value < 256) {
                    out[done++] = (uint8_t)value;
                    if (exhausted(&in))
                        return MTF_XPRESS_TOO_SHORT;
                    continue;
                }
                refill(&in);
            }
            if (exhausted(&in))
                return MTF_XPRESS_TOO_SHORT;
            size_t length = value & 15;
            unsigned extra = value >> 4 & 15;
            if (length == 15) {
                enum mtf_xpress_status status = long_length(&in, &length);
                if (status != MTF_XPRESS_OK)
                    return status;
            }
            length += 3;
            size_t distance = ((size_t)1 << extra) + take(&in, extra);
            if (distance > done || length > out_size - done)
                return MTF_XPRESS_OUTSIDE;
            copy(out + done, distance, length, out_size - done);
            done += length;
        }
        in.place = settled(&in);
        if (in.place > in_size)
            return MTF_XPRESS_TOO_SHORT;
    }
    *used = in.place;
    return MTF_XPRESS_OK;
}
