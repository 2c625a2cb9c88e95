/* Carves buffers out of the segments. All of it is the server's private memory; clients see only offsets. */
#include "server.h"

/* Space of one buffer: padded prefix, padded data, and in an address-sanitizer build a page that nobody may touch. */
uint64_t allocator_need(const struct allocator *a, DWORD size, DWORD alignment) {
    uint64_t to = max_u32(a->alignment, alignment);
    return round_up(round_up(a->prefix, to) + round_up(size, to) + GUARD, to);
}

/* Where neighbours are aligned less strictly, finding the next aligned place may cost a little more. */
uint64_t allocator_reserve(const struct allocator *a, DWORD size, DWORD alignment) {
    uint64_t slack = alignment > a->alignment ? alignment - a->alignment : 0;
    return allocator_need(a, size, alignment) + slack;
}

void allocator_init(struct allocator *a, DWORD prefix, DWORD alignment) {
    a->prefix = prefix;
    a->alignment = alignment;
    a->bins = NO_BUFFER;
    a->free_numbers = 0;
    memset(a->by_address, 0xFF, sizeof a->by_address); /* NO_BUFFER */
    for (uint32_t i = 0; i < MAX_BUFFERS; i++)
        a->buffers[i].next = i + 1 < MAX_BUFFERS ? i + 1 : NO_BUFFER;
}

void allocator_free(struct allocator *a) {
    free(a->holes);
    a->holes = NULL;
    a->hole_count = a->hole_room = 0;
}

/* Room for one more hole is made where it may fail: giving back never allocates more than taking has. */
static bool make_room(struct allocator *a, unsigned more) {
    if (a->hole_count + more <= a->hole_room)
        return true;
    unsigned room = a->hole_room + MAX_BUFFERS / 8 + more;
    struct hole *holes = realloc(a->holes, room * sizeof *holes);
    if (!holes)
        return false;
    a->holes = holes;
    a->hole_room = room;
    return true;
}

static void insert_hole(struct allocator *a, struct hole h) {
    unsigned i = 0;
    while (i < a->hole_count && (a->holes[i].segment < h.segment ||
                                 (a->holes[i].segment == h.segment && a->holes[i].offset < h.offset)))
        i++;
    struct hole *before = i ? &a->holes[i - 1] : NULL, *after = i < a->hole_count ? &a->holes[i] : NULL;
    bool joins_before = before && before->segment == h.segment && before->offset + before->length == h.offset;
    bool joins_after = after && after->segment == h.segment && h.offset + h.length == after->offset;
    if (joins_before && joins_after) {
        before->length += h.length + after->length;
        memmove(after, after + 1, (--a->hole_count - i) * sizeof *after);
    } else if (joins_before) {
        before->length += h.length;
    } else if (joins_after) {
        after->offset = h.offset;
        after->length += h.length;
    } else {
        memmove(a->holes + i + 1, a->holes + i, (a->hole_count++ - i) * sizeof *a->holes);
        a->holes[i] = h;
    }
}

bool allocator_add(struct allocator *a, uint32_t segment, uint64_t length, DWORD size, DWORD alignment) {
    if (!make_room(a, MAX_BUFFERS + 1))
        return false;
    a->made_for[segment].size = size;
    a->made_for[segment].alignment = alignment;
    insert_hole(a, (struct hole){segment, 0, length});
    return true;
}

static void free_number(struct allocator *a, uint32_t number) {
    a->buffers[number].address = NULL;
    a->buffers[number].binned = false;
    a->buffers[number].next = a->free_numbers;
    a->free_numbers = number;
}

static void empty_bins(struct allocator *a) {
    while (a->bins != NO_BUFFER) {
        uint32_t number = a->bins;
        struct buffer *b = &a->buffers[number];
        a->bins = b->next;
        insert_hole(a, (struct hole){b->segment, b->start, b->length});
        free_number(a, number);
    }
}

static uint32_t *chain_of(struct allocator *a, const BYTE *address) {
    uint64_t h = (uint64_t)((uintptr_t)address >> 9) * 0x9E3779B97F4A7C15ull;
    return &a->by_address[h >> 54];
}

static void enter_address(struct allocator *a, uint32_t number) {
    uint32_t *head = chain_of(a, a->buffers[number].address);
    a->buffers[number].same_hash = *head;
    *head = number;
}

static void leave_address(struct allocator *a, uint32_t number) {
    uint32_t *p = chain_of(a, a->buffers[number].address);
    while (*p != number)
        p = &a->buffers[*p].same_hash;
    *p = a->buffers[number].same_hash;
}

static uint32_t from_bin(struct allocator *a, DWORD size, DWORD alignment) {
    for (uint32_t *p = &a->bins; *p != NO_BUFFER; p = &a->buffers[*p].next) {
        struct buffer *b = &a->buffers[*p];
        if (b->size == size && b->alignment == alignment) {
            uint32_t number = *p;
            *p = b->next;
            b->binned = false;
            return number;
        }
    }
    return NO_BUFFER;
}

/* Where to look first, so that all that was requested can be had in any order: in segments made for such buffers, then
 * in the one that was made for all kinds, and only then in those made for others. */
static unsigned rank(const struct allocator *a, uint32_t segment, DWORD size, DWORD alignment) {
    if (a->made_for[segment].size == 0)
        return 1;
    return a->made_for[segment].size == size && a->made_for[segment].alignment == alignment ? 0 : 2;
}

static uint32_t carve(struct allocator *a, struct segments *s, DWORD size, DWORD alignment) {
    if (a->free_numbers == NO_BUFFER)
        return NO_BUFFER;
    uint64_t to = max_u32(a->alignment, alignment), need = allocator_need(a, size, alignment);
    struct hole *best = NULL;
    unsigned best_rank = 0;
    for (unsigned i = 0; i < a->hole_count; i++) {
        struct hole *h = &a->holes[i];
        uint64_t skip = round_up(h->offset, to) - h->offset;
        unsigned r = rank(a, h->segment, size, alignment);
        if (skip <= h->length && need <= h->length - skip &&
            (!best || r < best_rank || (r == best_rank && h->length < best->length))) {
            best = h;
            best_rank = r;
        }
    }
    if (!best)
        return NO_BUFFER;
    uint32_t number = a->free_numbers;
    struct buffer *b = &a->buffers[number];
    uint64_t start = round_up(best->offset, to), offset = start + round_up(a->prefix, to);
    uint8_t *address = segments_address(s, best->segment, offset, a->prefix, size);
    if (!address)
        return NO_BUFFER;
    a->free_numbers = b->next;
    uint64_t lending = b->lending; /* goes on over all lives of this number */
    *b = (struct buffer){.address = address,
                         .size = size,
                         .alignment = alignment,
                         .segment = best->segment,
                         .start = start,
                         .length = need,
                         .offset = offset,
                         .lending = lending};
    struct hole h = *best;
    unsigned i = (unsigned)(best - a->holes);
    memmove(best, best + 1, (--a->hole_count - i) * sizeof *best);
    if (start > h.offset)
        insert_hole(a, (struct hole){h.segment, h.offset, start - h.offset});
    if (start + need < h.offset + h.length)
        insert_hole(a, (struct hole){h.segment, start + need, h.offset + h.length - start - need});
    return number;
}

uint32_t allocator_take(struct allocator *a, struct segments *s, DWORD size, DWORD alignment) {
    uint32_t number = from_bin(a, size, alignment);
    if (number == NO_BUFFER)
        number = carve(a, s, size, alignment);
    if (number == NO_BUFFER && a->bins != NO_BUFFER) {
        empty_bins(a);
        number = carve(a, s, size, alignment);
    }
    if (number != NO_BUFFER) {
        enter_address(a, number);
        UNPOISON(a->buffers[number].address, size);
    }
    return number;
}

void allocator_give(struct allocator *a, uint32_t number) {
    struct buffer *b = &a->buffers[number];
    leave_address(a, number);
    b->binned = true;
    b->next = a->bins;
    a->bins = number;
}

/* How many more such buffers there could be. */
uint64_t allocator_count(struct allocator *a, DWORD size, DWORD alignment) {
    empty_bins(a);
    uint64_t to = max_u32(a->alignment, alignment), need = allocator_need(a, size, alignment), count = 0, numbers = 0;
    for (unsigned i = 0; i < a->hole_count; i++) {
        uint64_t skip = round_up(a->holes[i].offset, to) - a->holes[i].offset;
        if (skip <= a->holes[i].length)
            count += (a->holes[i].length - skip) / need;
    }
    for (uint32_t n = a->free_numbers; n != NO_BUFFER; n = a->buffers[n].next)
        numbers++;
    return count < numbers ? count : numbers;
}

/* The allocated buffer at exactly that address. */
uint32_t allocator_find(const struct allocator *a, const BYTE *address) {
    uint32_t number = *chain_of((struct allocator *)a, address);
    while (number != NO_BUFFER && a->buffers[number].address != address)
        number = a->buffers[number].same_hash;
    return number;
}

bool allocator_contains(const struct allocator *a, const BYTE *address) {
    for (uint32_t i = 0; i < MAX_BUFFERS; i++) {
        const struct buffer *b = &a->buffers[i];
        if (b->address && !b->binned && (uintptr_t)address - (uintptr_t)b->address < b->size)
            return true;
    }
    return false;
}
