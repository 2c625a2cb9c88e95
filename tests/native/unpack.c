/* The decompressor on memory that ends where the data does, for AddressSanitizer.
 *
 * unpack clean FILE SIZE           must fill SIZE bytes
 * unpack overread FILE SIZE        says that there is more input than there is: must be reported
 * unpack overwrite FILE SIZE       says that there is more room than there is: must be reported
 * unpack mutate FILE SIZE COUNT    COUNT variants of the data, and of SIZE; prints how many were accepted
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xpress.h"

static uint64_t state = 88172645463325252u;

static size_t random_below(size_t limit)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit ? (size_t)(state >> 11) % limit : 0;
}

/* Both buffers are allocated to the byte; what is claimed of them may be more. */
static enum mtf_xpress_status unpack(const uint8_t *data, size_t size, size_t claimed, size_t room, size_t claimed_room)
{
    uint8_t *in = malloc(size), *out = malloc(room);
    size_t used = 0;
    memcpy(in, data, size);
    enum mtf_xpress_status status = mtf_xpress_decompress(in, claimed, out, claimed_room, &used);
    if (status == MTF_XPRESS_OK && used > claimed)
        abort();
    free(in);
    free(out);
    return status;
}

static int mutate(const uint8_t *data, size_t size, size_t room, long count)
{
    long accepted = 0;
    uint8_t *copy = malloc(size);
    for (long i = 0; i < count; i++) {
        size_t length = size, target = room;
        memcpy(copy, data, size);
        switch (random_below(5)) {
        case 0: /* cut off */
            length = random_below(size + 1);
            break;
        case 1: /* other code lengths, swapped so that they are still a code */
            for (size_t n = random_below(40); n; n--) {
                size_t a = random_below(256), b = random_below(256);
                uint8_t kept = copy[a];
                copy[a] = copy[b], copy[b] = kept;
            }
            break;
        case 2: /* noise behind the code lengths */
            for (size_t n = 256 + random_below(size - 256); n < size; n++)
                copy[n] = (uint8_t)random_below(256);
            break;
        case 3: /* another size of the output */
            target = random_below(3 * room + 1);
            break;
        default:
            break;
        }
        for (size_t n = random_below(4); n; n--)
            copy[random_below(size)] ^= (uint8_t)(1u << random_below(8));
        accepted += unpack(copy, length, length, target, target) == MTF_XPRESS_OK;
    }
    free(copy);
    printf("%ld\n", accepted);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    static uint8_t data[1 << 20];
    FILE *file = fopen(argv[2], "rb");
    if (!file)
        return 2;
    size_t size = fread(data, 1, sizeof data, file), room = strtoul(argv[3], NULL, 10);
    fclose(file);
    if (!strcmp(argv[1], "mutate") && argc > 4)
        return mutate(data, size, room, atol(argv[4]));
    if (!strcmp(argv[1], "clean"))
        return unpack(data, size, size, room, room) != MTF_XPRESS_OK;
    if (!strcmp(argv[1], "overread"))
        return unpack(data, size / 2, size, room, room) != MTF_XPRESS_OK;
    if (!strcmp(argv[1], "overwrite"))
        return unpack(data, size, size, room / 2, room) != MTF_XPRESS_OK;
    return 2;
}
