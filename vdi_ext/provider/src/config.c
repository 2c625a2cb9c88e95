/* Rules for VDConfig: what a client may ask for, what a server may decide. */
#include "internal.h"

#define CLIENT_FEATURES                                                                                                \
    (VDF_LikeTape | VDF_RandomAccess | VDF_Discard | VDF_SnapshotPrepare | VDF_EnumFrozenFiles | VDF_VSSWriter |       \
     VDF_RequestComplete | VDF_LatchStats)

HRESULT config_check_request(const VDConfig *c) {
    bool good = c->deviceCount >= 1 && c->deviceCount <= MAX_DEVICES && !(c->features & ~CLIENT_FEATURES) &&
                !((c->features & VDF_FileMarks) && (c->features & VDF_RandomAccess)) &&
                (c->alignment == 0 || (is_power_of_2(c->alignment) && c->alignment <= 65536)) &&
                c->prefixZoneSize <= PREFIX_LIMIT;
    return good ? NOERROR : VD_E_NOTSUPPORTED;
}

bool config_check_decision(const VDConfig *requested, const VDConfig *c) {
    DWORD server_bits = VDF_WriteMedia | VDF_ReadMedia | VDF_CompleteEnabled;
    return c->deviceCount == requested->deviceCount && c->prefixZoneSize == requested->prefixZoneSize &&
           !(c->features & ~(requested->features | server_bits)) && is_power_of_2(c->blockSize) &&
           c->blockSize >= 512 && c->blockSize <= 65536 && is_power_of_2(c->alignment) && c->alignment <= 65536 &&
           c->alignment >= c->blockSize && c->alignment >= requested->alignment && c->maxTransferSize &&
           c->maxTransferSize % 65536 == 0;
}
