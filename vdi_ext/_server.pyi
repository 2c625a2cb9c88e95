"""The native set of the server half. Private; see _server.pxd."""

from collections.abc import Callable
from typing import Any, TypeVar, final

__pyx_capi__: dict[str, Any]
_T = TypeVar("_T")

@final
class ServerCore: ...

def start_agent(core: ServerCore, name: str) -> None: ...
def wait(call: Callable[[], _T]) -> _T: ...
