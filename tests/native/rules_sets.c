/* Rules of sections 2, 4, 5.1 to 5.3, 7 and 10: objects and identities, names and instances, what a configuration may
 * hold, reuse, 1 to 64 devices, device names, secondaries. Both halves in this process. */
#include "harness.h"

static Pair pair;

/* --- objects --- */

static void class_factory(void)
{
    IClassFactory *factory = NULL;
    void *object = (void *)1;
    HR(DllGetClassObject(&CLSID_WINFS_ClientVirtualDeviceSet, &IID_IClassFactory, &object), CLASS_E_CLASSNOTAVAILABLE);
    CHECK(object == NULL);
    HR(DllGetClassObject(&CLSID_WIDVDI_ServerVirtualDeviceSet, &IID_IClassFactory, &object), CLASS_E_CLASSNOTAVAILABLE);
    CHECK(FAILED(DllGetClassObject(&CLSID_MSSQL_ClientVirtualDeviceSet, &IID_IClassFactory, NULL)));
    HR(DllGetClassObject(&CLSID_MSSQL_ClientVirtualDeviceSet, &IID_IClientVirtualDevice, &object), E_NOINTERFACE);
    OK(DllGetClassObject(&CLSID_MSSQL_ClientVirtualDeviceSet, &IID_IUnknown, (void **)&factory));
    V(factory, Release);
    OK(DllGetClassObject(&CLSID_MSSQL_ServerVirtualDeviceSet, &IID_IClassFactory, (void **)&factory));
    HR(V(factory, CreateInstance, (IUnknown *)factory, &IID_IUnknown, &object), CLASS_E_NOAGGREGATION);
    HR(V(factory, CreateInstance, NULL, &IID_IClientVirtualDeviceSet2, &object), E_NOINTERFACE);
    CHECK(object == NULL);
    CHECK(FAILED(V(factory, CreateInstance, NULL, &IID_IUnknown, NULL)));
    V(factory, Release);
    CHECK(VdiLiveObjects() == 0);
}

/* One object, one identity, and the full second vtable behind both identifiers. */
static void identities(void)
{
    IClientVirtualDeviceSet2 *client = new_client(), *also = NULL;
    IServerVirtualDeviceSet2 *server = new_server();
    void *object = NULL, *other = (void *)1;
    CHECK(VdiLiveObjects() == 2);
    HR(DllCanUnloadNow(), S_FALSE);
    OK(V(client, QueryInterface, &IID_IClientVirtualDeviceSet, (void **)&also));
    CHECK(also->lpVtbl == client->lpVtbl);
    VDConfig cfg = config(1);
    Name name = fresh_name();
    OK(V(also, CreateEx, NULL, name.text, &cfg)); /* slot 11 through the older interface */
    HR(V(client, CreateEx, NULL, name.text, &cfg), VD_E_PROTOCOL);
    HR(V(also, OpenInSecondaryEx, NULL, name.text), VD_E_PROTOCOL);
    OK(V(client, Close));
    OK(V(client, QueryInterface, &IID_IUnknown, &object));
    OK(V(also, QueryInterface, &IID_IUnknown, &other));
    CHECK(object == other);
    V(client, Release);
    V(client, Release);
    V(client, Release);
    HR(V(client, QueryInterface, &IID_IServerVirtualDeviceSet2, &other), E_NOINTERFACE);
    CHECK(other == NULL);
    HR(V(client, QueryInterface, &IID_IClientVirtualDevice, &other), E_NOINTERFACE);
    CHECK(FAILED(V(client, QueryInterface, &IID_IUnknown, NULL)));
    OK(V(server, QueryInterface, &IID_IUnknown, &object));
    OK(V(server, QueryInterface, &IID_IServerVirtualDeviceSet2, &other));
    CHECK(other == (void *)server);
    V(server, Release);
    V(server, Release);
    HR(V(server, QueryInterface, &IID_IServerVirtualDeviceSet, &other), E_NOINTERFACE); /* not served */
    HR(V(server, QueryInterface, &IID_IClientVirtualDeviceSet2, &other), E_NOINTERFACE);
    IVdiEmbeddedSet *x = embedded(client);
    OK(V(x, QueryInterface, &IID_IClientVirtualDeviceSet2, &other));
    CHECK(other == (void *)client);
    V(client, Release);
    CHECK(V(x, AddRef) == 3);
    CHECK(V(x, Release) == 2);
    CHECK(V(x, Release) == 1);
    CHECK(V(client, AddRef) == 2);
    CHECK(V(client, Release) == 1);
    CHECK(V(client, Release) == 0);
    CHECK(V(server, Release) == 0);
    CHECK(VdiLiveObjects() == 0);

    pair_ready(&pair, 1, 4096, 1);
    OK(V(pair.c[0], QueryInterface, &IID_IClientVirtualDevice, &object));
    CHECK(object == (void *)pair.c[0]);
    V(pair.c[0], Release);
    OK(V(pair.s[0], QueryInterface, &IID_IServerVirtualDevice, &object));
    V(pair.s[0], Release);
    HR(V(pair.s[0], QueryInterface, &IID_IClientVirtualDevice, &object), E_NOINTERFACE);
    HR(V(pair.c[0], QueryInterface, &IID_IClientVirtualDeviceSet, &object), E_NOINTERFACE);
    CHECK(VdiLiveObjects() == 4);
    pair_finish(&pair);
    CHECK(VdiLiveObjects() == 0);
}

/* Devices outlive sets without harm, and a set that is only released is closed. */
static void release_in_any_order(void)
{
    int descriptors = open_descriptors();
    VDC_Command *command;
    pair_ready(&pair, 2, 4096, 1);
    Sent sent;
    BYTE *buffer;
    OK(V(pair.server, AllocateBuffer, &buffer, 4096, 0));
    sent_init(&sent, VDC_Write, buffer, 4096);
    OK(send_it(pair.s[0], &sent));
    CHECK(V(pair.client, Release) == 0); /* open devices and all: acts as Close */
    wait_for(&sent);
    CHECK(sent.command.completionCode == ERROR_OPERATION_ABORTED);
    HR(pair_join_agent(&pair), VD_E_ABORT);
    HRESULT hr = V(pair.c[0], GetCommand, INFINITE, &command);
    CHECK(hr == VD_E_PROTOCOL || hr == VD_E_ABORT);
    V(pair.server, Release);
    Sent late;
    sent_init(&late, VDC_Flush, NULL, 0);
    hr = send_it(pair.s[1], &late);
    CHECK(hr == VD_E_PROTOCOL || hr == VD_E_ABORT);
    CHECK(late.calls == 1);
    for (int i = 0; i < 2; i++) {
        V(pair.c[i], Release);
        V(pair.s[i], Release);
    }
    CHECK(VdiLiveObjects() == 0);
    CHECK(open_descriptors() == descriptors);
    CHECK(shared_mappings() == 0);
}

static void null_pointers(void)
{
    VDConfig cfg = config(1);
    Name name = fresh_name();
    IClientVirtualDeviceSet2 *client = new_client();
    HR(V(client, Create, name.text, NULL), VD_E_INVALID);
    HR(V(client, Create, NULL, &cfg), VD_E_INVALID);
    HR(V(client, CreateEx, NULL, name.text, NULL), VD_E_INVALID);
    HR(V(client, CreateEx, NULL, NULL, &cfg), VD_E_INVALID);
    HR(V(client, OpenInSecondary, NULL), VD_E_INVALID);
    HR(V(client, OpenInSecondaryEx, NULL, NULL), VD_E_INVALID);
    V(client, Release);
    IServerVirtualDeviceSet2 *server = new_server();
    HR(V(server, Open, NULL, NULL), VD_E_INVALID);
    V(server, Release);
    pair_create(&pair, &cfg);
    HR(V(pair.server, GetConfiguration, NULL), VD_E_INVALID);
    HR(V(pair.client, GetConfiguration, 0, NULL), VD_E_INVALID);
    pair_begin(&pair, VDF_ReadMedia, 512, 0);
    NEED(V(pair.server, RequestBuffers, 4096, 0, 1));
    NEED(V(pair.server, EndConfiguration));
    NEED(V(pair.client, GetConfiguration, INFINITE, &cfg));
    IServerVirtualDevice *s = (IServerVirtualDevice *)&cfg;
    IClientVirtualDevice *c = (IClientVirtualDevice *)&cfg;
    HR(V(pair.server, OpenDevice, NULL, &s), VD_E_INVALID);
    CHECK(s == NULL);
    HR(V(pair.server, OpenDevice, pair.name.text, NULL), VD_E_INVALID);
    HR(V(pair.client, OpenDevice, NULL, &c), VD_E_INVALID);
    CHECK(c == NULL);
    HR(V(pair.client, OpenDevice, pair.name.text, NULL), VD_E_INVALID);
    OK(V(pair.server, OpenDevice, pair.name.text, &pair.s[0]));
    OK(V(pair.client, OpenDevice, pair.name.text, &pair.c[0]));
    HR(V(pair.c[0], GetCommand, 0, NULL), VD_E_INVALID);
    HR(V(pair.c[0], CompleteCommand, NULL, 0, 0, 0), VD_E_INVALID);
    OK(V(pair.s[0], CloseDevice));
    VDC_Command *command;
    HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_CLOSE);
    pair_discard(&pair);
}

/* --- names --- */

static HRESULT create(IClientVirtualDeviceSet2 *client, const char *instance, const Name *name)
{
    VDConfig cfg = config(1);
    Name i = name_of(instance ? instance : "");
    return V(client, CreateEx, instance ? i.text : NULL, name->text, &cfg);
}

static HRESULT open_set(const char *instance, const Name *name)
{
    IServerVirtualDeviceSet2 *server = new_server();
    Name i = name_of(instance ? instance : "");
    HRESULT hr = V(server, Open, instance ? i.text : NULL, name->text);
    V(server, Release);
    return hr;
}

static void names(void)
{
    IClientVirtualDeviceSet2 *client = new_client();
    char full[200], over[200], cut[200];
    memset(full, 'n', 128);
    memset(over, 'n', 129);
    full[128] = over[129] = 0;
    snprintf(cut, sizeof cut, "%.127s", full);
    static const char *const good[] = {"x", " two  spaces ", "{7A62-D0E6} [db] \"quoted\" 'n' /slash/ : * ? |",
                                       "Sicherung \xc3\x84\xc3\x96\xc3\x9c \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x92\xbe",
                                       "tab\tand\nnewline", "100%s%n"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        Name name = name_of(good[i]);
        OK(create(client, NULL, &name));
        OK(open_set(NULL, &name));
        V(client, Close);
    }
    Name name = name_of(full);
    Name other = name_of(cut);
    OK(create(client, NULL, &name));
    HR(open_set(NULL, &other), VD_E_INVALID); /* every character counts */
    OK(open_set(NULL, &name));
    V(client, Close);
    for (size_t i = 0; i < 128; i++)
        name.text[i] = (WCHAR)(0x4E00 + i);
    OK(create(client, NULL, &name));
    OK(open_set(NULL, &name));
    V(client, Close);
    name = name_of(over);
    HR(create(client, NULL, &name), VD_E_INVALID);
    HR(open_set(NULL, &name), VD_E_INVALID);
    name = name_of("");
    HR(create(client, NULL, &name), VD_E_INVALID);
    HR(open_set(NULL, &name), VD_E_INVALID);
    name = name_of("back\\slash");
    HR(create(client, NULL, &name), VD_E_INVALID);
    HR(open_set(NULL, &name), VD_E_INVALID);
    name = fresh_name();
    HR(open_set(NULL, &name), VD_E_INVALID); /* nobody has it */
    OK(create(client, NULL, &name));
    other = name;
    other.text[0] = 'N'; /* case-sensitive */
    HR(open_set(NULL, &other), VD_E_INVALID);
    IClientVirtualDeviceSet2 *second = new_client();
    HR(create(second, NULL, &name), VD_E_PROTOCOL); /* Q23: in use */
    OK(create(second, NULL, &other));
    V(client, Close);
    V(second, Close);
    OK(create(second, NULL, &name)); /* free at once */
    V(second, Close);
    V(client, Release);
    V(second, Release);
}

static void instances(void)
{
    IClientVirtualDeviceSet2 *client = new_client(), *second = new_client();
    Name name = fresh_name();
    OK(create(client, NULL, &name)); /* NULL and empty are the same (Q22) */
    HR(create(second, "", &name), VD_E_PROTOCOL);
    OK(open_set("", &name));
    V(client, Close);
    OK(create(client, "", &name));
    OK(open_set(NULL, &name));
    HR(open_set("SQL2022", &name), VD_E_INVALID);
    OK(create(second, "SQL2022", &name)); /* the same name in another instance */
    OK(open_set("SQL2022", &name));
    HR(V(second, OpenInSecondaryEx, NULL, name.text), VD_E_PROTOCOL);
    V(client, Close);
    V(second, Close);
    /* Create takes the instance from the environment. */
    VDConfig cfg = config(1);
    setenv("_VIRTUAL_SERVER_NAME_", "VIRTUAL", 1);
    OK(V(client, Create, name.text, &cfg));
    HR(open_set(NULL, &name), VD_E_INVALID);
    OK(open_set("VIRTUAL", &name));
    V(client, Close);
    unsetenv("_VIRTUAL_SERVER_NAME_");
    OK(V(client, Create, name.text, &cfg));
    OK(open_set(NULL, &name));
    V(client, Close);
    V(client, Release);
    V(second, Release);
}

/* --- configuration --- */

static void proposals(void)
{
    IClientVirtualDeviceSet2 *client = new_client();
    Name name = fresh_name();
    static const struct {
        DWORD devices, features, prefix, alignment;
        HRESULT hr;
    } cases[] = {
        {0, 0, 0, 0, VD_E_NOTSUPPORTED},
        {65, 0, 0, 0, VD_E_NOTSUPPORTED},
        {0xFFFFFFFF, 0, 0, 0, VD_E_NOTSUPPORTED},
        {1, 0, 0, 0, NOERROR},
        {64, 0, 0, 0, NOERROR},
        {1, VDF_LikeTape, 0, 0, NOERROR},
        {1, VDF_LikeDisk, 0, 0, NOERROR},
        {1, VDF_LikePipe | VDF_Removable, 0, 0, NOERROR},
        {1, VDF_LikeDisk | VDF_Removable, 0, 0, NOERROR},
        {1, VDF_LikeTape | VDF_Discard, 0, 0, NOERROR},
        {1, VDF_Discard | VDF_RequestComplete | VDF_SnapshotPrepare, 0, 0, NOERROR},
        {1, VDF_LatchStats, 0, 0, NOERROR},
        {1, VDF_FileMarks | VDF_RandomAccess, 0, 0, VD_E_NOTSUPPORTED}, /* Q24 */
        {1, VDF_LikeTape | VDF_LikeDisk, 0, 0, VD_E_NOTSUPPORTED},
        {1, VDF_WriteMedia, 0, 0, VD_E_NOTSUPPORTED},
        {1, VDF_ReadMedia, 0, 0, VD_E_NOTSUPPORTED},
        {1, VDF_RequestComplete | VDF_CompleteEnabled, 0, 0, VD_E_NOTSUPPORTED},
        {1, 0x4, 0, 0, VD_E_NOTSUPPORTED},
        {1, 0x100000, 0, 0, VD_E_NOTSUPPORTED},
        {1, 0, 1, 0, NOERROR},
        {1, 0, 65536, 0, NOERROR},
        {1, 0, 0, 512, NOERROR},
        {1, 0, 0, 65536, NOERROR},
        {1, 0, 0, 3, VD_E_NOTSUPPORTED},
        {1, 0, 0, 131072, VD_E_NOTSUPPORTED},
        {1, 0, 0, 0xFFFFFFFF, VD_E_NOTSUPPORTED},
        {1, 0, 0xFFFFFFFF, 0, VD_E_NOTSUPPORTED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        VDConfig cfg = config(cases[i].devices);
        cfg.features = cases[i].features;
        cfg.prefixZoneSize = cases[i].prefix;
        cfg.alignment = cases[i].alignment;
        if (!HR(V(client, CreateEx, NULL, name.text, &cfg), cases[i].hr))
            printf("     proposal %zu\n", i);
        V(client, Close);
    }
    V(client, Release);
}

static void decisions(void)
{
    VDConfig cfg = config(2), seen;
    cfg.features = VDF_LikeTape | VDF_RequestComplete;
    cfg.prefixZoneSize = 100;
    cfg.alignment = 1024;
    cfg.softFileMarkBlockSize = 4096;
    cfg.EOMWarningSize = 123456;
    cfg.serverTimeOut = 60000;
    pair_create(&pair, &cfg);
    OK(V(pair.server, GetConfiguration, &seen));
    CHECK(seen.deviceCount == 2 && seen.features == cfg.features && seen.prefixZoneSize == 100 &&
          seen.alignment == 1024 && seen.softFileMarkBlockSize == 4096 && seen.EOMWarningSize == 123456 &&
          seen.serverTimeOut == 60000);
    const DWORD features = cfg.features | VDF_WriteMedia | VDF_CompleteEnabled;
    static const struct {
        DWORD block, alignment, transfer;
    } bad[] = {{0, 0, 65536},      {256, 0, 65536},       {513, 0, 65536},     {131072, 0, 65536},  {4096, 2048, 65536},
               {4096, 5000, 65536}, {4096, 131072, 65536}, {4096, 4096, 0}, {4096, 4096, 65535}, {4096, 4096, 98304},
               {65536, 512, 65536}, {4096, 4096, 512},     {0x80000000, 0, 65536}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!HR(V(pair.server, BeginConfiguration, features, bad[i].block, bad[i].alignment, bad[i].transfer, 0),
                VD_E_INVALID))
            printf("     decision %zu\n", i);
    CHECK(state_of(pair.server) == VDI_STATE_CONNECTED);
    OK(V(pair.server, BeginConfiguration, features, 2048, 8192, 4 * MIB, 12345));
    OK(V(pair.server, GetConfiguration, &seen));
    CHECK(seen.features == features && seen.blockSize == 2048 && seen.alignment == 8192 &&
          seen.maxTransferSize == 4 * MIB && seen.maxIODepth == 4);
    HR(V(pair.client, GetConfiguration, 0, &seen), VD_E_TIMEOUT); /* not before EndConfiguration */
    OK(V(pair.server, RequestBuffers, MIB, 0, 3));
    OK(V(pair.server, EndConfiguration));
    OK(V(pair.client, GetConfiguration, INFINITE, &seen));
    CHECK(seen.deviceCount == 2 && seen.features == features && seen.prefixZoneSize == 100 && seen.alignment == 8192 &&
          seen.softFileMarkBlockSize == 4096 && seen.EOMWarningSize == 123456 && seen.serverTimeOut == 60000 &&
          seen.blockSize == 2048 && seen.maxIODepth == 4 && seen.maxTransferSize == 4 * MIB &&
          seen.bufferAreaSize >= 3 * MIB);
    pair_discard(&pair);
}

/* 0 from the server means the block size, and never less than what the client wants. */
static void final_alignment(void)
{
    static const DWORD cases[][3] = {{0, 512, 512}, {0, 65536, 65536}, {4096, 512, 4096}, {512, 8192, 8192}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        VDConfig cfg = config(1);
        cfg.alignment = cases[i][0];
        pair_create(&pair, &cfg);
        pair_begin(&pair, VDF_ReadMedia, cases[i][1], 0);
        OK(V(pair.server, EndConfiguration));
        OK(V(pair.client, GetConfiguration, INFINITE, &cfg));
        CHECK(cfg.alignment == cases[i][2]);
        CHECK((cfg.features & VDF_ReadMedia) && !(cfg.features & (VDF_WriteMedia | VDF_CompleteEnabled)));
        pair_discard(&pair);
    }
}

typedef struct Asker {
    pthread_t thread;
    HRESULT hr;
    VDConfig cfg;
} Asker;

static void *ask(void *argument)
{
    Asker *asker = argument;
    for (int i = 0; i < 200; i++)
        if ((asker->hr = V(pair.client, GetConfiguration, INFINITE, &asker->cfg)) != NOERROR)
            break;
    return NULL;
}

/* GetConfiguration from several threads, before and after, any number of times. */
static void many_askers(void)
{
    Asker askers[6];
    VDConfig cfg = config(2);
    pair_create(&pair, &cfg);
    for (int i = 0; i < 6; i++)
        pthread_create(&askers[i].thread, NULL, ask, &askers[i]);
    double start = now();
    HR(V(pair.client, GetConfiguration, 60, &cfg), VD_E_TIMEOUT);
    CHECK(now() - start >= 0.059);
    CHECK(state_of(pair.client) == VDI_STATE_CONFIGURABLE);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    OK(V(pair.server, RequestBuffers, 4096, 0, 1));
    pair_activate(&pair);
    for (int i = 0; i < 6; i++) {
        pthread_join(askers[i].thread, NULL);
        OK(askers[i].hr);
        CHECK(askers[i].cfg.blockSize == 512 && askers[i].cfg.deviceCount == 2);
    }
    pair_finish(&pair);
}

/* --- devices --- */

static void sixty_four_devices(void)
{
    static const DWORD counts[] = {1, 2, 63, 64};
    for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
        Sent sent[MAX_DEVICES];
        BYTE *buffers[MAX_DEVICES];
        IServerVirtualDevice *more = NULL;
        pair_ready(&pair, counts[n], 512, 64);
        Name name = name_of("one more");
        HR(V(pair.server, OpenDevice, name.text, &more), VD_E_OPEN);
        CHECK(more == NULL);
        for (DWORD i = 0; i < counts[n]; i++) {
            OK(V(pair.server, AllocateBuffer, &buffers[i], 512, 0));
            memset(buffers[i], (int)i, 512);
            sent_init(&sent[i], VDC_Write, buffers[i], 512);
            OK(send_it(pair.s[i], &sent[i]));
        }
        for (DWORD i = counts[n]; i-- > 0;) {
            VDC_Command *command = get(&pair, i);
            CHECK(command->buffer[0] == i && command->buffer[511] == i);
            complete(&pair, i, command, ERROR_SUCCESS);
            wait_for(&sent[i]);
        }
        pair_finish(&pair);
    }
}

/* One object, one operation after the other; the server's object serves only one. */
static void reuse(void)
{
    IClientVirtualDeviceSet2 *client = new_client();
    int descriptors = open_descriptors();
    for (int life = 0; life < 5; life++) {
        VDConfig cfg = config(1);
        VDC_Command *command;
        IClientVirtualDevice *c = NULL;
        IServerVirtualDevice *s = NULL;
        IServerVirtualDeviceSet2 *server = new_server();
        Name name = fresh_name();
        OK(V(client, CreateEx, NULL, name.text, &cfg));
        OK(V(server, Open, NULL, name.text));
        OK(V(server, BeginConfiguration, VDF_WriteMedia, 512, 0, 65536, 0));
        OK(V(server, EndConfiguration));
        OK(V(client, GetConfiguration, INFINITE, &cfg));
        OK(V(server, OpenDevice, name.text, &s));
        OK(V(client, OpenDevice, name.text, &c));
        if (life % 2) {
            OK(V(s, CloseDevice));
            HR(V(c, GetCommand, INFINITE, &command), VD_E_CLOSE);
            OK(V(client, Close));
        } else {
            HR(V(client, Close), VD_E_OPEN);
        }
        V(server, Close);
        HR(V(server, Open, NULL, name.text), VD_E_PROTOCOL);
        HR(V(c, GetCommand, 0, &command), VD_E_PROTOCOL);
        V(c, Release);
        V(s, Release);
        V(server, Release);
        CHECK(open_descriptors() == descriptors);
        CHECK(shared_mappings() == 0);
    }
    V(client, Release);
}

typedef struct Getter {
    pthread_t thread;
    IClientVirtualDevice *device;
    HRESULT hr;
} Getter;

static void *get_on(void *argument)
{
    Getter *getter = argument;
    VDC_Command *command;
    getter->hr = V(getter->device, GetCommand, INFINITE, &command);
    return NULL;
}

/* The client may open a device before the server has named it; a name that never comes is refused at the end. */
static void names_before_the_server(void)
{
    VDConfig cfg = config(2);
    pair_create(&pair, &cfg);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    OK(V(pair.server, EndConfiguration));
    OK(V(pair.client, GetConfiguration, INFINITE, &cfg));
    Name right = device_name(&pair.name, 1), wrong = name_of("nobody's");
    VDC_Command *command;
    OK(V(pair.client, OpenDevice, right.text, &pair.c[0]));
    HR(V(pair.client, OpenDevice, right.text, &pair.c[1]), VD_E_PROTOCOL);
    OK(V(pair.client, OpenDevice, wrong.text, &pair.c[1]));
    HR(V(pair.c[0], GetCommand, 0, &command), VD_E_TIMEOUT);
    HR(V(pair.c[1], GetCommand, 0, &command), VD_E_TIMEOUT);
    Getter getter = {.device = pair.c[1]};
    pthread_create(&getter.thread, NULL, get_on, &getter);
    OK(V(pair.server, OpenDevice, right.text, &pair.s[1]));
    Sent sent;
    sent_init(&sent, VDC_Flush, NULL, 0);
    OK(send_it(pair.s[1], &sent));
    OK(V(pair.c[0], GetCommand, INFINITE, &command));
    HR(V(pair.c[1], GetCommand, 0, &command), VD_E_TIMEOUT);
    OK(V(pair.server, OpenDevice, pair.name.text, &pair.s[0]));
    pthread_join(getter.thread, NULL);
    HR(getter.hr, VD_E_INVALID);
    HR(V(pair.c[1], GetCommand, 0, &command), VD_E_INVALID);
    HR(V(pair.c[1], GetCommand, INFINITE, &command), VD_E_INVALID);
    pair_discard(&pair);
}

/* As many wrong names as there are devices, and then the right ones. */
static void many_wrong_names(void)
{
    enum { COUNT = 64 };
    IClientVirtualDevice *wrong[COUNT], *more = NULL;
    VDC_Command *command;
    VDConfig cfg = config(COUNT);
    pair_create(&pair, &cfg);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    OK(V(pair.server, EndConfiguration));
    OK(V(pair.client, GetConfiguration, INFINITE, &cfg));
    for (unsigned i = 0; i < COUNT; i++) {
        Name name = name_of("wrong");
        name = device_name(&name, i);
        OK(V(pair.client, OpenDevice, name.text, &wrong[i]));
    }
    Name name = name_of("one more");
    HR(V(pair.client, OpenDevice, name.text, &more), VD_E_OPEN);
    for (unsigned i = 0; i < COUNT; i++) {
        name = device_name(&pair.name, i);
        OK(V(pair.server, OpenDevice, name.text, &pair.s[i]));
    }
    for (unsigned i = 0; i < COUNT; i++) {
        name = device_name(&pair.name, i);
        OK(V(pair.client, OpenDevice, name.text, &pair.c[i]));
        HR(V(wrong[i], GetCommand, INFINITE, &command), VD_E_INVALID);
        V(wrong[i], Release);
    }
    pair_start_agent(&pair);
    Sent sent;
    sent_init(&sent, VDC_Flush, NULL, 0);
    OK(send_it(pair.s[COUNT - 1], &sent));
    complete(&pair, COUNT - 1, get(&pair, COUNT - 1), ERROR_SUCCESS);
    wait_for(&sent);
    pair_finish(&pair);
}

/* --- secondaries --- */

static void secondaries(void)
{
    VDConfig cfg = config(2), seen;
    IClientVirtualDeviceSet2 *secondary = new_client(), *idle = new_client();
    Name nobody = fresh_name();
    HR(V(secondary, OpenInSecondaryEx, NULL, nobody.text), VD_E_PROTOCOL);
    pair_create(&pair, &cfg);
    HR(V(secondary, OpenInSecondaryEx, NULL, pair.name.text), VD_E_PROTOCOL); /* not configured */
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    OK(V(pair.server, RequestBuffers, 4096, 0, 4));
    OK(V(pair.server, EndConfiguration));
    HR(V(secondary, OpenInSecondaryEx, NULL, pair.name.text), VD_E_PROTOCOL); /* the primary does not have it yet */
    OK(V(pair.client, GetConfiguration, INFINITE, &cfg));
    OK(V(secondary, OpenInSecondaryEx, NULL, pair.name.text));
    OK(V(idle, OpenInSecondary, pair.name.text));
    CHECK(state_of(secondary) == VDI_STATE_INITIALIZING);
    HR(V(secondary, CreateEx, NULL, nobody.text, &cfg), VD_E_PROTOCOL);
    HR(V(secondary, OpenInSecondary, pair.name.text), VD_E_PROTOCOL);
    Name second = device_name(&pair.name, 1);
    OK(V(pair.server, OpenDevice, pair.name.text, &pair.s[0]));
    OK(V(pair.server, OpenDevice, second.text, &pair.s[1]));
    pair_start_agent(&pair);
    OK(V(pair.client, OpenDevice, pair.name.text, &pair.c[0]));
    HR(V(secondary, OpenDevice, pair.name.text, &pair.c[1]), VD_E_PROTOCOL); /* open in another process */
    OK(V(secondary, OpenDevice, second.text, &pair.c[1]));
    CHECK(state_of(secondary) == VDI_STATE_ACTIVE);
    OK(V(secondary, GetConfiguration, 0, &seen));
    CHECK(memcmp(&seen, &cfg, sizeof cfg) == 0);
    /* A command of each device; buffers go by handle to the one that has neither. */
    for (unsigned i = 0; i < 2; i++) {
        Sent sent;
        BYTE *buffer, *mapped;
        DWORD handle;
        OK(V(pair.server, AllocateBuffer, &buffer, 4096, 0));
        memset(buffer, 'p' + (int)i, 4096);
        sent_init(&sent, VDC_Write, buffer, 4096);
        OK(send_it(pair.s[i], &sent));
        VDC_Command *command = get(&pair, i);
        OK(V(i ? secondary : pair.client, GetBufferHandle, command->buffer, &handle));
        HR(V(i ? pair.client : secondary, GetBufferHandle, (BYTE *)&handle, &handle), VD_E_INVALID);
        OK(V(idle, MapBufferHandle, handle, &mapped));
        CHECK(mapped[0] == 'p' + (int)i && mapped[4095] == 'p' + (int)i);
        complete(&pair, i, command, ERROR_SUCCESS);
        wait_for(&sent);
        HR(V(idle, MapBufferHandle, handle, &mapped), VD_E_INVALID);
    }
    OK(V(idle, Close)); /* without a device it leaves without a trace */
    VDC_Command *command;
    if (!HR(V(pair.c[0], GetCommand, 0, &command), VD_E_TIMEOUT))
        printf("     %s\n", abort_info(pair.client).reason);
    for (unsigned i = 0; i < 2; i++) {
        OK(V(pair.s[i], CloseDevice));
        HR(V(pair.c[i], GetCommand, INFINITE, &command), VD_E_CLOSE);
    }
    OK(pair_join_agent(&pair));
    CHECK(state_of(secondary) == VDI_STATE_NORMALLY_TERMINATED);
    OK(V(secondary, Close));
    OK(V(pair.client, Close));
    OK(V(pair.server, Close));
    V(secondary, Release);
    V(idle, Release);
    pair_discard(&pair);
}

/* A secondary's SignalAbort ends it for all; so does its Close with a device open. */
static void secondary_aborts(void)
{
    for (int how = 0; how < 2; how++) {
        IClientVirtualDeviceSet2 *secondary = new_client();
        IClientVirtualDevice *device = NULL;
        VDC_Command *command;
        VDConfig cfg = config(2);
        pair_create(&pair, &cfg);
        pair_begin(&pair, VDF_WriteMedia, 512, 0);
        OK(V(pair.server, EndConfiguration));
        OK(V(pair.client, GetConfiguration, INFINITE, &cfg));
        OK(V(secondary, OpenInSecondary, pair.name.text));
        Name second = device_name(&pair.name, 1);
        OK(V(pair.server, OpenDevice, pair.name.text, &pair.s[0]));
        OK(V(pair.server, OpenDevice, second.text, &pair.s[1]));
        OK(V(pair.client, OpenDevice, pair.name.text, &pair.c[0]));
        OK(V(secondary, OpenDevice, second.text, &device));
        if (how == 0)
            OK(V(secondary, SignalAbort));
        else
            HR(V(secondary, Close), VD_E_OPEN);
        HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_ABORT);
        HR(V(pair.server, GetConfiguration, &cfg), VD_E_ABORT);
        CHECK(abort_info(pair.server).cause == (how == 0 ? VDI_ABORT_SIGNALLED : VDI_ABORT_CLOSED));
        V(secondary, Close);
        V(device, Release);
        V(secondary, Release);
        pair_discard(&pair);
    }
}

static void one_server_only(void)
{
    VDConfig cfg = config(1);
    pair_create(&pair, &cfg);
    HR(open_set(NULL, &pair.name), VD_E_BUSY);
    OK(V(pair.server, GetConfiguration, &cfg)); /* undisturbed */
    pair_discard(&pair);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {
        TEST(class_factory), TEST(identities), TEST(release_in_any_order), TEST(null_pointers), TEST(names),
        TEST(instances), TEST(proposals), TEST(decisions), TEST(final_alignment), TEST(many_askers),
        TEST(sixty_four_devices), TEST(reuse), TEST(names_before_the_server), TEST(many_wrong_names),
        TEST(secondaries), TEST(secondary_aborts), TEST(one_server_only),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, 30, argc, argv);
}
