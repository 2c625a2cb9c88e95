"""Which type comes out where values of several types meet."""

from __future__ import annotations

from ..types import FLOAT, INT, SqlType
from .compiled import Expression
from .conversions import CLASSES, INTEGERS, class_of


def common(parts: list[Expression]) -> SqlType | None:
    """The type of which all can be."""
    known = [one.type for one in parts if one.type is not None]
    if not known:
        return None
    winner = max(known, key=lambda type_: CLASSES.index(class_of(type_)))
    same = [type_ for type_ in known if class_of(type_) == class_of(winner)]
    if class_of(winner) == "string":
        found = same[0]
        for type_ in same[1:]:
            sizes = (found.size, type_.size)
            size = None if None in sizes else max(size or 0 for size in sizes)
            found = SqlType("nvarchar" if any(t.name[0] in "ns" for t in (found, type_)) else "varchar", size)
        if len(known) > len(same):
            found = SqlType("nvarchar", 4000)
        return found
    if class_of(winner) == "int":
        return max(same, key=lambda type_: INTEGERS[type_.name][1])
    if class_of(winner) == "decimal" and len(known) > 1:
        return SqlType("numeric", precision=38, scale=max(type_.scale for type_ in same))
    return winner


def longer(left: SqlType | None, right: SqlType | None) -> SqlType:
    """The type of two strings, one behind the other."""
    types = [type_ for type_ in (left, right) if type_ is not None]
    national = any(type_.name in ("nvarchar", "nchar", "sysname") for type_ in types)
    limit = 4000 if national else 8000
    sizes = [type_.size for type_ in types]
    size = None if None in sizes else min(limit, sum(size or 0 for size in sizes))
    return SqlType("nvarchar" if national else "varchar", size)


def arithmetic(left: SqlType | None, right: SqlType | None, operator: str) -> SqlType | None:
    """The type of what an operator makes of two numbers."""
    known = [type_ for type_ in (left, right) if type_ is not None]
    classes = {class_of(type_) for type_ in known}
    if "float" in classes:
        return FLOAT
    if "decimal" in classes:
        scales = [6 if type_.name == "money" else type_.scale for type_ in known]
        scale = 6 if operator == "/" else min(10, sum(scales)) if operator == "*" else max(scales)
        return SqlType("numeric", precision=38, scale=scale)
    ints = [type_ for type_ in known if type_.name in INTEGERS]
    return max(ints, key=lambda type_: INTEGERS[type_.name][1]) if ints else INT if known else None
