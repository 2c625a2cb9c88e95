"""Whether the media families on a statement's devices are one media set, whole."""

from __future__ import annotations

from ..mtf import FamilyInfo
from .database import DatabaseError
from .tsql import Statement


class Families:
    """Admits one family per device.

    Parameters
    ----------
    statement : Statement
    """

    def __init__(self, statement: Statement) -> None:
        self._statement = statement
        self._seen: dict[int, str] = {}
        self._first: FamilyInfo | None = None
        self._identity: tuple[object, ...] = ()

    def admit(self, number: int, info: FamilyInfo) -> bool:
        """Check the family on device `number`; true for the first one. Raises `DatabaseError`."""
        device, count = self._statement.devices[number], len(self._statement.devices)
        self.check_label(number, info)
        if info.families > count:
            raise DatabaseError(3132, info.families, count)
        if info.families < count:
            raise DatabaseError(3231, device, info.families, count)
        if self._seen.get(info.family, device) != device:
            raise DatabaseError(3227, device, info.family, self._seen[info.family])
        self._seen[info.family] = device
        identity = (info.media_guid, info.set_guid, info.pages)
        if self._first is None:
            self._first, self._identity = info, identity
            return True
        if identity != self._identity:
            raise DatabaseError(3258, device)
        return False

    def check_label(self, number: int, info: FamilyInfo) -> None:
        """Whether the medium has the name that was asked for."""
        wanted = self._statement.media_name
        if wanted is not None and info.label is not None and info.label.name.casefold() != wanted.casefold():
            raise DatabaseError(4037, wanted, info.label.name, self._statement.devices[number])
