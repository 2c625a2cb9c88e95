/* The entry of a COM in-process server: a class factory for each half. */
#include "internal.h"

_Atomic uint32_t live_objects;

typedef HRESULT (*create_fn)(const IID *riid, void **ppv);

struct factory { /* static, so references are not counted */
    IClassFactory iface;
    create_fn create;
};

static HRESULT STDMETHODCALLTYPE QueryInterface(IClassFactory *This, const IID *riid, void **out) {
    if (!riid || !out)
        return E_POINTER;
    bool known = guid_equal(riid, &IID_IUnknown) || guid_equal(riid, &IID_IClassFactory);
    *out = known ? This : NULL;
    return known ? S_OK : E_NOINTERFACE;
}
static ULONG STDMETHODCALLTYPE AddRef(IClassFactory *This) {
    (void)This;
    return 2;
}
static ULONG STDMETHODCALLTYPE Release(IClassFactory *This) {
    (void)This;
    return 1;
}
static HRESULT STDMETHODCALLTYPE CreateInstance(IClassFactory *This, IUnknown *outer, const IID *riid, void **out) {
    if (!riid || !out)
        return E_POINTER;
    *out = NULL;
    if (outer)
        return CLASS_E_NOAGGREGATION;
    return ((struct factory *)This)->create(riid, out);
}
static HRESULT STDMETHODCALLTYPE LockServer(IClassFactory *This, int lock) {
    (void)This, (void)lock;
    return S_OK;
}

static const IClassFactoryVtbl factory_vtbl = {QueryInterface, AddRef, Release, CreateInstance, LockServer};
static struct factory client_factory = {{&factory_vtbl}, client_set_create};
static struct factory server_factory = {{&factory_vtbl}, server_set_create};

HRESULT STDMETHODCALLTYPE DllGetClassObject(const CLSID *clsid, const IID *riid, void **out) {
    if (!clsid || !riid || !out)
        return E_POINTER;
    *out = NULL;
    struct factory *f = guid_equal(clsid, &CLSID_MSSQL_ClientVirtualDeviceSet)   ? &client_factory
                        : guid_equal(clsid, &CLSID_MSSQL_ServerVirtualDeviceSet) ? &server_factory
                                                                                 : NULL;
    return f ? QueryInterface(&f->iface, riid, out) : CLASS_E_CLASSNOTAVAILABLE;
}

/* Threads of the provider may be about to end: it stays loaded. */
HRESULT STDMETHODCALLTYPE DllCanUnloadNow(void) { return S_FALSE; }

DWORD VdiLiveObjects(void) { return atomic_load(&live_objects); }
