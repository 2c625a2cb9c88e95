"""The statements that jobs send."""

from collections.abc import Mapping, Sequence

from .common import ArgumentError

PLACEHOLDER = "{device}"

OptionValue = bool | int | str | None


def quoted_name(name: str) -> str:
    """A name as an identifier in brackets."""
    return "[" + name.replace("]", "]]") + "]"


def quoted_text(text: str) -> str:
    """Text as a literal."""
    return "N'" + text.replace("'", "''") + "'"


def statement_text(
    verb: str,
    database: str,
    devices: Sequence[str],
    options: Mapping[str, OptionValue],
    extra: Sequence[str] = (),
    what: str = "DATABASE",
) -> str:
    """Compose BACKUP or RESTORE.

    Parameters
    ----------
    verb : {"BACKUP", "RESTORE"}
    database : str
        Any name; quoted here.
    devices : sequence of str
        The device set's name first.
    options : mapping
        WITH options: True writes the bare word, False and None leave it out, a number is assigned, a text quoted.
    extra : sequence of str
        More of them, as the user wrote them.
    what : {"DATABASE", "LOG"}
    """
    clauses = ", ".join(f"VIRTUAL_DEVICE = {quoted_text(device)}" for device in devices)
    words = []
    for option, value in options.items():
        if value is True:
            words.append(option)
        elif isinstance(value, str):
            words.append(f"{option} = {quoted_text(value)}")
        elif value is not None and value is not False:
            words.append(f"{option} = {value:d}")
    words += extra
    tail = " WITH " + ", ".join(words) if words else ""
    return f"{verb} {what} {quoted_name(database)} {'TO' if verb == 'BACKUP' else 'FROM'} {clauses}{tail}"


def placeholders(count: int) -> list[str]:
    """What stands for the devices' names in a statement of the user's own: ``{device}``, ``{device2}``, ..."""
    return [PLACEHOLDER] + [f"{{device{number}}}" for number in range(2, count + 1)]


def filled(sql: str, names: Sequence[str], verb: str) -> str:
    """A statement of the user's own, with the names of the devices.

    Raises
    ------
    ArgumentError
        It does not begin with the verb, or does not name each device once.
    """
    if not sql.lstrip().upper().startswith(verb):
        raise ArgumentError(f"the statement does not begin with {verb}: {sql.strip()[:60]!r}")
    for place, name in zip(placeholders(len(names)), names, strict=True):
        if sql.count(place) != 1:
            raise ArgumentError(f"the statement must say VIRTUAL_DEVICE = '{place}' once for {len(names)} devices")
        sql = sql.replace(place, name.replace("'", "''"))
    return sql
