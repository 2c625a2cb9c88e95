"""Types of columns and parameters, as they go over the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class SqlType:
    """A type of SQL Server.

    Parameters
    ----------
    name : str
        ``"int"``, ``"bigint"``, ``"smallint"``, ``"tinyint"``, ``"bit"``, ``"numeric"``, ``"float"``, ``"real"``,
        ``"datetime"``, ``"uniqueidentifier"``, ``"nvarchar"``, ``"nchar"``, ``"varchar"``, ``"char"``, ``"sysname"``,
        ``"varbinary"`` or ``"binary"``.
    size : int or None
        Characters or bytes; None for max, and for types that have none.
    precision, scale : int
        Of numeric.

    Notes
    -----
    Values are int (bit: 0 or 1), decimal.Decimal, float, datetime.datetime without zone, uuid.UUID, str, bytes or None.
    """

    name: str
    size: int | None = None
    precision: int = 0
    scale: int = 0

    def __str__(self) -> str:
        if self.name == "numeric":
            return f"numeric({self.precision},{self.scale})"
        if self.name in SIZED:
            return f"{self.name}({'max' if self.size is None else self.size})"
        return self.name


class Column(NamedTuple):
    """A column of a result set; its name is empty where the statement gives none."""

    name: str
    type: SqlType
    nullable: bool = True


class Parameter(NamedTuple):
    """A parameter of a batch; its value is as `SqlType` says."""

    type: SqlType
    value: object
    output: bool = False


SIZED = frozenset({"nvarchar", "nchar", "varchar", "char", "varbinary", "binary"})

BIT = SqlType("bit")
TINYINT = SqlType("tinyint")
SMALLINT = SqlType("smallint")
INT = SqlType("int")
BIGINT = SqlType("bigint")
FLOAT = SqlType("float")
REAL = SqlType("real")
DATETIME = SqlType("datetime")
GUID = SqlType("uniqueidentifier")
SYSNAME = SqlType("sysname", 128)
LSN = SqlType("numeric", precision=25)


def nvarchar(size: int | None) -> SqlType:
    return SqlType("nvarchar", size)
