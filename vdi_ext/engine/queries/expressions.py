"""Expressions of T-SQL, compiled to those of SQLite with their types."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NoReturn

from ..tsql.tokens import Cursor, Token, fail, is_keyword
from ..tsql.types import parse_type
from ..types import BIGINT, DATETIME, FLOAT, INT, SqlType, nvarchar
from . import system
from .compiled import Expression, Scope, Source, Variable
from .conversions import CLASSES, class_of
from .functions import DATE_FUNCTIONS, FUNCTIONS, PARTS, TEXT
from .promotion import arithmetic, common, longer

MOST_NESTED = 40  # levels of brackets, subqueries and the like

_COMPARISONS = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!<": ">=", "!>": "<="}
_AGGREGATES = {"COUNT", "COUNT_BIG", "MIN", "MAX", "SUM", "AVG", "STRING_AGG", "ROW_NUMBER", "RANK", "DENSE_RANK"}
_NUMBERS = ("int", "decimal", "float", "bit")


def quote(name: str) -> str:
    """A name for SQLite."""
    return '"' + name.replace('"', '""') + '"'


class Expressions:
    """Compiles the expressions of one query.

    Parameters
    ----------
    cursor : Cursor
    variables : mapping of str to SqlType
        Declared, by name in lower case.
    database : str
        The current one.
    """

    def __init__(self, cursor: Cursor, variables: Mapping[str, SqlType], database: str) -> None:
        self.cursor = cursor
        self.database = database
        self.variables = variables
        self.values: list[object] = []
        self.types: list[SqlType | None] = []
        self.tables: set[str] = set()
        self.scope: Scope | None = None
        self.depth = 0

    # ---- what SELECT adds

    def subquery(self, *, several: bool = False) -> Expression:
        """A query in brackets as a value, or with several columns for EXISTS; the first bracket is taken already."""
        raise NotImplementedError

    # ---- entries

    def value(self) -> Expression:
        """A value, not a condition."""
        found = self._sum()
        if found.boolean:
            self.cursor.syntax()
        return found

    def condition(self) -> str:
        found = self._or()
        if not found.boolean:
            token = self.cursor.token
            near = token.text if token.kind != "end" else self.cursor.tokens[self.cursor.place - 1].text
            fail(4145, near, line=token.line)
        return found.sql

    # ---- conditions

    def _or(self) -> Expression:
        found = self._and()
        while self.cursor.at("OR"):
            found = self._joined(found, "OR", self._and)
        return found

    def _and(self) -> Expression:
        found = self._not()
        while self.cursor.at("AND"):
            found = self._joined(found, "AND", self._not)
        return found

    def _joined(self, left: Expression, word: str, parse) -> Expression:
        if not left.boolean:
            fail(4145, word, line=self.cursor.token.line)
        self.cursor.next()
        right = parse()
        if not right.boolean:
            self._not_a_condition()
        return Expression(f"({left.sql} {word} {right.sql})", None, boolean=True)

    def _not_a_condition(self) -> NoReturn:
        token = self.cursor.token
        fail(4145, token.text or self.cursor.tokens[self.cursor.place - 1].text, line=token.line)

    def _not(self) -> Expression:
        with _Nesting(self):
            if self.cursor.take("NOT"):
                found = self._not()
                if not found.boolean:
                    self._not_a_condition()
                return Expression(f"(NOT {found.sql})", None, boolean=True)
            return self._predicate()

    def _predicate(self) -> Expression:
        cursor = self.cursor
        if cursor.at("EXISTS"):
            cursor.next()
            cursor.expect("(")
            return Expression(f"EXISTS {self.subquery(several=True).sql}", None, boolean=True)
        left = self._sum()
        if left.boolean:
            return left
        operator = _COMPARISONS.get(cursor.token.text) if cursor.token.kind == "symbol" else None
        if operator:
            cursor.next()
            if cursor.at("ALL", "ANY", "SOME"):
                fail(3015, f"A comparison with {cursor.token.value.upper()}", line=cursor.token.line)
            return self._boolean(self._compare(left, operator, self.value()))
        if cursor.take("IS"):
            word = "IS NOT NULL" if cursor.take("NOT") else "IS NULL"
            cursor.expect("NULL")
            return self._boolean(f"({left.sql} {word})")
        negative = cursor.at("NOT") and cursor.peek().value.upper() in ("LIKE", "IN", "BETWEEN")
        if negative:
            cursor.next()
        if cursor.take("LIKE"):
            found = self._like(left)
        elif cursor.take("BETWEEN"):
            low = self.value()
            cursor.expect("AND")
            high = self.value()
            found = f"({self._compare(left, '>=', low)} AND {self._compare(left, '<=', high)})"
        elif cursor.take("IN"):
            found = self._in(left)
        else:
            return left
        return self._boolean(f"(NOT {found})" if negative else found)

    @staticmethod
    def _boolean(sql: str) -> Expression:
        return Expression(sql, None, boolean=True)

    def _like(self, left: Expression) -> str:
        pattern = self.value()
        escape = f", {self.value().sql}" if self.cursor.take("ESCAPE") else ""
        return f"f_like({self.text(left)}, {self.text(pattern)}{escape})"

    def _in(self, left: Expression) -> str:
        cursor = self.cursor
        cursor.expect("(")
        if cursor.at("SELECT"):
            found = self.subquery()
            return f"({left.sql} IN {found.sql})"
        parts = [self._compare(left, "=", self.value())]
        while cursor.take(","):
            parts.append(self._compare(left, "=", self.value()))
        cursor.expect(")")
        # A flat list of OR is a deep tree; a balanced one is not.
        while len(parts) > 1:
            parts = [f"({' OR '.join(parts[n : n + 2])})" for n in range(0, len(parts), 2)]
        return parts[0]

    def _compare(self, left: Expression, operator: str, right: Expression) -> str:
        a, b = self.alike(left, right)
        folded = " COLLATE NOCASE" if "string" in (class_of(left.type), class_of(right.type)) else ""
        if "25" in (str(kind.precision) for kind in (left.type, right.type) if kind is not None):
            folded = ""  # LSNs are text that has a collation of its own
        return f"({a} {operator} {b}{folded})"

    def alike(self, left: Expression, right: Expression) -> tuple[str, str]:
        """Both of the type that wins."""
        classes = class_of(left.type), class_of(right.type)
        if "" in classes or classes[0] == classes[1] or all(one in _NUMBERS for one in classes):
            return left.sql, right.sql
        winner = max(classes, key=CLASSES.index)
        target = left.type if classes[0] == winner else right.type
        if winner == "int":
            target = BIGINT
        if winner == "decimal" and target is not None and target.precision != 25:
            target = SqlType("numeric", precision=38, scale=10)
        return tuple(one.sql if class_of(one.type) == winner else self.convert(one, target) for one in (left, right))  # type: ignore[return-value]

    def convert(self, one: Expression, target: SqlType | None, style: str = "0", function: str = "f_convert") -> str:
        """The SQL of a conversion."""
        self.types += [one.type, target]
        return f"{function}({one.sql}, {len(self.types) - 2}, {len(self.types) - 1}, {style})"

    def text(self, one: Expression) -> str:
        return one.sql if class_of(one.type) in ("string", "") else self.convert(one, TEXT)

    # ---- values

    def _sum(self) -> Expression:
        found = self._product()
        while self.cursor.at("+", "-", "&", "|", "^") and not found.boolean:
            operator = self.cursor.next()
            found = self._operate(found, operator, self._product())
        return found

    def _product(self) -> Expression:
        found = self._unary()
        while self.cursor.at("*", "/", "%") and not found.boolean:
            operator = self.cursor.next()
            found = self._operate(found, operator, self._unary())
        return found

    def _unary(self) -> Expression:
        with _Nesting(self):
            cursor = self.cursor
            for sign in ("-", "+", "~"):
                if cursor.take(sign):
                    found = self._unary()
                    if found.boolean:
                        cursor.syntax()
                    if sign == "+":
                        return found
                    if class_of(found.type) not in (*_NUMBERS, ""):
                        fail(8117, str(found.type), "minus" if sign == "-" else "'~'", line=cursor.token.line)
                    return Expression(f"({sign} {found.sql})", found.type)
            found = self._primary()
            if cursor.take("COLLATE"):
                name = cursor.value("word", "name").value.upper()
                folding = "BINARY" if name.endswith(("_BIN", "_BIN2")) or "_CS_" in name else "NOCASE"
                return Expression(f"({found.sql} COLLATE {folding})", found.type, name=found.name)
            return found

    def _operate(self, left: Expression, token: Token, right: Expression) -> Expression:
        operator = token.text
        if right.boolean:
            self.cursor.syntax()
        classes = class_of(left.type), class_of(right.type)
        if operator == "+" and set(classes) <= {"string", ""} and classes != ("", ""):
            return Expression(f"({left.sql} || {right.sql})", longer(left.type, right.type))
        if "date" in classes and operator in "+-" and set(classes) <= {"date", *_NUMBERS, ""}:
            if classes == ("date", "date"):
                fail(402, left.type, right.type, "add" if operator == "+" else "subtract", line=token.line)
            moment, days = (left, right) if classes[0] == "date" else (right, left)
            sign = "-" if operator == "-" else ""
            return Expression(f"f_dateadd('day', {sign}{days.sql}, {moment.sql})", moment.type)
        if "string" in classes and set(classes) & set(_NUMBERS):  # the text is taken for a number
            number = left.type if classes[1] == "string" else right.type
            left, right = (
                Expression(self.convert(one, number), number) if class_of(one.type) == "string" else one
                for one in (left, right)
            )
            classes = class_of(left.type), class_of(right.type)
        if not set(classes) <= {*_NUMBERS, ""}:
            names = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide", "%": "modulo"}
            fail(402, left.type or "NULL", right.type or "NULL", names.get(operator, f"'{operator}'"), line=token.line)
        type_ = arithmetic(left.type, right.type, operator)
        if operator in "/%":
            whole = class_of(type_) not in ("decimal", "float") or operator == "%"
            a = left.sql if whole else f"CAST({left.sql} AS REAL)"
            return Expression(f"f_{'divide' if operator == '/' else 'remainder'}({a}, {right.sql})", type_)
        if operator == "^":
            both = f"({left.sql}), ({right.sql})"
            return Expression(f"f_xor({both})", type_)
        return Expression(f"({left.sql} {operator} {right.sql})", type_)

    # ---- the smallest parts

    def _primary(self) -> Expression:
        cursor = self.cursor
        token = cursor.token
        if token.kind == "number":
            cursor.next()
            return self._number(token)
        if token.kind == "string":
            cursor.next()
            national = token.text[:1] in "Nn"
            size = max(1, len(token.value.encode("utf-16-le", "surrogatepass")) // 2)
            limit = 4000 if national else 8000
            type_ = SqlType("nvarchar" if national else "varchar", size if size <= limit else None)
            return Expression(self.bind(token.value), type_, literal=token.value)
        if token.kind == "binary":
            cursor.next()
            digits = token.text[2:]
            data = bytes.fromhex(digits if len(digits) % 2 == 0 else f"0{digits}")
            return Expression(self.bind(data), SqlType("varbinary", max(1, len(data)) if len(data) <= 8000 else None))
        if token.kind == "variable":
            cursor.next()
            return self._variable(token)
        if cursor.take("("):
            with _Nesting(self):
                if cursor.at("SELECT"):
                    return self.subquery()
                found = self._or()
                cursor.expect(")")
                return Expression(f"({found.sql})", found.type, found.boolean)
        if token.kind == "word":
            word = token.value.upper()
            special = {
                "NULL": self._null, "CASE": self._case, "CAST": self._cast, "TRY_CAST": self._cast,
                "CONVERT": self._convert, "TRY_CONVERT": self._convert, "COALESCE": self._coalesce, "IIF": self._iif,
                "CURRENT_TIMESTAMP": self._now,
            }.get(word)  # fmt: skip
            if special is not None and (word not in ("TRY_CAST", "IIF") or cursor.peek().text == "("):
                cursor.next()
                return special(word)
            if word in system.USERS:
                cursor.next()
                return Expression("f_suser_sname()" if word == "SYSTEM_USER" else "'dbo'", system.NAME)
            if cursor.peek().text == "(" and (not is_keyword(token) or word in ("LEFT", "RIGHT", "NULLIF")):
                return self._function(token)
        if token.kind in ("word", "name") and not is_keyword(token):
            return self._named()
        cursor.syntax()

    def bind(self, value: object) -> str:
        self.values.append(value)
        return f"?{len(self.values)}"

    def _number(self, token: Token) -> Expression:
        text = token.text
        if text.isascii() and text.isdecimal():
            number = int(text) if len(text) <= 38 else 1 << 128
            if number < 1 << 31:
                return Expression(str(number), INT, literal=number)
            if len(text) > 38:
                fail(1007, text[:MOST_NESTED], line=token.line)
            type_ = SqlType("numeric", precision=len(text))
            if number < 1 << 63:
                return Expression(str(number), BIGINT, literal=number)
            return Expression(self.bind(text), type_)
        try:
            value = Decimal(text)
        except ArithmeticError:
            fail(102, text, line=token.line)
        if "e" in text.lower():
            if not -330 < value.adjusted() < 309:
                fail(168, text[:MOST_NESTED], line=token.line)
            return Expression(repr(float(value)), FLOAT)
        digits = value.as_tuple()
        scale = -int(digits.exponent)
        precision = max(len(digits.digits), scale, 1)
        if precision > 38:
            fail(1007, text[:MOST_NESTED], line=token.line)
        return Expression(repr(float(value)), SqlType("numeric", precision=precision, scale=scale))

    def _variable(self, token: Token) -> Expression:
        name = token.value.lower()
        if name.startswith("@@"):
            found = system.GLOBALS.get(name)
            if found is None:
                fail(137, token.value, state=2, line=token.line)
            return Expression(f"f_global('{name}')", found)
        type_ = self.variables.get(name)
        if type_ is None:
            fail(137, token.value, state=2, line=token.line)
        return Expression(self.bind(Variable(name)), type_)

    def _null(self, _: str) -> Expression:
        return Expression("NULL", None)

    def _now(self, _: str) -> Expression:
        return Expression("f_getdate()", DATETIME)

    def _case(self, _: str) -> Expression:
        with _Nesting(self):
            cursor = self.cursor
            subject = None if cursor.at("WHEN") else self.value()
            parts, results = [], []
            cursor.expect("WHEN")
            while True:
                test = self.condition() if subject is None else self._compare(subject, "=", self.value())
                cursor.expect("THEN")
                results.append(self.value())
                parts.append(test)
                if not cursor.take("WHEN"):
                    break
            otherwise = self.value() if cursor.take("ELSE") else Expression("NULL", None)
            cursor.expect("END")
            type_ = common([*results, otherwise])
            branches = " ".join(
                f"WHEN {test} THEN {self._as(one, type_)}" for test, one in zip(parts, results, strict=True)
            )
            return Expression(f"(CASE {branches} ELSE {self._as(otherwise, type_)} END)", type_)

    def _as(self, one: Expression, type_: SqlType | None) -> str:
        classes = class_of(one.type), class_of(type_)
        if "" in classes or classes[0] == classes[1] or all(kind in _NUMBERS for kind in classes):
            return one.sql
        return self.convert(one, type_)

    def _cast(self, word: str) -> Expression:
        cursor = self.cursor
        cursor.expect("(")
        with _Nesting(self):
            one = self.value()
            cursor.expect("AS")
            type_ = parse_type(cursor, 30)
            cursor.expect(")")
        return Expression(self.convert(one, type_, function="f_try" if word == "TRY_CAST" else "f_convert"), type_)

    def _convert(self, word: str) -> Expression:
        cursor = self.cursor
        cursor.expect("(")
        with _Nesting(self):
            type_ = parse_type(cursor, 30)
            cursor.expect(",")
            one = self.value()
            style = self.value().sql if cursor.take(",") else "0"
            cursor.expect(")")
        return Expression(self.convert(one, type_, style, "f_try" if word == "TRY_CONVERT" else "f_convert"), type_)

    def _coalesce(self, _: str) -> Expression:
        arguments = self._arguments()
        if len(arguments) < 2:
            self.cursor.syntax()
        type_ = common(arguments)
        return Expression(f"coalesce({', '.join(self._as(one, type_) for one in arguments)})", type_)

    def _iif(self, _: str) -> Expression:
        cursor = self.cursor
        cursor.expect("(")
        with _Nesting(self):
            test = self.condition()
            cursor.expect(",")
            then = self.value()
            cursor.expect(",")
            otherwise = self.value()
            cursor.expect(")")
        type_ = common([then, otherwise])
        return Expression(
            f"(CASE WHEN {test} THEN {self._as(then, type_)} ELSE {self._as(otherwise, type_)} END)", type_
        )

    def _arguments(self) -> list[Expression]:
        cursor = self.cursor
        cursor.expect("(")
        with _Nesting(self):
            arguments: list[Expression] = []
            if cursor.take(")"):
                return arguments
            arguments.append(self.value())
            while cursor.take(","):
                arguments.append(self.value())
            cursor.expect(")")
            return arguments

    # ---- names and functions

    def _named(self) -> Expression:
        """A column, or a function of a schema."""
        cursor = self.cursor
        parts = [cursor.next()]
        while cursor.at(".") and len(parts) < 4:
            cursor.next()
            parts.append(cursor.value("word", "name"))
        if cursor.at("(") and len(parts) > 1:
            written = ".".join(part.value for part in parts)
            name = parts[-1].value.lower()
            if parts[-2].value.lower() != "sys" or name not in system.FUNCTIONS:
                fail(4121, parts[0].value, written, line=parts[0].line)
            return self._call(name, parts[-1])
        return self.column(parts)

    def column(self, parts: list[Token]) -> Expression:
        name = parts[-1].value.lower()
        scope = self.scope
        while scope is not None:
            if len(parts) == 1 and name in scope.results:
                return Expression(scope.results[name], None, name=parts[0].value)
            found = [source for source in scope.sources if name in source.columns and _called(source, parts[:-1])]
            if len(found) > 1:
                fail(209, parts[-1].value, line=parts[-1].line)
            if found:
                written, column, type_ = found[0].columns[name]
                return Expression(f"{quote(found[0].alias)}.{quote(column)}", type_, name=written)
            if len(parts) > 1 and any(_called(source, parts[:-1]) for source in scope.sources):
                fail(207, parts[-1].value, line=parts[-1].line)
            scope = scope.outer
        if len(parts) > 1:
            fail(4104, ".".join(part.value for part in parts), line=parts[0].line)
        fail(207, parts[0].value, line=parts[0].line)

    def _function(self, token: Token) -> Expression:
        self.cursor.next()
        word = token.value.upper()
        if word in _AGGREGATES:
            return self._aggregate(word, token)
        return self._call(token.value.lower(), token)

    def _call(self, name: str, token: Token) -> Expression:
        cursor = self.cursor
        if name in DATE_FUNCTIONS:
            cursor.expect("(")
            part = PARTS.get(cursor.token.value.lower()) if cursor.token.kind == "word" else None
            if part is None:
                fail(155, cursor.token.value, name, line=token.line)
            cursor.next()
            cursor.tokens[cursor.place - 1] = Token("string", part, f"'{part}'", token.line)
            cursor.place -= 2  # back at the bracket; the part is an ordinary argument now
        arguments = self._arguments()
        if name in ("isnull", "nullif"):
            return self._conditional(name, arguments, token)
        function = FUNCTIONS.get(name) or system.FUNCTIONS.get(name)
        if function is None:
            fail(195, token.value, "built-in function name", line=token.line)
        if not function.least <= len(arguments) <= function.most:
            fail(174, token.value.lower(), function.least, line=token.line)
        type_ = system.type_of(name, arguments) if name in system.TYPED else function.type
        if type_ is None and arguments:
            type_ = arguments[0].type
        text = name == "concat"
        values = ", ".join(self.text(one) if text else one.sql for one in arguments)
        return Expression(f"f_{name}({values})", type_)

    def _conditional(self, name: str, arguments: list[Expression], token: Token) -> Expression:
        if len(arguments) != 2:
            fail(174, name, 2, line=token.line)
        first, second = arguments
        type_ = first.type if first.type is not None else second.type
        if name == "nullif":
            test = self._compare(first, "=", second)
            return Expression(f"(CASE WHEN {test} THEN NULL ELSE {first.sql} END)", type_)
        return Expression(f"coalesce({first.sql}, {self._as(second, type_)})", type_)

    def _aggregate(self, word: str, token: Token) -> Expression:
        cursor = self.cursor
        cursor.expect("(")
        with _Nesting(self):
            distinct = "DISTINCT " if cursor.take("DISTINCT") else ""
            if word in ("COUNT", "COUNT_BIG") and cursor.take("*"):
                inside, type_ = "*", None
            elif word in ("ROW_NUMBER", "RANK", "DENSE_RANK"):
                inside, type_ = "", BIGINT
            else:
                cursor.take("ALL")
                one = self.value()
                inside, type_ = one.sql, one.type
                if word == "STRING_AGG":
                    cursor.expect(",")
                    inside = f"{self.text(one)}, {self.value().sql}"
            cursor.expect(")")
        name = {"COUNT_BIG": "COUNT", "STRING_AGG": "group_concat"}.get(word, word)
        sql = f"{name}({distinct}{inside})"
        if cursor.at("OVER"):
            sql += self._over()
        elif word in ("ROW_NUMBER", "RANK", "DENSE_RANK"):
            fail(10753, token.value, line=token.line)
        if word in ("COUNT", "COUNT_BIG"):
            type_ = INT if word == "COUNT" else BIGINT
        elif word == "STRING_AGG":
            type_ = nvarchar(None)
        elif word in ("SUM", "AVG"):
            if class_of(type_) not in (*_NUMBERS, ""):
                fail(8117, type_, word.lower(), line=token.line)
            if class_of(type_) in ("int", "bit"):
                type_ = type_ if type_ in (INT, BIGINT) else INT
                sql = f"CAST({sql} AS INTEGER)"
            elif type_ is not None and class_of(type_) == "decimal":
                type_ = SqlType("numeric", precision=38, scale=max(type_.scale, 6 if word == "AVG" else 0))
        return Expression(sql, type_)

    def _over(self) -> str:
        cursor = self.cursor
        cursor.next()
        cursor.expect("(")
        parts = []
        for word in ("PARTITION", "ORDER"):
            if cursor.take(word):
                cursor.expect("BY")
                parts.append(f"{word} BY {', '.join(self._list(word == 'ORDER'))}")
        cursor.expect(")")
        return f" OVER ({' '.join(parts)})"

    def _list(self, ordered: bool) -> list[str]:
        found = []
        while True:
            one = self.value().sql
            if ordered and self.cursor.at("ASC", "DESC"):
                one += f" {self.cursor.next().value.upper()}"
            found.append(one)
            if not self.cursor.take(","):
                return found


class _Nesting:
    """Counts how deep an expression goes."""

    def __init__(self, expressions: Expressions) -> None:
        self._expressions = expressions

    def __enter__(self) -> None:
        self._expressions.depth += 1
        if self._expressions.depth > MOST_NESTED:
            fail(191, line=self._expressions.cursor.token.line)

    def __exit__(self, *_: object) -> None:
        self._expressions.depth -= 1


def _called(source: Source, parts: list[Token]) -> bool:
    return not parts or ".".join(part.value.lower() for part in parts) in source.names
