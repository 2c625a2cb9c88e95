"""The history of backups: what is kept, what survives a restart and a crash."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_queries import backup

from vdi_ext.engine.msdb import FILE_NAME, FileRecord, History, RestoreRecord, lsn_number, lsn_of

RESTORE = RestoreRecord(
    "copy", "D", datetime(2024, 1, 2, 3), UUID(int=7), replace=True, recovery=False, user="x",
    stop_at=datetime(2024, 1, 1), files=(FileRecord(1, "a", "/b"),),
)  # fmt: skip


def test_what_was_recorded_is_there_after_a_restart(tmp_path: Path) -> None:
    first = History(tmp_path)
    records = [backup(), backup("I", 1, differential_base_lsn=(1, 2, 3), differential_base_guid=UUID(int=9)),
               backup("L", 2, expires=datetime(2030, 1, 1), is_snapshot=True)]  # fmt: skip
    for record in records:
        first.record(record)
    first.record(RESTORE)
    again = History(tmp_path)
    assert again.backups == tuple(records)
    assert again.restores == (RESTORE,)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_record_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.record(backup())
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    again = History(tmp_path)
    assert again.backups == (backup(),)
    again.record(backup(number=1))
    assert len(History(tmp_path).backups) == 2


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"backup": {}}', '{"other": {}}', '{"restore": {"files": [3]}}'])
def test_a_damaged_history_is_refused_by_line(tmp_path: Path, line: str) -> None:
    History(tmp_path).record(backup())
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 2 is no record"):
        History(tmp_path)


def test_without_a_folder_nothing_is_kept() -> None:
    history = History()
    history.record(backup())
    assert len(history.backups) == 1
    assert History().backups == ()


def test_threads_record_at_once(tmp_path: Path) -> None:
    history = History(tmp_path)
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait(30)
        for _ in range(10):
            history.record(backup())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(history.backups) == len(History(tmp_path).backups) == 40


def test_lsns_as_numbers() -> None:
    # 00000025:00000078:0022 is 37000000012000034, as backupset shows it.
    assert lsn_number((0x25, 0x78, 0x22)) == 37000000012000034


@given(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)))
def test_an_lsn_survives_being_a_number(lsn: tuple[int, int, int]) -> None:
    assert lsn_of(lsn_number(lsn)) == lsn
