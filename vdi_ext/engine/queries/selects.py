"""SELECT, compiled to SQLite's."""

from __future__ import annotations

from collections.abc import Mapping

from ..tsql.tokens import Cursor, Token, fail, is_keyword
from ..types import INT, Column, SqlType
from .compiled import Expression, Query, Scope, Source
from .expressions import Expressions, quote
from .tables import TABLES, resolve

_JOINS = ("INNER", "LEFT", "RIGHT", "FULL", "CROSS", "JOIN", "OUTER")
_HINTS = frozenset({"NOLOCK", "READUNCOMMITTED", "READPAST", "READCOMMITTED", "TABLOCK", "ROWLOCK", "PAGLOCK"})
_SQL_TEXT = "sys.dm_exec_sql_text"


class _Result:
    """What one SELECT gives: SQL and columns c1, c2, ..."""

    def __init__(self, sql: str, columns: list[tuple[str, SqlType | None]], assigns: tuple[str, ...]) -> None:
        self.sql = sql
        self.columns = columns
        self.assigns = assigns


class Compiler(Expressions):
    """Compiles one query; see `Expressions`."""

    def __init__(self, cursor: Cursor, variables: Mapping[str, SqlType], database: str) -> None:
        super().__init__(cursor, variables, database)
        self._with: dict[str, tuple[str, Source]] = {}  # common table expressions
        self._aliases = 0

    # ---- entries

    def select(self) -> Query:
        """The SELECT that begins here, or the WITH before it."""
        if self.cursor.take("WITH"):
            self._common_tables()
        if not self.cursor.at("SELECT", "("):
            self.cursor.syntax()
        found = self._query(ordered=True)
        if self.cursor.take("OPTION"):
            self._skip_brackets()
        return self._finish(found)

    def expression(self) -> Query:
        """The value that stands here."""
        one = self.value()
        return self._finish(_Result(f"SELECT {one.sql}", [(one.name, one.type)], ()))

    def test(self) -> Query:
        """The condition that stands here, as 1, 0 or NULL."""
        return self._finish(_Result(f"SELECT {self.condition()}", [("", INT)], ()))

    def _finish(self, found: _Result) -> Query:
        columns = tuple(Column(name, type_ or INT) for name, type_ in found.columns)
        return Query(
            found.sql, columns, tuple(self.values), tuple(self.types), frozenset(self.tables), found.assigns,
            self.database,
        )  # fmt: skip

    # ---- queries

    def subquery(self, *, several: bool = False) -> Expression:
        found = self._nested()
        if len(found.columns) != 1 and not several:
            fail(116, line=self.cursor.token.line)
        return Expression(f"({found.sql})", found.columns[0][1])

    def _nested(self) -> _Result:
        """A query up to its closing bracket."""
        self.depth += 1
        if self.depth > 40:
            fail(191, line=self.cursor.token.line)
        inner = Scope(self.scope)
        saved, self.scope = self.scope, inner
        found = self._query(ordered=True)
        self.scope = saved
        self.depth -= 1
        self.cursor.expect(")")
        if found.assigns:
            fail(102, "=", line=self.cursor.token.line)
        return found

    def _common_tables(self) -> None:
        cursor = self.cursor
        while True:
            name = cursor.value("word", "name").value
            given = self._column_names()
            cursor.expect("AS")
            cursor.expect("(")
            found = self._nested()
            self._with[name.lower()] = found.sql, self._source_of(found, name, given)
            if not cursor.take(","):
                return

    def _query(self, *, ordered: bool) -> _Result:
        cursor = self.cursor
        saved = self.scope
        found, scope, limit = self._select()
        compound = False
        while cursor.at("UNION", "EXCEPT", "INTERSECT"):
            compound = True
            word = cursor.next().value.upper()
            if word == "UNION" and cursor.take("ALL"):
                word = "UNION ALL"
            left = f"SELECT * FROM ({found.sql} LIMIT {limit})" if limit else found.sql
            self.scope = Scope(saved.outer) if saved is not None else None
            other, _, limit = self._select()
            if len(other.columns) != len(found.columns):
                fail(205, line=cursor.token.line)
            right = f"SELECT * FROM ({other.sql} LIMIT {limit})" if limit else other.sql
            types = [(name, a or b) for (name, a), (_, b) in zip(found.columns, other.columns, strict=True)]
            found, limit = _Result(f"{left} {word} {right}", types, ()), ""
        sql = found.sql
        if ordered and cursor.take("ORDER"):
            cursor.expect("BY")
            sql += f" ORDER BY {', '.join(self._ordering(found, None if compound else scope))}"
            if cursor.at("OFFSET"):
                limit = self._offset()
        if limit:
            sql += f" LIMIT {limit}"
        self.scope = saved
        return _Result(sql, found.columns, found.assigns)

    def _offset(self) -> str:
        cursor = self.cursor
        cursor.next()
        skipped = self.value().sql
        cursor.expect("ROW", "ROWS")
        if not cursor.take("FETCH"):
            return f"-1 OFFSET {skipped}"
        cursor.expect("NEXT", "FIRST")
        count = self.value().sql
        cursor.expect("ROW", "ROWS")
        cursor.expect("ONLY")
        return f"{count} OFFSET {skipped}"

    def _ordering(self, found: _Result, scope: Scope | None) -> list[str]:
        names = {name.lower(): f'"c{number}"' for number, (name, _) in enumerate(found.columns, 1) if name}
        saved = self.scope
        self.scope = Scope(saved.outer if saved else None, scope.sources if scope else [], names)
        try:
            terms = self._list(True)
        finally:
            self.scope = saved
        for place, term in enumerate(terms, 1):
            if not term.isdigit() and term.strip("()-+~ ").isdigit():
                fail(408, "ORDER BY", place, line=self.cursor.token.line)
            if term.isdigit() and not 1 <= int(term) <= len(found.columns):
                fail(108, term, line=self.cursor.token.line)
        return terms

    # ---- one SELECT

    def _select(self) -> tuple[_Result, Scope, str]:
        cursor = self.cursor
        if cursor.take("("):
            found = self._nested()
            return found, Scope(), ""
        cursor.expect("SELECT")
        distinct = cursor.take("DISTINCT")
        if not distinct:
            cursor.take("ALL")
        limit = self._top() if cursor.take("TOP") else ""
        # Sources are known only behind the columns that they give: columns are compiled on a second pass.
        start = cursor.place
        scope = self.scope = Scope(self.scope.outer if self.scope else None)
        behind = self._find_from()
        sources = ""
        if behind is not None:
            cursor.place = behind
            sources = f" FROM {self._sources(scope)}"
        end = cursor.place
        cursor.place = start
        items, columns, assigns = self._items(scope)
        if behind is not None:
            if cursor.place != behind - 1:
                cursor.syntax()
            cursor.place = end
        elif cursor.at("FROM"):
            cursor.syntax()
        sql = f"SELECT {'DISTINCT ' if distinct else ''}{', '.join(items)}{sources}"
        if cursor.take("WHERE"):
            sql += f" WHERE {self.condition()}"
        if cursor.take("GROUP"):
            cursor.expect("BY")
            sql += f" GROUP BY {', '.join(self._list(False))}"
        if cursor.take("HAVING"):
            sql += f" HAVING {self.condition()}"
        return _Result(sql, columns, assigns), scope, limit

    def _top(self) -> str:
        cursor = self.cursor
        if cursor.take("("):
            count = self.value().sql
            cursor.expect(")")
        else:
            token = cursor.value("number")
            if not token.text.isdecimal() or not token.text.isascii():
                cursor.place -= 1
                cursor.syntax()
            count = str(min(int(token.text[:19]), 1 << 62))
        for words in (("PERCENT",), ("WITH", "TIES")):
            if cursor.at(words[0]):
                fail(3015, f"TOP {' '.join(words)}", line=cursor.token.line)
        return f"({count})"

    def _find_from(self) -> int | None:
        """The place behind the FROM of the SELECT whose columns begin here."""
        cursor, depth = self.cursor, 0
        for place in range(cursor.place, len(cursor.tokens)):
            token = cursor.tokens[place]
            if token.kind == "symbol":
                depth += {"(": 1, ")": -1}.get(token.text, 0)
                if depth < 0 or (not depth and token.text == ";"):
                    return None
            elif token.kind == "word" and not depth:
                word = token.value.upper()
                if word == "FROM":
                    return place + 1
                if word in _ENDS:
                    return None
        return None

    def _items(self, scope: Scope) -> tuple[list[str], list[tuple[str, SqlType | None]], tuple[str, ...]]:
        found: list[tuple[str, str, SqlType | None]] = []
        assigns: list[str] = []
        while True:
            self._item(scope, found, assigns)
            if not self.cursor.take(","):
                break
        if assigns and len(assigns) != len(found):
            fail(141, line=self.cursor.token.line)
        items = [f'{sql} AS "c{number}"' for number, (sql, _, _) in enumerate(found, 1)]
        return items, [(name, type_) for _, name, type_ in found], tuple(assigns)

    def _item(self, scope: Scope, found: list[tuple[str, str, SqlType | None]], assigns: list[str]) -> None:
        cursor = self.cursor
        token, then = cursor.token, cursor.peek()
        if cursor.take("*"):
            if not scope.sources:
                fail(263, line=token.line)
            self._all(scope.sources, found)
            return
        if token.kind in ("word", "name") and then.text == "." and self._is_star():
            parts = []
            while not cursor.take("*"):
                parts.append(cursor.next().value.lower())
                cursor.expect(".")
            named = [source for source in scope.sources if ".".join(parts) in source.names]
            if not named:
                fail(107, ".".join(parts), line=token.line)
            self._all(named[:1], found)
            return
        if then.kind == "symbol" and then.text == "=" and token.kind in ("variable", "word", "name"):
            if token.kind == "variable" and not token.value.startswith("@@"):
                if token.value.lower() not in self.variables:
                    fail(137, token.value, state=1, line=token.line)
                cursor.place += 2
                assigns.append(token.value.lower())
                one = self.value()
                found.append((one.sql, "", one.type))
                return
            if not is_keyword(token) and token.kind != "variable":
                cursor.place += 2
                one = self.value()
                found.append((one.sql, token.value, one.type))
                return
        one = self.value()
        found.append((one.sql, self._alias("string") or one.name, one.type))

    def _is_star(self) -> bool:
        place = 0
        while self.cursor.peek(place).kind in ("word", "name") and self.cursor.peek(place + 1).text == ".":
            place += 2
        return self.cursor.peek(place).text == "*" and self.cursor.peek(place).kind == "symbol"

    @staticmethod
    def _all(sources: list[Source], found: list[tuple[str, str, SqlType | None]]) -> None:
        for source in sources:
            for name, column, type_ in source.columns.values():
                found.append((f"{quote(source.alias)}.{quote(column)}", name, type_))

    def _alias(self, *more: str) -> str:
        """A name given to a column or a source; empty where none is."""
        cursor = self.cursor
        if cursor.take("AS"):
            return cursor.value("word", "name", *more).value
        token = cursor.token
        if token.kind in ("name", *more) or (token.kind == "word" and not is_keyword(token) and not _clause(token)):
            return cursor.next().value
        return ""

    # ---- FROM

    def _sources(self, scope: Scope) -> str:
        cursor = self.cursor
        sql = self._source(scope)
        while True:
            if cursor.take(","):
                sql += f" CROSS JOIN {self._source(scope)}"
            elif cursor.at(*_JOINS):
                sql += self._join(scope)
            else:
                return sql

    def _join(self, scope: Scope) -> str:
        cursor = self.cursor
        kind = "INNER"
        if cursor.at("INNER", "LEFT", "RIGHT", "FULL", "CROSS", "OUTER"):
            kind = cursor.next().value.upper()
        if kind in ("CROSS", "OUTER") and cursor.take("APPLY"):
            return self._apply(scope, kind)
        if kind in ("LEFT", "RIGHT", "FULL"):
            cursor.take("OUTER")
        elif kind == "OUTER":
            cursor.syntax()
        cursor.expect("JOIN")
        sql = f" {kind} JOIN {self._source(scope)}"
        if kind != "CROSS":
            cursor.expect("ON")
            sql += f" ON {self.condition()}"
        return sql

    def _apply(self, scope: Scope, kind: str) -> str:
        """The one function that is asked of each row: what a request executes."""
        cursor = self.cursor
        name = [cursor.value("word", "name")]
        while cursor.take("."):
            name.append(cursor.value("word", "name"))
        if resolve([part.value for part in name], self.database) != (_SQL_TEXT, self.database):
            fail(208, ".".join(part.value for part in name), line=name[0].line)
        cursor.expect("(")
        handle = self.value().sql
        cursor.expect(")")
        source = self._table(scope, _SQL_TEXT, self._alias() or "dm_exec_sql_text")
        join = "JOIN" if kind == "CROSS" else "LEFT JOIN"
        return f" {join} {quote(_SQL_TEXT)} AS {quote(source.alias)} ON {quote(source.alias)}.sql_handle = {handle}"

    def _source(self, scope: Scope) -> str:
        cursor = self.cursor
        if cursor.take("("):
            if cursor.at("SELECT"):
                saved, self.scope = self.scope, Scope(scope.outer)
                found = self._nested()
                self.scope = saved
                name = self._alias()
                if not name:
                    cursor.syntax()
                source = self._source_of(found, name, self._column_names())
                self._add(scope, source)
                return f"({found.sql}) AS {quote(source.alias)}"
            sql = self._sources(scope)
            cursor.expect(")")
            return f"({sql})"
        first = cursor.token
        parts = [cursor.value("word", "name").value]
        while cursor.take("."):
            if cursor.at("."):
                parts.append("")
            else:
                parts.append(cursor.value("word", "name").value)
        if len(parts) == 1 and parts[0].lower() in self._with:
            sql, source = self._with[parts[0].lower()]
            name = self._alias() or parts[0]
            self._aliases += 1
            source = Source(f"t{self._aliases}", source.columns, frozenset({name.lower()}))
            self._add(scope, source)
            return f"({sql}) AS {quote(source.alias)}"
        found_table = resolve(parts, self.database)
        if found_table is None:
            fail(208, ".".join(parts), line=first.line)
        table, database = found_table
        alias = self._alias()
        self._hints()
        names = [alias.lower()] if alias else [".".join(parts[at:]).lower() for at in range(len(parts))]
        source = self._table(scope, table, *names)
        if database != self.database and TABLES[table].of_database:
            fail(3015, f"Reading {table} of another database", line=first.line)
        return f"{quote(table)} AS {quote(source.alias)}"

    def _table(self, scope: Scope, table: str, *names: str) -> Source:
        self.tables.add(table)
        columns = {column.name.lower(): (column.name, column.name, column.type) for column in TABLES[table].columns}
        self._aliases += 1
        source = Source(f"t{self._aliases}", columns, frozenset(name.lower() for name in names))
        self._add(scope, source)
        return source

    def _source_of(self, found: _Result, name: str, given: list[str]) -> Source:
        if given and len(given) != len(found.columns):
            fail(8159 if len(given) < len(found.columns) else 8158, name, line=self.cursor.token.line)
        columns: dict[str, tuple[str, str, SqlType]] = {}
        for number, (own, type_) in enumerate(found.columns, 1):
            column = given[number - 1] if given else own
            if not column:
                fail(8155, number, name, line=self.cursor.token.line)
            if column.lower() in columns:
                fail(8156, column, name, line=self.cursor.token.line)
            columns[column.lower()] = (column, f"c{number}", type_ or INT)
        self._aliases += 1
        return Source(f"t{self._aliases}", columns, frozenset({name.lower()}))

    def _add(self, scope: Scope, source: Source) -> None:
        if any(source.names & other.names and len(source.names) == len(other.names) == 1 for other in scope.sources):
            fail(1011, next(iter(source.names)), line=self.cursor.token.line)
        scope.sources.append(source)

    def _column_names(self) -> list[str]:
        cursor = self.cursor
        names: list[str] = []
        if cursor.take("("):
            names.append(cursor.value("word", "name").value)
            while cursor.take(","):
                names.append(cursor.value("word", "name").value)
            cursor.expect(")")
        return names

    def _hints(self) -> None:
        cursor = self.cursor
        cursor.take("WITH")
        if cursor.at("("):
            cursor.next()
            while True:
                if cursor.token.value.upper() not in _HINTS:
                    fail(321, cursor.token.value, line=cursor.token.line)
                cursor.next()
                if not cursor.take(","):
                    break
            cursor.expect(")")

    def _skip_brackets(self) -> None:
        cursor, depth = self.cursor, 0
        cursor.expect("(")
        depth = 1
        while depth:
            token = cursor.token
            if token.kind == "end":
                cursor.syntax()
            depth += {"(": 1, ")": -1}.get(token.text, 0) if token.kind == "symbol" else 0
            cursor.next()


_ENDS = frozenset(
    """
    SELECT WHERE GROUP HAVING ORDER UNION EXCEPT INTERSECT BACKUP RESTORE SET USE BEGIN COMMIT ROLLBACK DECLARE PRINT
    RAISERROR IF EXEC EXECUTE KILL OPTION INTO
""".split()
)


def _clause(token: Token) -> bool:
    """Whether a word that is no keyword goes on with the query all the same."""
    return token.value.upper() in ("OFFSET", "APPLY")
