"""Small things that every job needs."""

import errno
import importlib.metadata
import os
from dataclasses import dataclass

from .._core.provider import Provider
from ..constants import CompletionCode
from ..errors import VDError

MAX_DEVICES = 64


class ArgumentError(ValueError):
    """A job was asked for something that can not be; nothing was begun."""


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes
    ----------
    path : str
        Directory of the set.
    size : int
        Bytes of all stripes.
    devices : int
        Number of stripes.
    seconds : float
        From the first to the last moment of the job.
    messages : tuple of str
        What the server said.
    database : str
        The name in the statement.
    """

    path: str
    size: int
    devices: int
    seconds: float
    messages: tuple[str, ...]
    database: str = ""

    def to_dict(self) -> dict:
        return {
            "path": self.path,
            "database": self.database,
            "size": self.size,
            "devices": self.devices,
            "seconds": round(self.seconds, 3),
            "messages": list(self.messages),
        }


def tool_version() -> str:
    """Version of this package, as manifests name it."""
    try:
        return importlib.metadata.version("vdi_ext")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def checked_devices(devices: int) -> int:
    """The number of devices, or ArgumentError."""
    if isinstance(devices, bool) or not isinstance(devices, int) or not 1 <= devices <= MAX_DEVICES:
        raise ArgumentError(f"devices must be a number from 1 to {MAX_DEVICES}, not {devices!r}")
    return devices


def chosen_provider(provider: Provider | str | os.PathLike[str] | None) -> Provider:
    """The library that both sides of a job use: None is the stand-in's, which is the embedded one.

    Raises
    ------
    ArgumentError
        It can not be loaded.
    VDNotSupportedError
        It can be, but is of no use here.
    """
    if provider is None or isinstance(provider, Provider):
        return provider or Provider.embedded()
    named = {"embedded": Provider.embedded, "system": Provider.system}.get(str(provider))
    try:
        return named() if named else Provider.load(provider)
    except VDError:
        raise  # some of them are an OSError too
    except OSError as error:
        raise ArgumentError(f"the provider {str(provider)!r} can not be loaded: {error}") from error


def completion_for(error: OSError | None) -> CompletionCode:
    """The code that tells the server of a failure of ours."""
    if error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CompletionCode.DISK_FULL
    return CompletionCode.IO_DEVICE
