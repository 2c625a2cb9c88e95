"""Checks a trace against the published rules of the trace-event format, array form; knows nothing of its writer."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

# Fields that a record of a phase must have beside name, ph, pid and tid; and may have beside those and cat and args.
REQUIRED = {"X": {"ts", "dur"}, "B": {"ts"}, "E": {"ts"}, "i": {"ts", "s"}, "C": {"ts", "args"}, "M": {"args"}}
OPTIONAL = {"cat", "args"}
METADATA = {
    "process_name": {"name": str},
    "thread_name": {"name": str},
    "process_sort_index": {"sort_index": int},
    "thread_sort_index": {"sort_index": int},
}


def read_trace(path: Path, *, whole: bool = True) -> list[dict]:
    """The records; of a trace that is not whole the closing bracket is missing, and nothing else."""
    text = path.read_text()
    if not whole:
        assert not text.rstrip().endswith("]"), "nothing is missing"
        text += "\n]"
    records = json.loads(text)
    check_trace(records)
    return records


def check_trace(records: list[dict]) -> None:
    assert isinstance(records, list)
    for record in records:
        check_record(record)
    check_nesting(records)


def check_record(record: dict) -> None:
    phase = record["ph"]
    assert phase in REQUIRED, record
    fields = {"name", "ph", "pid", "tid"} | REQUIRED[phase]
    assert fields <= set(record) <= fields | OPTIONAL, record
    assert isinstance(record["name"], str) and record["name"], record
    for field in ("pid", "tid"):
        assert type(record[field]) is int and 0 <= record[field] < 2**31, record
    for field in ("ts", "dur"):
        if field in record:
            assert type(record[field]) in (int, float) and record[field] >= 0, record  # microseconds
    assert isinstance(record.get("args", {}), dict) and isinstance(record.get("cat", ""), str), record
    if phase == "i":
        assert record["s"] in ("g", "p", "t"), record
    elif phase == "C":
        assert record["args"], record
        assert all(type(value) in (int, float) for value in record["args"].values()), record
    elif phase == "M":
        kinds = METADATA[record["name"]]
        assert {name: type(value) for name, value in record["args"].items()} == kinds, record


def check_nesting(records: list[dict]) -> None:
    """Spans of one thread lie within each other or beside each other; each end has its begin."""
    rows = defaultdict(list)
    open_spans: dict[tuple, list] = defaultdict(list)
    for record in records:
        row = record["pid"], record["tid"]
        if record["ph"] == "X":
            rows[row].append((record["ts"], record["ts"] + record["dur"], record["name"]))
        elif record["ph"] == "B":
            open_spans[row].append(record)
        elif record["ph"] == "E":
            begin = open_spans[row].pop()
            assert begin["name"] == record["name"] and begin["ts"] <= record["ts"], record
            rows[row].append((begin["ts"], record["ts"], record["name"]))
    for row, left in open_spans.items():
        rows[row] += [(begin["ts"], float("inf"), begin["name"]) for begin in left]
    for spans in rows.values():
        stack: list[tuple[float, float, str]] = []
        for span in sorted(spans, key=lambda span: (span[0], -span[1])):
            while stack and stack[-1][1] <= span[0] + 0.002:  # two roundings to a nanosecond
                stack.pop()
            assert not stack or span[1] <= stack[-1][1] + 0.002, (span, stack[-1])
            stack.append(span)
