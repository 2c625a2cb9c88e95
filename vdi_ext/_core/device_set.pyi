import os
from types import TracebackType
from typing import Any, NoReturn, final

from ..config import DeviceSetConfig
from ..constants import SetState
from .buffer import BufferHandle, MappedBuffer
from .command import Command
from .device import VirtualDevice
from .provider import Provider

@final
class VirtualDeviceSet:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __reduce__(self) -> NoReturn: ...
    @classmethod
    def create(
        cls,
        name: str | None = None,
        config: DeviceSetConfig = ...,
        *,
        instance: str | None = None,
        provider: Provider | str | os.PathLike[str] | None = None,
        group: str | int | None = None,
    ) -> VirtualDeviceSet: ...
    @classmethod
    def open_in_secondary(
        cls,
        name: str,
        *,
        instance: str | None = None,
        provider: Provider | str | os.PathLike[str] | None = None,
    ) -> VirtualDeviceSet: ...
    @property
    def name(self) -> str: ...
    @property
    def instance(self) -> str | None: ...
    @property
    def config(self) -> DeviceSetConfig: ...
    @property
    def state(self) -> SetState: ...
    def get_configuration(self, timeout: float | None = None) -> DeviceSetConfig: ...
    def open_device(self, name: str | None = None) -> VirtualDevice: ...
    def get_buffer_handle(self, command: Command) -> BufferHandle: ...
    def map_buffer_handle(self, handle: BufferHandle, *, trusted: bool = False) -> MappedBuffer: ...
    def signal_abort(self, reason: str | None = None) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> VirtualDeviceSet: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
