/* The entry of a COM in-process server: a class factory for each half, and the identities of what they make. */
#include "internal.h"

_Atomic uint32_t live_objects;

HRESULT set_query(struct two_faced *set, const IID *const own_ids[], const IID *riid, void **out) {
    if (!riid || !out)
        return E_POINTER;
    *out = guid_equal(riid, &IID_IVdiEmbeddedSet) ? &set->extra : NULL;
    for (unsigned i = 0; own_ids[i]; i++)
        if (guid_equal(riid, own_ids[i]))
            *out = &set->own;
    if (!*out)
        return E_NOINTERFACE;
    set->own.lpVtbl->AddRef(&set->own);
    return S_OK;
}

static IUnknown *own_of(IVdiEmbeddedSet *This) {
    return (IUnknown *)((char *)This - offsetof(struct two_faced, extra));
}
HRESULT STDMETHODCALLTYPE extra_query(IVdiEmbeddedSet *This, const IID *riid, void **out) {
    return own_of(This)->lpVtbl->QueryInterface(own_of(This), riid, out);
}
ULONG STDMETHODCALLTYPE extra_add_ref(IVdiEmbeddedSet *This) { return own_of(This)->lpVtbl->AddRef(own_of(This)); }
ULONG STDMETHODCALLTYPE extra_release(IVdiEmbeddedSet *This) { return own_of(This)->lpVtbl->Release(own_of(This)); }

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
