"""Queries of the system tables: compiled to SQLite's SQL, which evaluates them, with SQL Server's types."""

from __future__ import annotations

from .compiled import Query
from .runner import Cancelled, Rows
from .selects import Compiler
from .system import Context

__all__ = ["Cancelled", "Compiler", "Context", "Query", "Rows"]
