"""The configuration of a device set (`VDConfig`, section 4.1 of the specification)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeAlias

from .constants import Feature

__all__ = ["DeviceSetConfig", "WireConfig"]

_DWORD_MAX = 0xFFFFFFFF

# The eleven fields of VDConfig in their order.
WireConfig: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int, int]


@dataclass(frozen=True)
class DeviceSetConfig:
    """What a client asks for, and, as returned by `get_configuration`, what the server decided.

    Only what the wire can not carry is refused here; whether a configuration is acceptable (1 to 64 devices, mixture of
    features, ...) is for the provider to say with `VDNotSupportedError`.

    Parameters
    ----------
    device_count : int
        Number of devices; one per VIRTUAL_DEVICE clause.
    features : Feature
        What the devices can do; the server adds its own bits.
    prefix_zone_size : int
        Bytes before each buffer that are private to the client.
    alignment : int
        Least alignment of buffers in bytes, 0 for no wish; decided by the server.
    soft_file_mark_block_size, eom_warning_size : int
        Bytes; for devices like tapes.
    server_timeout : float or None
        Seconds; the server aborts after two such intervals without a completion. None: no limit. Carried in whole
        milliseconds, rounded up.
    block_size, max_io_depth, max_transfer_size, buffer_area_size : int
        Decided by the server; bytes, except `max_io_depth`, which is always 4 and without meaning.

    Raises
    ------
    TypeError, ValueError
        A value that is no number, negative or above 32 bits; a `server_timeout` of 0 (the wire's 0 is None here).
    """

    device_count: int = 1
    features: Feature = Feature.LIKE_PIPE
    prefix_zone_size: int = 0
    alignment: int = 0
    soft_file_mark_block_size: int = 0
    eom_warning_size: int = 0
    server_timeout: float | None = None
    block_size: int = 0
    max_io_depth: int = 0
    max_transfer_size: int = 0
    buffer_area_size: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "server_timeout":
                _timeout_ms(value)
            elif isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{field.name} must be an int, not {type(value).__name__}")
            elif not 0 <= value <= _DWORD_MAX:
                raise ValueError(f"{field.name} must be between 0 and {_DWORD_MAX}, not {value}")
        object.__setattr__(self, "features", Feature(self.features))

    def to_wire(self) -> WireConfig:
        """Return the fields of VDConfig in their order."""
        return (
            self.device_count,
            int(self.features),
            self.prefix_zone_size,
            self.alignment,
            self.soft_file_mark_block_size,
            self.eom_warning_size,
            _timeout_ms(self.server_timeout),
            self.block_size,
            self.max_io_depth,
            self.max_transfer_size,
            self.buffer_area_size,
        )

    @classmethod
    def from_wire(cls, wire: WireConfig) -> DeviceSetConfig:
        """Make a configuration from the fields of VDConfig in their order."""
        count, features, prefix, alignment, soft_mark, eom, timeout_ms, block, depth, transfer, area = wire
        return cls(
            device_count=count,
            features=Feature(features),
            prefix_zone_size=prefix,
            alignment=alignment,
            soft_file_mark_block_size=soft_mark,
            eom_warning_size=eom,
            server_timeout=timeout_ms / 1000 if timeout_ms else None,
            block_size=block,
            max_io_depth=depth,
            max_transfer_size=transfer,
            buffer_area_size=area,
        )


def _timeout_ms(seconds: float | None) -> int:
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"server_timeout must be seconds or None, not {type(seconds).__name__}")
    if not (0 < seconds < math.inf):
        raise ValueError(f"server_timeout must be a positive number of seconds, not {seconds}; None is without limit")
    # 0.1 s * 1000 may come out a hair above 100: round off what a double can not hold before rounding up.
    ms = math.ceil(round(seconds * 1000, 6))
    if ms > _DWORD_MAX:
        raise ValueError(f"server_timeout must be at most {_DWORD_MAX / 1000} seconds, not {seconds}")
    return max(ms, 1)
