"""From HRESULT to exception. Holds only functions of the C level; see _errors.pxd."""

from typing import Any

__pyx_capi__: dict[str, Any]
