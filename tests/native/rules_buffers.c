/* Rules of section 8: layout, sums, growth, limits, ownership, handles. Both halves in this process. */
#include "harness.h"

static Pair pair;

static DWORD max_of(DWORD a, DWORD b)
{
    return a > b ? a : b;
}

static void finish_with(Sent *sent)
{
    complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
    wait_for(sent);
    CHECK(sent->command.completionCode == ERROR_SUCCESS);
}

/* Data are aligned whatever the prefix zone; zones and data of different buffers never touch. */
static void alignment_and_prefix(void)
{
    static const DWORD prefixes[] = {0, 1, 64, 512, 4096, 5000, 65536};
    static const DWORD alignments[] = {0, 1024, 4096, 65536};
    static const DWORD wishes[] = {0, 512, 4096, 65536, 2 * MIB};
    for (size_t p = 0; p < sizeof prefixes / sizeof *prefixes; p++)
        for (size_t a = 0; a < sizeof alignments / sizeof *alignments; a++) {
            VDConfig cfg = config(1);
            cfg.prefixZoneSize = prefixes[p];
            cfg.alignment = alignments[a];
            pair_create(&pair, &cfg);
            pair_begin(&pair, VDF_WriteMedia, 512, 0);
            BYTE *buffers[10];
            for (int i = 0; i < 5; i++)
                OK(V(pair.server, RequestBuffers, 512 + 1536 * (DWORD)i, wishes[i], 2));
            pair_activate(&pair);
            VDConfig final;
            OK(V(pair.client, GetConfiguration, 0, &final));
            CHECK(final.alignment == max_of(alignments[a], 512));
            CHECK(final.prefixZoneSize == prefixes[p]);
            for (int i = 0; i < 10; i++) {
                DWORD size = 512 + 1536 * (DWORD)(i / 2);
                OK(V(pair.server, AllocateBuffer, &buffers[i], size, wishes[i / 2]));
                CHECK((uintptr_t)buffers[i] % max_of(final.alignment, wishes[i / 2]) == 0);
                memset(buffers[i], 100 + i, size);
            }
            for (int i = 0; i < 10; i++) {
                DWORD size = 512 + 1536 * (DWORD)(i / 2);
                Sent sent;
                sent_init(&sent, VDC_Write, buffers[i], size);
                OK(send_it(pair.s[0], &sent));
                VDC_Command *command = get(&pair, 0);
                CHECK((uintptr_t)command->buffer % max_of(final.alignment, wishes[i / 2]) == 0);
                memset(command->buffer - prefixes[p], 200, prefixes[p]); /* the client's own */
                CHECK(command->buffer[0] == 100 + i && command->buffer[size - 1] == 100 + i);
                complete(&pair, 0, command, ERROR_SUCCESS);
                wait_for(&sent);
            }
            for (int i = 0; i < 10; i++) {
                DWORD size = 512 + 1536 * (DWORD)(i / 2);
                for (DWORD at = 0; at < size; at++)
                    if (buffers[i][at] != 100 + i) {
                        CHECK(!"a neighbour's zone lies in the data");
                        break;
                    }
            }
            pair_finish(&pair);
        }
}

/* What RequestBuffers summed up can be allocated in any order, again and again, and never more. */
static void sums(void)
{
    static const struct {
        DWORD size, alignment, count;
    } wanted[] = {{MIB, 0, 3}, {64 * KIB, 4096, 5}, {512, 0, 7}, {3072, 65536, 2}, {100 * KIB, 0, 4}};
    const int kinds = 5;
    enum { TOTAL = 21 };
    uint64_t random = 1;
    VDConfig cfg = config(1);
    cfg.prefixZoneSize = 700;
    pair_create(&pair, &cfg);
    pair_begin(&pair, VDF_WriteMedia, 512, 4096);
    uint64_t bytes = 0;
    for (int k = 0; k < kinds; k++) {
        OK(V(pair.server, RequestBuffers, wanted[k].size, wanted[k].alignment, wanted[k].count));
        bytes += (uint64_t)wanted[k].size * wanted[k].count;
    }
    pair_activate(&pair);
    OK(V(pair.client, GetConfiguration, 0, &cfg));
    CHECK(cfg.bufferAreaSize >= bytes);
    for (int round = 0; round < 60; round++) {
        int kind_of[TOTAL], n = 0;
        BYTE *buffers[TOTAL];
        for (int k = 0; k < kinds; k++)
            for (DWORD i = 0; i < wanted[k].count; i++)
                kind_of[n++] = k;
        for (int i = TOTAL - 1; i > 0; i--) { /* shuffle */
            int j = (int)(next_random(&random) % (uint64_t)(i + 1)), swap = kind_of[i];
            kind_of[i] = kind_of[j];
            kind_of[j] = swap;
        }
        for (int i = 0; i < TOTAL; i++) {
            DWORD size = wanted[kind_of[i]].size;
            if (!OK(V(pair.server, AllocateBuffer, &buffers[i], size, wanted[kind_of[i]].alignment))) {
                printf("     round %d, buffer %d of %u bytes\n", round, i, size);
                pair_discard(&pair);
                return;
            }
            buffers[i][0] = buffers[i][size - 1] = (BYTE)i;
        }
        BYTE *more = (BYTE *)1;
        HR(V(pair.server, AllocateBuffer, &more, MIB, 0), VD_E_MEMORY);
        for (int i = 0; i < TOTAL; i++) {
            CHECK(V(pair.server, IsSharedBuffer, buffers[i]) == 1);
            CHECK(buffers[i][0] == (BYTE)i && buffers[i][wanted[kind_of[i]].size - 1] == (BYTE)i);
            OK(V(pair.server, FreeBuffer, buffers[i], wanted[kind_of[i]].size));
            CHECK(V(pair.server, IsSharedBuffer, buffers[i]) == 0);
        }
    }
    pair_finish(&pair);
}

/* QueryAvailableBuffers tells how many can be had, not more and not fewer. */
static void available(void)
{
    pair_ready(&pair, 1, 64 * KIB, 8);
    static const DWORD sizes[] = {64 * KIB, 512, 4096, 128 * KIB, 200 * KIB};
    static BYTE *buffers[5000];
    BYTE *held;
    OK(V(pair.server, AllocateBuffer, &held, 64 * KIB, 0));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        DWORD said = 0, got = 0;
        OK(V(pair.server, QueryAvailableBuffers, sizes[i], 0, &said));
        while (got < 5000 && V(pair.server, AllocateBuffer, &buffers[got], sizes[i], 0) == NOERROR)
            got++;
        CHECK(said == got);
        if (sizes[i] == 64 * KIB)
            CHECK(said == 7);
        DWORD left = 1;
        OK(V(pair.server, QueryAvailableBuffers, sizes[i], 0, &left));
        CHECK(left == 0);
        while (got--)
            OK(V(pair.server, FreeBuffer, buffers[got], sizes[i]));
    }
    OK(V(pair.server, FreeBuffer, held, 64 * KIB));
    pair_finish(&pair);
}

/* RequestBuffers after configuration obtains more at once; the client maps what it meets. */
static void growth(void)
{
    pair_ready(&pair, 1, 4096, 1);
    BYTE *first, *buffer;
    OK(V(pair.server, AllocateBuffer, &first, 4096, 0));
    HR(V(pair.server, AllocateBuffer, &buffer, 256 * KIB, 0), VD_E_MEMORY);
    for (DWORD i = 0; i < 20; i++) {
        DWORD size = 256 * KIB + i * 4096;
        Sent sent;
        OK(V(pair.server, RequestBuffers, size, 0, 1));
        OK(V(pair.server, AllocateBuffer, &buffer, size, 0));
        memset(buffer, (int)i + 1, size);
        sent_init(&sent, VDC_Write, buffer, size);
        OK(send_it(pair.s[0], &sent));
        VDC_Command *command = get(&pair, 0);
        DWORD handle;
        BYTE *mapped;
        CHECK(command->buffer[0] == i + 1 && command->buffer[size - 1] == i + 1);
        OK(V(pair.client, GetBufferHandle, command->buffer, &handle));
        OK(V(pair.client, MapBufferHandle, handle, &mapped));
        CHECK(mapped[0] == i + 1 && mapped[size - 1] == i + 1);
        complete(&pair, 0, command, ERROR_SUCCESS);
        wait_for(&sent);
    }
    pair_finish(&pair);
}

/* What was asked for later adds to the sum: all of it can be had in any order, although it lies in several segments. */
static void sums_grow(void)
{
    enum { KINDS = 6, TOTAL = 18 };
    static const struct {
        DWORD size, alignment, count;
    } wanted[KINDS] = {{MIB, 0, 1},          {96 * KIB, 0, 4},        {400 * KIB, 0, 3},
                       {5 * 512, 4096, 6}, {700 * KIB, 64 * KIB, 2}, {96 * KIB, 0, 2}};
    uint64_t random = 3;
    VDConfig cfg = config(1);
    pair_create(&pair, &cfg);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    for (int k = 0; k < 2; k++)
        OK(V(pair.server, RequestBuffers, wanted[k].size, wanted[k].alignment, wanted[k].count));
    pair_activate(&pair);
    for (int k = 2; k < KINDS; k++)
        OK(V(pair.server, RequestBuffers, wanted[k].size, wanted[k].alignment, wanted[k].count));
    for (int round = 0; round < 200; round++) {
        int kind_of[TOTAL], n = 0;
        BYTE *buffers[TOTAL];
        for (int k = 0; k < KINDS; k++)
            for (DWORD i = 0; i < wanted[k].count; i++)
                kind_of[n++] = k;
        for (int i = TOTAL - 1; i > 0; i--) {
            int j = (int)(next_random(&random) % (uint64_t)(i + 1)), swap = kind_of[i];
            kind_of[i] = kind_of[j];
            kind_of[j] = swap;
        }
        for (int i = 0; i < TOTAL; i++) {
            DWORD size = wanted[kind_of[i]].size, count;
            if (round % 3 == 0)
                OK(V(pair.server, QueryAvailableBuffers, size, 0, &count)); /* changes nothing */
            if (!OK(V(pair.server, AllocateBuffer, &buffers[i], size, wanted[kind_of[i]].alignment))) {
                printf("     round %d, buffer %d of %u bytes\n", round, i, size);
                pair_discard(&pair);
                return;
            }
        }
        for (int i = 0; i < TOTAL; i++)
            OK(V(pair.server, FreeBuffer, buffers[i], wanted[kind_of[i]].size));
    }
    pair_finish(&pair);
}

/* More than there is: EndConfiguration says so and stays where it was; less is then possible. */
static void too_much(void)
{
    static const struct {
        DWORD size, alignment, count;
    } huge[] = {{0xFFFFFFFF, 0, 0xFFFFFFFF}, {0xFFFFFFFF, 0, 1},     {0x80000000, 0, 2}, {MIB, 0, 4096},
                {65536, 0, 65536},           {512, 0, 0xFFFFFFFF}, {0xFFFFFE00, 2 * MIB, 2}};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        VDConfig cfg = config(1);
        pair_create(&pair, &cfg);
        pair_begin(&pair, VDF_WriteMedia, 512, 0);
        HRESULT hr = V(pair.server, RequestBuffers, huge[i].size, huge[i].alignment, huge[i].count);
        if (hr != VD_E_INVALID && hr != VD_E_MEMORY) {
            OK(hr);
            HR(V(pair.server, EndConfiguration), VD_E_MEMORY);
        }
        CHECK(state_of(pair.server) == VDI_STATE_CONFIGURABLE);
        HR(V(pair.client, GetConfiguration, 0, &cfg), VD_E_TIMEOUT);
        OK(V(pair.server, RequestBuffers, 64 * KIB, 0, 4));
        pair_activate(&pair);
        BYTE *buffers[4];
        for (int b = 0; b < 4; b++)
            OK(V(pair.server, AllocateBuffer, &buffers[b], 64 * KIB, 0));
        hr = V(pair.server, RequestBuffers, huge[i].size, huge[i].alignment, huge[i].count); /* at once, now */
        CHECK(hr == VD_E_INVALID || hr == VD_E_MEMORY);
        DWORD count = 1;
        hr = V(pair.server, QueryAvailableBuffers, 0xFFFFFFFF, 0, &count);
        CHECK(hr == VD_E_INVALID || (hr == NOERROR && count == 0));
        pair_finish(&pair);
    }
    /* Wrapping sums of single requests. */
    VDConfig cfg = config(1);
    pair_create(&pair, &cfg);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    HRESULT hr = NOERROR;
    for (int i = 0; i < 5 && hr == NOERROR; i++)
        hr = V(pair.server, RequestBuffers, 0x40000000, 0, 1);
    if (hr == NOERROR)
        hr = V(pair.server, EndConfiguration);
    CHECK(hr == VD_E_MEMORY);
    CHECK(state_of(pair.server) == VDI_STATE_CONFIGURABLE);
    pair_discard(&pair);
}

static void bad_arguments(void)
{
    pair_ready(&pair, 1, 4096, 2);
    static const DWORD sizes[] = {0, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF};
    BYTE *buffer, *held, outside[64];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        buffer = outside;
        HRESULT hr = V(pair.server, AllocateBuffer, &buffer, sizes[i], 0);
        CHECK(hr == VD_E_INVALID || (sizes[i] && hr == VD_E_MEMORY));
        CHECK(buffer == NULL);
    }
    static const DWORD alignments[] = {3, 513, 0x80000001, 0xFFFFFFFF, 4 * MIB, 0x80000000};
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        DWORD count;
        HR(V(pair.server, AllocateBuffer, &buffer, 512, alignments[i]), VD_E_INVALID);
        HR(V(pair.server, RequestBuffers, 512, alignments[i], 1), VD_E_INVALID);
        HR(V(pair.server, QueryAvailableBuffers, 512, alignments[i], &count), VD_E_INVALID);
    }
    HR(V(pair.server, AllocateBuffer, NULL, 512, 0), VD_E_INVALID);
    HR(V(pair.server, QueryAvailableBuffers, 512, 0, NULL), VD_E_INVALID);
    OK(V(pair.server, AllocateBuffer, &held, 4096, 0));
    static const DWORD wrong[] = {0, 1, 4095, 4097, 8192, 0xFFFFFFFF};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        HR(V(pair.server, FreeBuffer, held, wrong[i]), VD_E_INVALID);
    HR(V(pair.server, FreeBuffer, held + 1, 4096), VD_E_INVALID);
    HR(V(pair.server, FreeBuffer, NULL, 4096), VD_E_INVALID);
    HR(V(pair.server, FreeBuffer, outside, 64), VD_E_INVALID);
    CHECK(V(pair.server, IsSharedBuffer, NULL) == 0);
    CHECK(V(pair.server, IsSharedBuffer, outside) == 0);
    CHECK(V(pair.server, IsSharedBuffer, (BYTE *)(uintptr_t)UINT64_MAX) == 0);
    CHECK(V(pair.server, IsSharedBuffer, held) == S_FALSE);
    /* Lent: it can not be freed until its callback. */
    Sent sent;
    sent_init(&sent, VDC_Write, held, 4096);
    OK(send_it(pair.s[0], &sent));
    HR(V(pair.server, FreeBuffer, held, 4096), VD_E_INVALID);
    VDC_Command *command = get(&pair, 0);
    HR(V(pair.server, FreeBuffer, held, 4096), VD_E_INVALID);
    complete(&pair, 0, command, ERROR_SUCCESS);
    wait_for(&sent);
    OK(V(pair.server, FreeBuffer, held, 4096));
    HR(V(pair.server, FreeBuffer, held, 4096), VD_E_INVALID);
    pair_finish(&pair);
}

static void both_directions(void)
{
    pair_ready(&pair, 1, 64 * KIB, 2);
    BYTE *buffer;
    Sent sent;
    OK(V(pair.server, AllocateBuffer, &buffer, 64 * KIB, 0));
    for (DWORD i = 0; i < 64 * KIB; i++)
        buffer[i] = (BYTE)(i * 7);
    sent_init(&sent, VDC_Write, buffer, 64 * KIB);
    OK(send_it(pair.s[0], &sent));
    VDC_Command *command = get(&pair, 0);
    int same = 1;
    for (DWORD i = 0; i < 64 * KIB; i++)
        same &= command->buffer[i] == (BYTE)(i * 7);
    CHECK(same);
    complete(&pair, 0, command, ERROR_SUCCESS);
    wait_for(&sent);
    sent_init(&sent, VDC_Read, buffer, 64 * KIB);
    OK(send_it(pair.s[0], &sent));
    command = get(&pair, 0);
    for (DWORD i = 0; i < 64 * KIB; i++)
        command->buffer[i] = (BYTE)(i * 11);
    complete(&pair, 0, command, ERROR_SUCCESS);
    wait_for(&sent);
    same = 1;
    for (DWORD i = 0; i < 64 * KIB; i++)
        same &= buffer[i] == (BYTE)(i * 11);
    CHECK(same);
    pair_finish(&pair);
}

/* --- handles --- */

static void handles(void)
{
    pair_ready(&pair, 1, 4096, 4);
    BYTE *buffers[3], *mapped, *other;
    Sent sent[3], flush;
    DWORD handle = 0, again = 0;
    for (int i = 0; i < 3; i++) {
        OK(V(pair.server, AllocateBuffer, &buffers[i], 4096, 0));
        memset(buffers[i], 'x' + i, 4096);
        sent_init(&sent[i], i == 1 ? VDC_Read : VDC_Write, buffers[i], 4096 - 512 * (DWORD)i);
    }
    OK(send_it(pair.s[0], &sent[0]));
    VDC_Command *command = get(&pair, 0);
    IVdiEmbeddedSet *x = embedded(pair.client);
    OK(V(pair.client, GetBufferHandle, command->buffer, &handle));
    OK(V(pair.client, GetBufferHandle, command->buffer, &again));
    CHECK(handle == again);
    CHECK(handle < 0x80000000); /* an int carries it in the C++ classes */
    OK(V(pair.client, MapBufferHandle, handle, &mapped));
    CHECK(mapped[0] == 'x' && mapped[4095] == 'x');
    HR(V(pair.client, GetBufferHandle, NULL, &handle), VD_E_INVALID);
    HR(V(pair.client, GetBufferHandle, command->buffer, NULL), VD_E_INVALID);
    HR(V(pair.client, GetBufferHandle, command->buffer + 1, &again), VD_E_INVALID);
    HR(V(pair.client, GetBufferHandle, command->buffer - 512, &again), VD_E_INVALID);
    HR(V(pair.client, GetBufferHandle, (BYTE *)&handle, &again), VD_E_INVALID);
    HR(V(pair.client, GetBufferHandle, buffers[2], &again), VD_E_INVALID); /* the server's */
    HR(V(pair.client, MapBufferHandle, handle, NULL), VD_E_INVALID);
    /* Forged: no other number is a handle, while this one is out. */
    uint64_t random = 7;
    for (int i = 0; i < 5000; i++) {
        DWORD forged = i < 32 ? handle ^ 1u << i : i < 2000 ? (DWORD)i - 32 : (DWORD)next_random(&random);
        other = (BYTE *)1;
        if (forged != handle && !HR(V(pair.client, MapBufferHandle, forged, &other), VD_E_INVALID))
            break;
    }
    VdiBufferInfo info, actual;
    OK(V(x, DescribeBuffer, command->buffer, &info));
    BYTE set_id[16];
    OK(V(x, GetSetId, set_id));
    CHECK(info.value == handle && info.size == 4096 && info.readOnly == 1);
    CHECK(memcmp(info.setId, set_id, 16) == 0);
    OK(V(x, CheckBuffer, &info));
    /* Size and access of the handle are not believed, its identity is checked in each field. */
    VdiBufferInfo lie = info;
    lie.size = 0xFFFFFFFF;
    lie.readOnly = 0;
    OK(V(x, MapBuffer, &lie, &mapped, &actual));
    CHECK(actual.size == 4096 && actual.readOnly == 1 && mapped[4095] == 'x');
    for (int bit = 0; bit < 32; bit++) {
        lie = info;
        lie.value ^= 1u << bit;
        HR(V(x, MapBuffer, &lie, &mapped, &actual), VD_E_INVALID);
        HR(V(x, CheckBuffer, &lie), VD_E_INVALID);
    }
    for (int bit = 0; bit < 64; bit++) {
        lie = info;
        lie.generation ^= (DWORDLONG)1 << bit;
        HR(V(x, MapBuffer, &lie, &mapped, &actual), VD_E_INVALID);
        HR(V(x, CheckBuffer, &lie), VD_E_INVALID);
    }
    for (int bit = 0; bit < 128; bit++) {
        lie = info;
        lie.setId[bit / 8] ^= (BYTE)(1 << bit % 8);
        HR(V(x, MapBuffer, &lie, &mapped, &actual), VD_E_INVALID);
        HR(V(x, CheckBuffer, &lie), VD_E_INVALID);
    }
    HR(V(x, DescribeBuffer, NULL, &info), VD_E_INVALID);
    HR(V(x, DescribeBuffer, command->buffer, NULL), VD_E_INVALID);
    HR(V(x, MapBuffer, NULL, &mapped, &actual), VD_E_INVALID);
    HR(V(x, MapBuffer, &info, NULL, &actual), VD_E_INVALID);
    HR(V(x, CheckBuffer, NULL), VD_E_INVALID);
    HR(V(x, GetSetId, NULL), VD_E_INVALID);
    HR(V(x, GetState, NULL), VD_E_INVALID);
    HR(V(x, GetAbortInfo, NULL), VD_E_INVALID);

    OK(send_it(pair.s[0], &sent[1]));
    OK(send_it(pair.s[0], &sent[2]));
    HR(V(pair.client, GetBufferHandle, buffers[2], &again), VD_E_INVALID); /* queued: not the client's yet */

    /* Stale: given back, and then lent again. */
    BYTE *address = command->buffer;
    complete(&pair, 0, command, ERROR_SUCCESS);
    HR(V(pair.client, GetBufferHandle, address, &again), VD_E_INVALID);
    HR(V(pair.client, MapBufferHandle, handle, &mapped), VD_E_INVALID);
    HR(V(x, MapBuffer, &info, &mapped, &actual), VD_E_INVALID);
    HR(V(x, CheckBuffer, &info), VD_E_INVALID);
    wait_for(&sent[0]);
    OK(send_it(pair.s[0], &sent[0]));
    command = get(&pair, 0);
    CHECK(command->commandCode == VDC_Read && command->size == 3584);
    VdiBufferInfo writable;
    OK(V(x, DescribeBuffer, command->buffer, &writable));
    CHECK(writable.readOnly == 0 && writable.size == 3584);
    complete(&pair, 0, command, ERROR_SUCCESS);
    command = get(&pair, 0);
    complete(&pair, 0, command, ERROR_SUCCESS);
    command = get(&pair, 0); /* the first one again */
    CHECK(command->buffer == address);
    HR(V(x, MapBuffer, &info, &mapped, &actual), VD_E_INVALID);
    HR(V(x, CheckBuffer, &info), VD_E_INVALID);
    VdiBufferInfo fresh;
    OK(V(x, DescribeBuffer, address, &fresh));
    CHECK(fresh.generation != info.generation);
    OK(V(x, MapBuffer, &fresh, &mapped, &actual));
    complete(&pair, 0, command, ERROR_SUCCESS);
    for (int i = 0; i < 3; i++)
        wait_for(&sent[i]);
    sent_init(&flush, VDC_Flush, NULL, 0);
    OK(send_it(pair.s[0], &flush));
    command = get(&pair, 0);
    CHECK(command->buffer == NULL);
    complete(&pair, 0, command, ERROR_SUCCESS);
    wait_for(&flush);
    V(x, Release);
    pair_finish(&pair);
}

/* Two sets that look alike: what is out in one means nothing in the other. */
static void foreign_handles(void)
{
    Pair other;
    BYTE *buffer, *mapped;
    DWORD handle;
    Sent sent;
    VdiBufferInfo info, actual;
    pair_ready(&pair, 1, 4096, 4);
    pair_ready(&other, 1, 4096, 4);
    OK(V(pair.server, AllocateBuffer, &buffer, 4096, 0));
    sent_init(&sent, VDC_Write, buffer, 4096);
    OK(send_it(pair.s[0], &sent));
    VDC_Command *command = get(&pair, 0);
    IVdiEmbeddedSet *mine = embedded(pair.client), *theirs = embedded(other.client);
    OK(V(pair.client, GetBufferHandle, command->buffer, &handle));
    OK(V(mine, DescribeBuffer, command->buffer, &info));
    HR(V(other.client, MapBufferHandle, handle, &mapped), VD_E_INVALID);
    HR(V(other.client, GetBufferHandle, command->buffer, &handle), VD_E_INVALID);
    HR(V(theirs, MapBuffer, &info, &mapped, &actual), VD_E_INVALID);
    HR(V(other.c[0], CompleteCommand, command, ERROR_SUCCESS, 0, 0), VD_E_INVALID);
    CHECK(V(other.server, IsSharedBuffer, buffer) == 0);
    Sent refused;
    sent_init(&refused, VDC_Write, buffer, 4096);
    HR(send_it(other.s[0], &refused), VD_E_INVALID);
    complete(&pair, 0, command, ERROR_SUCCESS);
    wait_for(&sent);
    V(mine, Release);
    V(theirs, Release);
    pair_finish(&other);
    finish_with((sent_init(&sent, VDC_Flush, NULL, 0), OK(send_it(pair.s[0], &sent)), &sent));
    pair_finish(&pair);
}

/* As many buffers as there may be, all lent at once over several devices. */
static void many_buffers(void)
{
    enum { COUNT = 4000 };
    static Sent sent[COUNT];
    static BYTE *buffers[COUNT];
    pair_ready(&pair, 4, 512, COUNT);
    for (int i = 0; i < COUNT; i++) {
        NEED(V(pair.server, AllocateBuffer, &buffers[i], 512, 0));
        memset(buffers[i], i & 0xFF, 512);
        sent_init(&sent[i], VDC_Write, buffers[i], 512);
        NEED(send_it(pair.s[i % 4], &sent[i]));
    }
    for (int i = 0; i < COUNT; i++) {
        VDC_Command *command = get(&pair, (unsigned)i % 4);
        if (!CHECK(command->buffer[0] == (i & 0xFF) && command->buffer[511] == (i & 0xFF)))
            break;
        complete(&pair, (unsigned)i % 4, command, ERROR_SUCCESS);
    }
    for (int i = 0; i < COUNT; i++) {
        wait_for(&sent[i]);
        if (!OK(V(pair.server, FreeBuffer, buffers[i], 512)))
            break;
    }
    pair_finish(&pair);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {
        TEST(alignment_and_prefix), TEST(sums), TEST(available), TEST(growth), TEST(sums_grow), TEST(too_much),
        TEST(bad_arguments), TEST(both_directions), TEST(handles), TEST(foreign_handles), TEST(many_buffers),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, 30, argc, argv);
}
