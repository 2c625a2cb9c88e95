"""Names of sets with tokens in them: ``backups/{server}_{database}_{kind}_{date}_{time}``."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping

from .common import ArgumentError

TOKENS = ("database", "date", "instance", "kind", "server", "time")

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|%]|^\.|^~|^ | $')
_LONGEST = 200  # bytes of a value: the name of a file has 255


def tokens_of(*, database: str, kind: str, server: str = "", instance: str | None = None) -> dict[str, str]:
    """The values of all tokens, now; times are UTC."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "database": database,
        "date": now.strftime("%Y%m%d"),
        "instance": instance or "MSSQLSERVER",
        "kind": kind,
        "server": server,
        "time": now.strftime("%H%M%S"),
    }


def has_token(template: str, token: str) -> bool:
    """Whether a template mentions a token."""
    return any(found[1] == token for found in _TOKEN.finditer(template))


def expand(template: str, values: Mapping[str, str]) -> str:
    """Put values in place of tokens. ``{{`` and ``}}`` stand for braces.

    A value never leaves its place in the path: what is special in names of files becomes ``%XX``.

    Raises
    ------
    ArgumentError
        There is no such token.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        if found[1] not in values:
            raise ArgumentError(
                f"{found[0]!r} in {template!r} is no token: there are {', '.join(f'{{{t}}}' for t in TOKENS)}; "
                "write {{ and }} for braces"
            )
        return _safe(values[found[1]])

    return _TOKEN.sub(value, template)


def _safe(value: str) -> str:
    text = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)
    if len(text.encode()) > _LONGEST:
        raise ArgumentError(f"{value[:40]!r}... is too long for the name of a file")
    return text or "_"
