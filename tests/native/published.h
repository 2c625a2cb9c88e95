/* What a Linux program knows of SQL Server's client library: the structures and classes of section 2.4 of the
 * specification, and none of our headers. The classes may be declared a second time under other names (macros). */
#ifndef PUBLISHED_STRUCTURES
#define PUBLISHED_STRUCTURES
#include <stdint.h>
#include <time.h>

#pragma pack(push, 8)
struct VDConfig {
    uint32_t deviceCount, features, prefixZoneSize, alignment, softFileMarkBlockSize, EOMWarningSize, serverTimeOut;
    uint32_t blockSize, maxIODepth, maxTransferSize, bufferAreaSize;
};
struct VDC_Command {
    int32_t commandCode, size;
    int64_t position;
    uint8_t *buffer;
};
#pragma pack(pop)

enum { READ = 1, WRITE = 2, CLEAR_ERROR = 3, FLUSH = 12, COMPLETE = 19 };
enum { SUCCESS = 0, HANDLE_EOF = 38, NOT_SUPPORTED = 50, DISK_FULL = 112 };
const int TIMEOUT = -2139684861, ABORT = -2139684860, SECURITY = -2139684859, INVALID = -2139684858,
          NOT_SUPPORTED_CONFIG = -2139684855, UNEXPECTED = -2139684853, PROTOCOL = -2139684852, OPEN = -2139684851,
          CLOSED = -2139684850;

struct CVD;
struct CVDS;
#endif

class ClientVirtualDevice {
    friend class ClientVirtualDeviceSet;
    CVD *cvd;

public:
    ClientVirtualDevice();
    ~ClientVirtualDevice();
    int GetCommand(time_t timeOut, VDC_Command **ppCmd);
    int CompleteCommand(VDC_Command *pCmd, int completionCode, unsigned long bytesTransferred, int64_t position);
};

class ClientVirtualDeviceSet {
    CVDS *cvds;

public:
    ClientVirtualDeviceSet();
    ~ClientVirtualDeviceSet();
    int Create(char *name, VDConfig *cfg);
    int GetConfiguration(time_t timeout, VDConfig *cfg);
    int OpenDevice(char *name, ClientVirtualDevice **ppVirtualDevice);
    int Close();
    int SignalAbort();
    int OpenInSecondary(char *setName);
    int GetBufferHandle(uint8_t *pBuffer, unsigned int *pBufferHandle);
    int MapBufferHandle(int dwBuffer, uint8_t **ppBuffer);
    void RegisterDeviceClosed();
};
