/* Set, device and instance names: UTF-16, 1 to 128 characters, no backslash. */
#include "internal.h"

static HRESULT copy(WCHAR out[NAME_UNITS + 1], LPCWSTR in) {
    unsigned units = 0, characters = 0;
    for (; in[units]; units++) {
        WCHAR c = in[units];
        bool low = c >= 0xDC00 && c <= 0xDFFF;
        bool after_high = units && in[units - 1] >= 0xD800 && in[units - 1] <= 0xDBFF;
        if (low != after_high || c == u'\\')
            return VD_E_INVALID;
        if (!low && ++characters > 128)
            return VD_E_INVALID;
        out[units] = c;
    }
    if (units && in[units - 1] >= 0xD800 && in[units - 1] <= 0xDBFF)
        return VD_E_INVALID;
    memset(out + units, 0, (NAME_UNITS + 1 - units) * sizeof *out);
    return NOERROR;
}

HRESULT name_copy(WCHAR out[NAME_UNITS + 1], LPCWSTR name) {
    return name && *name ? copy(out, name) : VD_E_INVALID;
}

/* NULL and empty are the default instance. */
HRESULT instance_copy(WCHAR out[NAME_UNITS + 1], LPCWSTR instance) {
    if (!instance) {
        memset(out, 0, (NAME_UNITS + 1) * sizeof *out);
        return NOERROR;
    }
    return copy(out, instance) == NOERROR ? NOERROR : VD_E_INSTANCE_NAME;
}

bool name_equal(const WCHAR *a, const WCHAR *b) {
    return !memcmp(a, b, (NAME_UNITS + 1) * sizeof *a);
}
