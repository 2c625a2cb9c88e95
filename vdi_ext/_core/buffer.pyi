from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, final

__pyx_capi__: dict[str, Any]

@dataclass(frozen=True)
class BufferHandle:
    value: int
    size: int
    readonly: bool
    set_name: str
    instance: str | None = None
    set_id: bytes | None = None
    generation: int = 0

# Only for type checkers: before 3.12 the buffer protocol has no method in Python.
class _Exporter:
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class MappedBuffer(_Exporter):
    @property
    def handle(self) -> BufferHandle: ...
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __reduce__(self) -> NoReturn: ...
    def release(self) -> None: ...
    def __enter__(self) -> MappedBuffer: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
