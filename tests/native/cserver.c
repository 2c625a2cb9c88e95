/* SQL Server's part in C: backs up or restores a stream of known bytes over the server's vtable, one thread per
 * device.
 *
 * cserver backup|restore NAME DEVICES MIB       bytes of device d: position * 131 + d, folded
 *
 * A restore compares every byte that the client delivers, and expects the end of data where the backup ended. */
#include "harness.h"

#define DEPTH 4
#define TRANSFER (256 * KIB)

static IServerVirtualDeviceSet2 *set;
static IServerVirtualDevice *devices[MAX_DEVICES];
static uint64_t total;
static int restore;

static BYTE byte_at(unsigned device, uint64_t position)
{
    uint64_t x = position * 131 + device + (position >> 12);
    return (BYTE)(x ^ x >> 8);
}

static void wait_success(Sent *sent, DWORD bytes)
{
    wait_for(sent);
    CHECK(sent->command.completionCode == ERROR_SUCCESS);
    CHECK(sent->command.bytesTransferred == bytes);
}

static void alone(unsigned device, DWORD code, DWORD expected)
{
    Sent sent;
    sent_init(&sent, code, NULL, 0);
    OK(send_it(devices[device], &sent));
    wait_for(&sent);
    CHECK(sent.command.completionCode == expected);
}

static void compare(unsigned device, const Sent *sent, uint64_t position)
{
    for (DWORD i = 0; i < sent->command.bytesTransferred; i++)
        if (sent->command.buffer[i] != byte_at(device, position + i)) {
            printf("FAIL device %u differs at %llu\n", device, (unsigned long long)(position + i));
            g_failures++;
            return;
        }
}

static void *run_device(void *argument)
{
    unsigned device = (unsigned)(uintptr_t)argument;
    Sent sent[DEPTH];
    uint64_t at[DEPTH];
    BYTE *buffers[DEPTH];
    uint64_t position = 0;
    int n = 0;
    for (int i = 0; i < DEPTH; i++)
        NEED(V(set, AllocateBuffer, &buffers[i], TRANSFER, 0));
    for (; position < total; n++, position += TRANSFER) {
        int slot = n % DEPTH;
        if (n >= DEPTH) {
            wait_success(&sent[slot], TRANSFER);
            if (restore)
                compare(device, &sent[slot], at[slot]);
        }
        at[slot] = position;
        if (!restore)
            for (DWORD i = 0; i < TRANSFER; i++)
                buffers[slot][i] = byte_at(device, position + i);
        sent_init(&sent[slot], restore ? VDC_Read : VDC_Write, buffers[slot], TRANSFER);
        OK(send_it(devices[device], &sent[slot]));
    }
    for (int i = n > DEPTH ? n - DEPTH : 0; i < n; i++) {
        wait_success(&sent[i % DEPTH], TRANSFER);
        if (restore)
            compare(device, &sent[i % DEPTH], at[i % DEPTH]);
    }
    if (restore) {
        sent_init(&sent[0], VDC_Read, buffers[0], TRANSFER);
        OK(send_it(devices[device], &sent[0]));
        wait_for(&sent[0]);
        CHECK(sent[0].command.completionCode == ERROR_HANDLE_EOF && sent[0].command.bytesTransferred == 0);
        alone(device, VDC_ClearError, ERROR_SUCCESS);
    } else {
        alone(device, VDC_Flush, ERROR_SUCCESS);
        alone(device, VDC_Rewind, ERROR_NOT_SUPPORTED);
        alone(device, VDC_ClearError, ERROR_SUCCESS);
    }
    for (int i = 0; i < DEPTH; i++)
        OK(V(set, FreeBuffer, buffers[i], TRANSFER));
    OK(V(devices[device], CloseDevice));
    return NULL;
}

static void *run_agent(void *unused)
{
    (void)unused;
    OK(V(set, ExecuteCompletionAgent));
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    watchdog("cserver", 60);
    restore = strcmp(argv[1], "restore") == 0;
    Name name = name_of(argv[2]);
    DWORD count = (DWORD)atoi(argv[3]);
    total = (uint64_t)atoi(argv[4]) * MIB;
    pthread_t threads[MAX_DEVICES], agent;
    set = new_server();
    NEED(V(set, Open, NULL, name.text));
    NEED(V(set, BeginConfiguration, restore ? VDF_ReadMedia : VDF_WriteMedia, 512, 4096, MIB, 0));
    NEED(V(set, RequestBuffers, TRANSFER, 0, DEPTH * count));
    NEED(V(set, EndConfiguration));
    for (DWORD i = 0; i < count; i++) {
        Name device = device_name(&name, i);
        NEED(V(set, OpenDevice, device.text, &devices[i]));
    }
    pthread_create(&agent, NULL, run_agent, NULL);
    for (DWORD i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, run_device, (void *)(uintptr_t)i);
    for (DWORD i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    pthread_join(agent, NULL);
    OK(V(set, Close));
    for (DWORD i = 0; i < count; i++)
        V(devices[i], Release);
    V(set, Release);
    CHECK(VdiLiveObjects() == 0);
    return g_failures ? 1 : 0;
}
