"""The procedures that drivers run statements with: sp_executesql, sp_prepare, sp_execute and their kin.

What they are given becomes the parameters of a batch. Every other procedure is refused with 2812, by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..messages import Message, SqlError, message
from ..session import Session
from ..types import INT, Parameter, SqlType
from .answers import Answer
from .requests import MOST_PARAMETERS, Argument, Call
from .types import Value

_MOST_KEPT = 8 << 20  # characters of prepared statements in one connection

# A declaration: name, type of one word or two, its size in parentheses, direction. All white space is one blank by
# then: runs of it, which several parts of the pattern can share, would take a time that grows with their square.
_DECLARATION = re.compile(
    r" ?(@[\w@#$]+) (?:AS )?[\w.\[\]]+(?: \w+)?? ?(?:\( ?(?:max|\d+)(?: ?, ?\d+)? ?\))?( ?(?:OUT|OUTPUT))? ?(?:,|\Z)",
    re.IGNORECASE,
)


class Declared(NamedTuple):
    """A parameter as the text of a statement's declarations has it."""

    name: str
    output: bool


@dataclass(frozen=True)
class Prepared:
    """A statement that is kept."""

    text: str
    declared: tuple[Declared, ...]

    @property
    def size(self) -> int:
        return len(self.text) + sum(len(one.name) for one in self.declared)


class Procedures:
    """Runs calls in a session; keeps what was prepared there.

    Parameters
    ----------
    session : Session
    stopped : callable
        Whether the client has asked to end what runs.
    """

    def __init__(self, session: Session, stopped: Callable[[], bool]) -> None:
        self._session = session
        self._stopped = stopped
        self._prepared: dict[int, Prepared] = {}
        self._last = 0
        self._kinds: Mapping[str, Callable[[Call, Answer], list[tuple[int, str, SqlType, Value]]]] = {
            "sp_executesql": self._execute_sql,
            "sp_prepare": self._prepare,
            "sp_prepexec": self._prepare_and_execute,
            "sp_execute": self._execute,
            "sp_unprepare": self._unprepare,
        }

    def forget(self) -> None:
        """Drop what was prepared."""
        self._prepared.clear()

    def run(self, calls: list[Call], answer: Answer) -> None:
        """Run calls in their order."""
        for call in calls:
            if self._stopped():
                return
            answer.begin_procedure()
            outputs: list[tuple[int, str, SqlType, Value]] = []
            try:
                kind = self._kinds.get(call.procedure.casefold().removeprefix("sys."))
                if kind is None:
                    raise _failure(2812, call.procedure)
                outputs = kind(call, answer)
            except SqlError as error:
                for said in error.messages:
                    answer.message(said)
            answer.end_procedure(answer.error, outputs)

    # ---- each of them

    def _execute_sql(self, call: Call, answer: Answer) -> list[tuple[int, str, SqlType, Value]]:
        text = _text(call, 0)
        declared = _declarations(_text(call, 1)) if len(call.arguments) > 1 else ()
        return self._run(call, Prepared(text, declared), 2, answer)

    def _prepare(self, call: Call, answer: Answer) -> list[tuple[int, str, SqlType, Value]]:
        prepared = Prepared(_text(call, 2), _declarations(_text(call, 1)))
        return [(0, "", INT, self._keep(prepared))]

    def _prepare_and_execute(self, call: Call, answer: Answer) -> list[tuple[int, str, SqlType, Value]]:
        prepared = Prepared(_text(call, 2), _declarations(_text(call, 1)))
        handle = self._keep(prepared)
        return [(0, "", INT, handle), *self._run(call, prepared, 3, answer)]

    def _execute(self, call: Call, answer: Answer) -> list[tuple[int, str, SqlType, Value]]:
        return self._run(call, self._prepared[self._handle(call)], 1, answer)

    def _unprepare(self, call: Call, answer: Answer) -> list[tuple[int, str, SqlType, Value]]:
        del self._prepared[self._handle(call)]
        return []

    # ---- parts of them

    def _keep(self, prepared: Prepared) -> int:
        if sum(kept.size for kept in self._prepared.values()) + prepared.size > _MOST_KEPT:
            raise _failure(701)
        self._last += 1
        self._prepared[self._last] = prepared
        return self._last

    def _handle(self, call: Call) -> int:
        handle = call.arguments[0].value if call.arguments else None
        if not isinstance(handle, int) or handle not in self._prepared:
            raise _failure(8179, handle if isinstance(handle, int) else 0)
        return handle

    def _run(self, call: Call, prepared: Prepared, first: int, answer: Answer) -> list[tuple[int, str, SqlType, Value]]:
        """Run a text with parameters; `first` is the place of the first of them in the call."""
        bound = _bind(call, prepared, first)
        parameters = {name: Parameter(one.type, one.value, one.output) for name, one in bound.items()}
        self._session.run(prepared.text, answer, parameters)
        return [
            (first + place, one.name, one.type, self._session.value(name))
            for place, (name, one) in enumerate(bound.items())
            if one.output
        ]


def _bind(call: Call, prepared: Prepared, first: int) -> dict[str, Argument]:
    """Arguments by the names that the statement declares, in the order of the arguments."""
    given = call.arguments[first:]
    names = [one.name.casefold() for one in prepared.declared]
    if len(given) > len(names):
        raise _failure(8144, call.procedure)
    bound: dict[str, Argument] = {}
    for place, argument in enumerate(given):
        name = argument.name.casefold() or names[place]
        if name not in names:
            raise _failure(8145, argument.name, call.procedure)
        declared = prepared.declared[names.index(name)]
        if argument.output and not declared.output:
            raise _failure(8162, declared.name)
        bound[declared.name] = argument
    for one in prepared.declared:
        if one.name not in bound:
            declaration = ", ".join(other.name for other in prepared.declared)
            raise _failure(8178, f"({declaration}){prepared.text}"[:4000], one.name)
    return bound


def _text(call: Call, place: int) -> str:
    """An argument that is a text; NULL declarations are none."""
    if place >= len(call.arguments):
        raise _failure(201, call.procedure, ("@stmt", "@params", "@stmt")[place])
    value = call.arguments[place].value
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _failure(214, "@params" if place == 1 else "@statement", "ntext/nchar/nvarchar")
    return value


def _declarations(text: str) -> tuple[Declared, ...]:
    """`@P1 int, @P2 nvarchar(4000) OUTPUT` as names."""
    found: list[Declared] = []
    place = 0
    text = " ".join(text.split())
    while place < len(text):
        match = _DECLARATION.match(text, place)
        if match is None:
            raise _failure(102, text[place : place + 40].strip())
        if len(found) == MOST_PARAMETERS:
            raise _failure(8003, MOST_PARAMETERS)
        found.append(Declared(match[1], bool(match[2])))
        place = match.end()
    if len({one.name.casefold() for one in found}) < len(found):
        raise _failure(134, found[-1].name)
    return tuple(found)


def _failure(number: int, *values: object) -> SqlError:
    entry: Message = message(number, *values)
    return SqlError((entry,))
