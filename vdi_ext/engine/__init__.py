"""The stand-in for SQL Server. It is not SQL Server: what it writes restores only into it."""

from __future__ import annotations

from .databases import Database, database_at
from .execution import Result
from .messages import Message, SqlError
from .process import EngineDiedError, EngineProcess
from .replay import Replay
from .server import BANNER, Engine
from .sqlite import Sqlite
from .synthetic import Synthetic
from .tsql import Statement, parse, quote_name, quote_string

__all__ = [
    "BANNER",
    "Database",
    "Engine",
    "EngineDiedError",
    "EngineProcess",
    "Message",
    "Replay",
    "Result",
    "SqlError",
    "Sqlite",
    "Statement",
    "Synthetic",
    "database_at",
    "parse",
    "quote_name",
    "quote_string",
]
