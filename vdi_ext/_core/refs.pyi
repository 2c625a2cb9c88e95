from typing import Any, final

__pyx_capi__: dict[str, Any]

@final
class SetRef: ...

@final
class DeviceRef: ...

@final
class NativeCall:
    def __call__(self) -> None: ...
