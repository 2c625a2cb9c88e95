"""What a query becomes: text for SQLite, the values it is bound to, and the types of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..types import Column, SqlType


@dataclass(frozen=True)
class Expression:
    """A part of a query.

    Parameters
    ----------
    sql : str
        For SQLite.
    type : SqlType or None
        None for a bare NULL.
    boolean : bool
        A condition, which is no value in T-SQL.
    name : str
        Of the column that it is, else empty.
    literal : object
        Its value where it is written down.
    """

    sql: str
    type: SqlType | None
    boolean: bool = False
    name: str = ""
    literal: object = None


@dataclass(frozen=True)
class Query:
    """A query that can be run.

    Parameters
    ----------
    sql : str
        For SQLite.
    columns : tuple of Column
    values : tuple
        What its numbered parameters stand for: literals, or names of variables as `Variable`.
    types : tuple of SqlType or None
        That conversions in it refer to by number.
    tables : frozenset of str
        System tables that it reads.
    assigns : tuple of str
        Variables that its columns go to; none where it is a result set.
    database : str
        Current when it was compiled.
    """

    sql: str
    columns: tuple[Column, ...]
    values: tuple[object, ...]
    types: tuple[SqlType | None, ...]
    tables: frozenset[str]
    assigns: tuple[str, ...] = ()
    database: str = "master"


@dataclass(frozen=True)
class Variable:
    """A value that is known when the query runs."""

    name: str


@dataclass
class Source:
    """Something that columns come from.

    Parameters
    ----------
    alias : str
        As SQLite knows it.
    columns : dict
        By name in lower case: the name as it is written, the name for SQLite, the type.
    """

    alias: str
    columns: dict[str, tuple[str, str, SqlType]]
    names: frozenset[str] = frozenset()  # that it may be called by, in lower case


@dataclass
class Scope:
    """The sources of one SELECT, and those around it."""

    outer: Scope | None = None
    sources: list[Source] = field(default_factory=list)
    results: Mapping[str, str] = field(default_factory=dict)  # of ORDER BY: columns of the result, by name
