/* A backup client as Linux programs write them: against the classes of libsqlvdi.so alone, as published.h has
 * them, with none of our headers. Deals in files, one per device.
 *
 * cxx_client backup|restore NAME DEVICES PREFIX [WHO]     all devices, one thread each; with WHO "delete" the devices
 *                                                         are deleted before Close, with "late" after it
 * cxx_client primary NAME DEVICES PREFIX                  device 0 only: the others are for secondaries
 * cxx_client secondary NAME DEVICE PREFIX
 * cxx_client handles NAME MIB                             a forked process has and fills the buffers, by their handles
 * cxx_client contract                                     codes and arguments, without a server
 *
 * Lines on standard output tell the test where it is. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "published.h"

/* A program may have a COM library of its own: the classes must not take its entry for theirs. */
extern "C" int DllGetClassObject(const void *, const void *, void **)
{
    printf("FAIL the classes use the program's own class factory\n");
    abort();
}

static int failures;

static void expect(int line, const char *what, long got, long expected)
{
    if (got != expected) {
        printf("FAIL line %d: %s gives %ld, expected %ld\n", line, what, got, expected);
        failures++;
    }
}
#define EXPECT(call, expected) expect(__LINE__, #call, (call), (expected))

static std::string device_name(const std::string &set, int number)
{
    return number ? set + "-" + std::to_string(number) : set;
}

/* One device to or from its file, until the server closes it. */
static void serve(ClientVirtualDeviceSet *set, std::string set_name, int number, std::string prefix, bool writing,
                  ClientVirtualDevice **kept)
{
    std::string name = device_name(set_name, number), path = prefix + "." + std::to_string(number);
    ClientVirtualDevice *device = nullptr;
    VDC_Command *command = nullptr;
    int hr;
    EXPECT(set->OpenDevice(&name[0], &device), 0);
    FILE *file = fopen(path.c_str(), writing ? "wb" : "rb");
    if (!device || !file) {
        printf("FAIL device %d\n", number);
        exit(1);
    }
    while ((hr = device->GetCommand(90, &command)) == 0) { /* seconds, as the published sample has it */
        int code = SUCCESS;
        unsigned long bytes = 0;
        switch (command->commandCode) {
        case READ:
            bytes = fread(command->buffer, 1, (size_t)command->size, file);
            code = bytes == (unsigned long)command->size ? SUCCESS : HANDLE_EOF;
            break;
        case WRITE:
            bytes = fwrite(command->buffer, 1, (size_t)command->size, file);
            code = bytes == (unsigned long)command->size ? SUCCESS : DISK_FULL;
            break;
        case FLUSH:
            code = fflush(file) == 0 && fsync(fileno(file)) == 0 ? SUCCESS : DISK_FULL;
            break;
        case CLEAR_ERROR:
        case COMPLETE:
            break;
        default:
            code = NOT_SUPPORTED;
        }
        EXPECT(device->CompleteCommand(command, code, bytes, 0), 0);
        EXPECT(device->CompleteCommand(command, code, bytes, 0), INVALID);
    }
    EXPECT(hr, CLOSED);
    fclose(file);
    set->RegisterDeviceClosed();
    *kept = device;
}

static int transfer(bool writing, const char *name, int devices, const char *prefix, const std::string &deletion)
{
    ClientVirtualDeviceSet *set = new ClientVirtualDeviceSet();
    VDConfig cfg;
    memset(&cfg, 0, sizeof cfg);
    cfg.deviceCount = (uint32_t)devices;
    std::string set_name = name;
    EXPECT(set->Create(&set_name[0], &cfg), 0);
    EXPECT(set->Create(&set_name[0], &cfg), PROTOCOL);
    printf("created\n");
    int hr;
    while ((hr = set->GetConfiguration(1000, &cfg)) == TIMEOUT) /* milliseconds */
        ;
    EXPECT(hr, 0);
    EXPECT(cfg.features & (writing ? 0x10000 : 0x20000), writing ? 0x10000 : 0x20000);
    std::vector<std::thread> threads;
    std::vector<ClientVirtualDevice *> opened((size_t)devices);
    for (int i = 0; i < devices; i++)
        threads.emplace_back(serve, set, set_name, i, prefix, writing, &opened[(size_t)i]);
    for (auto &thread : threads)
        thread.join();
    VDC_Command *command;
    for (auto device : opened)
        EXPECT(device->GetCommand(-1, &command), CLOSED);
    if (deletion == "delete")
        for (auto device : opened)
            delete device;
    EXPECT(set->Close(), 0);
    EXPECT(set->Close(), PROTOCOL);
    if (deletion != "delete")
        for (auto device : opened)
            EXPECT(device->GetCommand(0, &command), PROTOCOL);
    if (deletion == "late" || deletion == "after") {
        delete set; /* before its devices: they must stay harmless */
        for (auto device : opened) {
            EXPECT(device->GetCommand(0, &command), PROTOCOL);
            delete device;
        }
        set = nullptr;
    }
    delete set;
    return failures;
}

static int primary(const char *name, int devices, const char *prefix)
{
    ClientVirtualDeviceSet set;
    ClientVirtualDevice *device;
    VDConfig cfg;
    memset(&cfg, 0, sizeof cfg);
    cfg.deviceCount = (uint32_t)devices;
    std::string set_name = name;
    EXPECT(set.Create(&set_name[0], &cfg), 0);
    printf("created\n");
    EXPECT(set.GetConfiguration(-1, &cfg), 0);
    printf("configured\n");
    serve(&set, set_name, 0, prefix, (cfg.features & 0x10000) != 0, &device);
    delete device;
    while (getchar() != EOF) /* until the secondaries are known to have ended */
        ;
    EXPECT(set.Close(), 0);
    return failures;
}

static int secondary(const char *name, int number, const char *prefix)
{
    ClientVirtualDeviceSet set;
    ClientVirtualDevice *device;
    VDConfig cfg;
    std::string set_name = name;
    EXPECT(set.OpenInSecondary(&set_name[0]), 0);
    EXPECT(set.OpenInSecondary(&set_name[0]), PROTOCOL);
    EXPECT(set.GetConfiguration(0, &cfg), 0);
    serve(&set, set_name, number, prefix, (cfg.features & 0x10000) != 0, &device);
    delete device;
    EXPECT(set.Close(), 0);
    return failures;
}

/* What cserver sends to device 0 and expects from it. */
static uint8_t byte_at(uint64_t position)
{
    uint64_t x = position * 131 + (position >> 12);
    return (uint8_t)(x ^ x >> 8);
}

/* A buffer that another process works on: it reads a Write's bytes and fills a Read's. */
struct Work {
    unsigned int handle;
    int code, size;
    uint64_t position;
};

static int worker(const char *name, int in, int out)
{
    std::string set_name = name;
    ClientVirtualDeviceSet set;
    Work work;
    bool joined = false;
    while (read(in, &work, sizeof work) == (ssize_t)sizeof work) {
        if (!joined)
            EXPECT(set.OpenInSecondary(&set_name[0]), 0);
        joined = true;
        uint8_t *buffer = nullptr;
        EXPECT(set.MapBufferHandle(0x7FFFFFF1, &buffer), INVALID);
        EXPECT(set.MapBufferHandle(-5, &buffer), INVALID);
        EXPECT(set.MapBufferHandle((int)work.handle, nullptr), INVALID);
        EXPECT(set.MapBufferHandle((int)work.handle, &buffer), 0);
        int wrong = 0;
        for (int i = 0; i < work.size; i++)
            if (work.code == READ)
                buffer[i] = byte_at(work.position + (uint64_t)i);
            else
                wrong += buffer[i] != byte_at(work.position + (uint64_t)i);
        EXPECT(wrong, 0);
        if (write(out, &wrong, sizeof wrong) != (ssize_t)sizeof wrong)
            return 1;
    }
    EXPECT(set.Close(), 0);
    return failures;
}

static int handles(const char *name, uint64_t total)
{
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0)
        return 1;
    pid_t pid = fork();
    if (pid == 0) {
        close(to[1]);
        close(from[0]);
        _exit(worker(name, to[0], from[1]) ? 1 : 0);
    }
    close(to[0]);
    close(from[1]);
    ClientVirtualDeviceSet set;
    ClientVirtualDevice *device = nullptr;
    VDC_Command *command;
    VDConfig cfg;
    memset(&cfg, 0, sizeof cfg);
    cfg.deviceCount = 1;
    std::string set_name = name;
    EXPECT(set.Create(&set_name[0], &cfg), 0);
    printf("created\n");
    EXPECT(set.GetConfiguration(-1, &cfg), 0);
    EXPECT(set.OpenDevice(&set_name[0], &device), 0);
    int hr;
    uint64_t position = 0;
    while ((hr = device->GetCommand(-1, &command)) == 0) {
        int code = command->commandCode == FLUSH || command->commandCode == CLEAR_ERROR ? SUCCESS : NOT_SUPPORTED;
        unsigned long bytes = 0;
        if (command->commandCode == READ && position == total) {
            code = HANDLE_EOF;
        } else if (command->commandCode == READ || command->commandCode == WRITE) {
            Work work = {0, command->commandCode, command->size, position};
            int wrong = 1;
            EXPECT(set.GetBufferHandle(command->buffer, &work.handle), 0);
            if (write(to[1], &work, sizeof work) != (ssize_t)sizeof work ||
                read(from[0], &wrong, sizeof wrong) != (ssize_t)sizeof wrong)
                return 1;
            code = wrong ? DISK_FULL : SUCCESS;
            bytes = (unsigned long)command->size;
            position += bytes;
        }
        EXPECT(device->CompleteCommand(command, code, bytes, 0), 0);
    }
    EXPECT(hr, CLOSED);
    EXPECT((long)position, (long)total);
    set.RegisterDeviceClosed();
    close(to[1]);
    int status = -1;
    waitpid(pid, &status, 0);
    EXPECT(status, 0);
    EXPECT(set.Close(), 0);
    delete device;
    return failures;
}

static double now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int contract()
{
    static_assert(sizeof(ClientVirtualDeviceSet) == 8 && sizeof(ClientVirtualDevice) == 8, "one pointer each");
    VDConfig cfg;
    VDC_Command *command;
    ClientVirtualDevice *device = (ClientVirtualDevice *)&cfg, own;
    unsigned int handle;
    uint8_t *buffer;
    std::string name = "native cxx " + std::to_string(getpid()), over(129, 'x'), full(128, 'x');
    memset(&cfg, 0, sizeof cfg);
    cfg.deviceCount = 1;
    {
        ClientVirtualDeviceSet untouched;
    }
    ClientVirtualDeviceSet set;
    EXPECT(set.Close(), PROTOCOL);
    EXPECT(set.SignalAbort(), PROTOCOL);
    EXPECT(set.GetConfiguration(0, &cfg), PROTOCOL);
    EXPECT(set.OpenDevice(&name[0], &device), PROTOCOL);
    EXPECT(device == nullptr, 1);
    EXPECT(set.GetBufferHandle((uint8_t *)&cfg, &handle), PROTOCOL);
    EXPECT(set.MapBufferHandle(1, &buffer), PROTOCOL);
    EXPECT(own.GetCommand(0, &command), PROTOCOL);
    EXPECT(own.CompleteCommand(nullptr, 0, 0, 0), PROTOCOL);
    /* names: UTF-8, and nothing else */
    static const char *const broken[] = {"\x80", "\xC3", "\xC3(", "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80",
                                         "\xF4\x90\x80\x80", "\xF8\x88\x80\x80\x80", "\xF0\x9F\x92", "ok\xFF", "",
                                         "a\\b"};
    for (auto text : broken) {
        std::string copy = text;
        EXPECT(set.Create(&copy[0], &cfg), INVALID);
        EXPECT(set.OpenInSecondary(&copy[0]), INVALID);
    }
    EXPECT(set.Create(nullptr, &cfg), INVALID);
    EXPECT(set.OpenInSecondary(nullptr), INVALID);
    EXPECT(set.Create(&name[0], nullptr), INVALID);
    EXPECT(set.Create(&over[0], &cfg), INVALID);
    std::string endless(100000, 'x');
    EXPECT(set.Create(&endless[0], &cfg), INVALID);
    EXPECT(set.Create(&full[0], &cfg), 0);
    EXPECT(set.Close(), 0);
    std::string unicode = name + " \xC3\x84\xE6\x97\xA5\xF0\x9F\x92\xBE";
    EXPECT(set.Create(&unicode[0], &cfg), 0);
    EXPECT(set.Close(), 0);
    cfg.deviceCount = 65;
    EXPECT(set.Create(&name[0], &cfg), NOT_SUPPORTED_CONFIG);
    cfg.deviceCount = 1;
    /* one object, one set after the other */
    for (int life = 0; life < 3; life++) {
        EXPECT(set.Create(&name[0], &cfg), 0);
        ClientVirtualDeviceSet second;
        EXPECT(second.Create(&name[0], &cfg), PROTOCOL);
        EXPECT(second.OpenInSecondary(&name[0]), PROTOCOL);
        double start = now();
        EXPECT(set.GetConfiguration(120, &cfg), TIMEOUT); /* milliseconds */
        EXPECT(now() - start >= 0.119 && now() - start < 5, 1);
        EXPECT(set.OpenDevice(&name[0], &device), PROTOCOL);
        EXPECT(set.OpenDevice(&name[0], nullptr), INVALID);
        EXPECT(set.SignalAbort(), 0);
        EXPECT(set.GetConfiguration(4294967295, &cfg), ABORT);
        EXPECT(set.Close(), 0);
        EXPECT(set.Close(), PROTOCOL);
    }
    /* A wait that would overflow is long, not short: another thread's abort ends it. */
    static const long waits[] = {-1, -1000, 0xFFFFFFFFL, 0x100000000L, 0x7FFFFFFFFFFFFFFFL, (long)(1ull << 63)};
    for (long wait : waits) {
        ClientVirtualDeviceSet waiting;
        EXPECT(waiting.Create(&name[0], &cfg), 0);
        int result = 0;
        std::thread thread([&] { result = waiting.GetConfiguration(wait, &cfg); });
        struct timespec moment = {0, 20000000};
        nanosleep(&moment, nullptr); /* gives a wait that is short by mistake the time to show it */
        EXPECT(waiting.SignalAbort(), 0);
        thread.join();
        EXPECT(result, ABORT);
        EXPECT(waiting.Close(), 0);
    }
    return failures;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, nullptr, _IOLBF, 0);
    alarm(60);
    std::string what = argc > 1 ? argv[1] : "";
    int bad = 2;
    if ((what == "backup" || what == "restore") && argc > 4)
        bad = transfer(what == "backup", argv[2], atoi(argv[3]), argv[4], argc > 5 ? argv[5] : "never");
    else if (what == "primary" && argc > 4)
        bad = primary(argv[2], atoi(argv[3]), argv[4]);
    else if (what == "secondary" && argc > 4)
        bad = secondary(argv[2], atoi(argv[3]), argv[4]);
    else if (what == "handles" && argc > 3)
        bad = handles(argv[2], (uint64_t)atoi(argv[3]) << 20);
    else if (what == "contract")
        bad = contract();
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "python")) {
            printf("FAIL Python is in this process: %s", line);
            bad++;
        }
    if (maps)
        fclose(maps);
    return bad ? 1 : 0;
}
