"""Prometheus metrics, read over HTTP as Prometheus does."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytds
import pytest
from conftest import ROOT
from prometheus_client.parser import text_string_to_metric_families
from trace_format import read_trace

import vdi_ext
from vdi_ext import cli
from vdi_ext.events import CommandCompleted, CommandIssued, MessageEvent, StateChanged
from vdi_ext.jobs import ArgumentError
from vdi_ext.jobs.metrics import Metrics, parse_address


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    with Metrics("0") as found:
        yield found


def scrape(url: str) -> dict[tuple[str, frozenset], float]:
    """Samples by name and labels, parsed by Prometheus's own parser."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_a_backup_is_counted(metrics: Metrics, tmp_path: Path) -> None:
    result = vdi_ext.backup("synthetic:20MiB", tmp_path / "set", devices=2, events=metrics, own_process=False)
    assert metrics.url.startswith("http://127.0.0.1:")
    samples = scrape(metrics.url)
    assert value(samples, "vdi_bytes_total", command="WRITE") == result.size
    assert value(samples, "vdi_commands_total", command="FLUSH", completion="SUCCESS") == 2
    writes = value(samples, "vdi_commands_total", command="WRITE", completion="SUCCESS")
    assert writes == value(samples, "vdi_command_seconds_count", command="WRITE") > 20
    assert value(samples, "vdi_command_seconds_bucket", command="WRITE", le="+Inf") == writes
    assert value(samples, "vdi_statements_total", outcome="succeeded") == 1
    assert value(samples, "vdi_job_bytes", job="backup") == result.size
    for gauge in ("vdi_commands_in_flight", "vdi_devices_open", "vdi_statements_running"):
        assert value(samples, gauge) == 0
    assert value(samples, "vdi_last_success_timestamp_seconds") > 1.7e9
    assert value(samples, "vdi_messages_total", number="", severity="", to="driver") == len(result.messages)


def test_what_runs_is_seen_while_it_runs(metrics: Metrics) -> None:
    metrics(StateChanged("statement", "running", scope="a"))
    metrics(StateChanged("device", "active", 1, scope="a"))
    metrics(StateChanged("device", "active", 1, scope="b"))
    metrics(CommandIssued(1, 1, 2, 512))
    samples = scrape(metrics.url)
    assert value(samples, "vdi_devices_open") == 2
    assert value(samples, "vdi_commands_in_flight") == value(samples, "vdi_statements_running") == 1
    metrics(CommandCompleted(1, 1, 2, 512, 995, 0, 0.1))
    metrics(StateChanged("set", "abort", scope="a"))
    metrics(StateChanged("set", "closed", scope="a"))
    metrics(StateChanged("statement", "failed", scope="a"))
    metrics(MessageEvent("...", 3013, 16, 1))
    samples = scrape(metrics.url)
    assert value(samples, "vdi_devices_open") == 1 and value(samples, "vdi_aborts_total") == 1
    assert value(samples, "vdi_commands_total", command="WRITE", completion="OPERATION_ABORTED") == 1
    assert value(samples, "vdi_statements_total", outcome="failed") == 1
    assert value(samples, "vdi_messages_total", number="3013", severity="16", to="driver") == 1


def test_numbers_that_the_other_side_makes_up_share_a_label(metrics: Metrics) -> None:
    for number in range(20_000, 20_100):
        metrics(CommandIssued(1, number, number, 0))
        metrics(CommandCompleted(1, number, number, 0, number, 0, 0.0))
    assert value(scrape(metrics.url), "vdi_commands_total", command="other", completion="other") == 100


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("9100", "127.0.0.1", 9100), (":9100", "127.0.0.1", 9100), ("0.0.0.0:80", "0.0.0.0", 80),
        ("[::1]:0", "::1", 0), ("metrics.example:1", "metrics.example", 1),
    ],
)  # fmt: skip
def test_addresses(address: str, host: str, port: int) -> None:
    assert parse_address(address) == (host, port)


@pytest.mark.parametrize("address", ["", "host", "host:", ":65536", "::1:80", ":-1", ":8 0", ":\u0663"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ArgumentError, match="address|ambiguous"):
        parse_address(address)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "prometheus_client":
            raise ImportError(name)
        return original(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ArgumentError, match=r"vdi_ext\[metrics\]"):
        Metrics("0")


def test_the_command_line_serves_metrics_while_it_runs(tmp_path: Path) -> None:
    """The job stands still, its reader does not read, while the metrics are read."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vdi_ext", "backup", "synthetic:1G", tmp_path / "set", "--metrics", "0", "--in-process",
         "--json", "--commands"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        found = re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", process.stderr.readline())
        assert found
        for line in process.stdout:
            if '"command_completed"' in line:
                break
        samples = scrape(found[1])
        assert value(samples, "vdi_commands_total", command="WRITE", completion="SUCCESS") >= 1
        assert value(samples, "vdi_statements_running") == 1
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()


def test_an_address_that_is_taken_ends_the_program_well(
    metrics: Metrics, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    port = metrics.url.split(":")[2].split("/")[0]
    done = cli.main(["backup", "synthetic:1MiB", os.fspath(tmp_path / "set"), "--metrics", port])
    assert done != 0 and "in use" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_the_server_tells_its_events_everywhere(tmp_path: Path) -> None:
    """JSON lines, metrics and a trace of ``vdi-ext serve``, of a statement that a real driver sends."""
    trace = tmp_path / "trace"
    process = subprocess.Popen(
        [sys.executable, "-m", "vdi_ext", "serve", "--listen", "127.0.0.1:0", "--database", "db=synthetic:1M",
         "--login", "sa=env:SA_PASSWORD", "--json", "--metrics", "0", "--trace", trace],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True,
        env={**os.environ, "SA_PASSWORD": "secret of a test"},
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        found = next(match for line in process.stderr if (match := re.search(r"metrics at (\S+)", line)))
        where = json.loads(process.stdout.readline())
        assert where["event"] == "listening"
        with pytds.connect("127.0.0.1", "master", "sa", "secret of a test", port=where["port"]) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor, pytest.raises(pytds.Error):
                cursor.execute("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'nobody'")
                while cursor.nextset():
                    pass
        samples = scrape(found[1])
        assert value(samples, "vdi_statements_total", outcome="failed") == 1
        assert value(samples, "vdi_messages_total", number="3201", severity="16", to="driver") == 1
        assert value(samples, "vdi_messages_total", number="18210", severity="16", to="log") == 1
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 130
    finally:
        process.kill()
        process.communicate()
    lines = [json.loads(line) for line in said.splitlines()]
    numbers = [line["number"] for line in lines if line["event"] == "message"]
    assert numbers == [18210, 3201, 3013, 3041]
    assert ("statement", "failed") in [(line["subject"], line["state"]) for line in lines if line["event"] == "state"]
    names = {record["name"] for record in read_trace(trace)}
    assert {"message 3201", "error log 18210", "statement: failed"} <= names
