"""A library that has nothing but the C++ classes of SQL Server's own on Linux, and that is as peculiar as it may be.

The client is a process that has no other library of the interface; the server is another one, on the embedded
provider. Both find each other because the library was built from the provider's sources.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from native.build import LIBRARY, Programs, environment
from native.peers import Peers, stream
from serving import WAIT

import vdi_ext as vdi
from vdi_ext import CommandCode, CompletionCode, DeviceSetConfig, Feature, SetState
from vdi_ext._core.provider import _cached_libraries
from vdi_ext.engine import Engine, Synthetic
from vdi_ext.server import ServerDevice, ServerDeviceSet

MEGABYTES = 1
NEEDED = """
_ZN22ClientVirtualDeviceSetC1Ev _ZN22ClientVirtualDeviceSetD1Ev _ZN22ClientVirtualDeviceSet6CreateEPcP8VDConfig
_ZN22ClientVirtualDeviceSet16GetConfigurationElP8VDConfig
_ZN22ClientVirtualDeviceSet10OpenDeviceEPcPP19ClientVirtualDevice _ZN22ClientVirtualDeviceSet5CloseEv
_ZN22ClientVirtualDeviceSet11SignalAbortEv _ZN22ClientVirtualDeviceSet15OpenInSecondaryEPc
_ZN22ClientVirtualDeviceSet15GetBufferHandleEPhPj _ZN22ClientVirtualDeviceSet15MapBufferHandleEiPPh
_ZN19ClientVirtualDevice10GetCommandElPP11VDC_Command _ZN19ClientVirtualDevice15CompleteCommandEP11VDC_Commandiml
""".split()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("native"), os.environ.get("VDI_EXT_SANITIZE") or "none")


@pytest.fixture(scope="module")
def classes(programs: Programs) -> Path:
    return programs.classes_library()


@pytest.fixture(scope="module")
def peculiar(programs: Programs) -> Path:
    return programs.classes_library(quirks=True)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"system {os.getpid()} {request.node.name} \N{FLOPPY DISK}"[:128]


def client(peers: Peers, library: object, *arguments: object, quirks: str = "", **variables: str) -> subprocess.Popen:
    """Start tests/library_client.py and wait until its set exists."""
    command = [sys.executable, str(ROOT / "tests" / "library_client.py"), *map(str, (library, *arguments))]
    process = peers.start_command(
        command, stderr=subprocess.PIPE, env=os.environ | {"SQLVDI_QUIRKS": quirks} | variables
    )
    if arguments[0] not in ("secondary", "reader"):
        until(process, "created")
    return process


def until(process: subprocess.Popen, event: str) -> dict:
    """Read what a client says, which has to be JSON, until it says this."""
    for line in process.stdout:
        said = json.loads(line)
        if said["event"] == event:
            return said
    pytest.fail(f"the client ended before it said {event!r}:\n{process.communicate(timeout=WAIT)[1]}")


def ended_with(said: str, library: Path) -> None:
    """The client ended well, with that library and no other in its process, and said nothing but JSON."""
    last = [json.loads(line) for line in said.splitlines()][-1]
    assert last == {"event": "ended", "libraries": [str(library)]}


# ---- processes


@pytest.mark.parametrize(
    ("devices", "quirks"), [(1, ""), (1, "ms,noise,looks"), (3, "seconds,noise"), (16, "ms")], ids=lambda value: value
)
def test_backup_and_restore(programs: Programs, peculiar: Path, name: str, tmp_path: Path, devices, quirks) -> None:
    for operation in ("backup", "restore"):
        with Peers(programs) as peers:
            client(peers, peculiar, operation, name, devices, tmp_path / "stripe", quirks=quirks)
            peers.start("cserver", operation, name, str(devices), str(MEGABYTES))
            (said, errors), _ = peers.finish()
            ended_with(said, peculiar)
            noise = {line for line in errors.splitlines() if line.startswith("NOISE")}
            assert noise == ({
                f"NOISE of {of}: ClientVirtualDeviceSet::{call}"
                for call in ("ClientVirtualDeviceSet", "Create", "GetConfiguration", "OpenDevice", "Close",
                             "~ClientVirtualDeviceSet")
                for of in ("C", "C++")
            } if "noise" in quirks else set())  # fmt: skip
    for device in range(devices):
        stored = (tmp_path / f"stripe.{device}").read_bytes()
        assert len(stored) == MEGABYTES << 20
        assert stored[: 3 << 16] == stream(device, 3 << 16)


def test_threads_that_complete_the_commands_of_others(
    programs: Programs, peculiar: Path, name: str, tmp_path: Path
) -> None:
    with Peers(programs) as peers:
        client(peers, peculiar, "pooled", name, 2, tmp_path / "stripe")
        peers.start("cserver", "backup", name, "2", str(MEGABYTES))
        ended_with(peers.finish()[0][0], peculiar)
    for device in range(2):
        assert (tmp_path / f"stripe.{device}").read_bytes()[: 3 << 16] == stream(device, 3 << 16)


def test_secondaries(programs: Programs, peculiar: Path, name: str, tmp_path: Path) -> None:
    with Peers(programs) as peers:
        primary = client(peers, peculiar, "primary", name, 3, tmp_path / "stripe", quirks="noise")
        peers.start("cserver", "backup", name, "3", str(MEGABYTES))
        until(primary, "configured")
        for number in (1, 2):
            client(peers, peculiar, "secondary", name, number, tmp_path / "stripe", quirks="noise")
        ended_with(peers.finish()[0][0], peculiar)
    for device in range(3):
        assert (tmp_path / f"stripe.{device}").read_bytes()[: 3 << 16] == stream(device, 3 << 16)


def test_handles_cross_processes_on_the_word_of_their_sender(
    programs: Programs, peculiar: Path, name: str, tmp_path: Path
) -> None:
    with Peers(programs) as peers:
        client(peers, peculiar, "owner", name, 1, tmp_path / "stripe", quirks="noise")
        peers.start("cserver", "backup", name, "1", str(MEGABYTES))
        ended_with(peers.finish()[0][0], peculiar)
    assert (tmp_path / "stripe.0").read_bytes()[: 3 << 16] == stream(0, 3 << 16)


def test_the_stand_in_for_sql_server(programs: Programs, peculiar: Path, name: str, tmp_path: Path) -> None:
    engine = Engine({"seeded": Synthetic(4 << 20, seed=7)})
    devices = ", ".join(f"VIRTUAL_DEVICE = N'{name}{suffix}'" for suffix in ("", "-1"))
    for statement in (f"BACKUP DATABASE seeded TO {devices}", f"RESTORE DATABASE seeded FROM {devices} WITH REPLACE"):
        with Peers(programs) as peers:
            operation = statement.partition(" ")[0].lower()
            client(peers, peculiar, operation, name, 2, tmp_path / "stripe", quirks="noise")
            engine.execute(statement)
            ended_with(peers.finish()[0][0], peculiar)


def test_the_command_line_prints_nothing_of_the_library_s(peculiar: Path, tmp_path: Path) -> None:
    """Threads that the job makes serve the devices; what is on standard output is JSON and nothing else."""
    tool = [sys.executable, "-P", "-m", "vdi_ext"]
    for arguments in (
        ("backup", "synthetic:4MiB", tmp_path / "set", "--devices", "3", "--checksum"),
        ("restore", tmp_path / "set", "synthetic:4MiB"),
    ):
        done = subprocess.run(
            [*tool, *map(str, arguments), "--json", "--provider", peculiar],
            env=os.environ | {"SQLVDI_QUIRKS": "noise", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert len([json.loads(line) for line in done.stdout.splitlines()]) > 3
        assert "NOISE of C: " in done.stderr and "NOISE of C++: " in done.stderr


def test_over_the_network_as_with_a_real_server(peculiar: Path, tmp_path: Path) -> None:
    """Server, backup and restore are processes of their own, and the stream is on standard output, with the noise."""
    variables = os.environ | {"SQLVDI_QUIRKS": "noise,seconds", "PYTHONPATH": str(ROOT), "WORD": "Secret1!"}
    tool = [sys.executable, "-P", "-m", "vdi_ext"]
    databases = [f"--database={name}=synthetic:4MiB:7" for name in ("sales", "copy")]
    serve = [*tool, "serve", "--listen=127.0.0.1:0", "--login=sa=env:WORD", "--json", *databases]
    with subprocess.Popen(serve, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            port = json.loads(server.stdout.readline())["port"]
            options = [f"--provider={peculiar}", "--password-env=WORD", "--quiet"]

            def pipe(way: str, database: str, *more: str, **files: object) -> str:
                address = f"mssql://sa@127.0.0.1:{port}?database={database}&driver=pymssql&encrypt=no"
                done = subprocess.run(
                    [*tool, "pipe", way, address, *options, *more],
                    env=variables, stderr=subprocess.PIPE, text=True, timeout=60, **files,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                assert "NOISE of C: ClientVirtualDeviceSet::Create" in done.stderr
                return done.stdout or ""

            with open(tmp_path / "stream", "w+b") as stream:
                pipe("backup", "sales", stdout=stream)
                size = os.fstat(stream.fileno()).st_size
                stream.seek(0)
                assert stream.read(4) == b"TAPE" and size % 512 == 0
                stream.seek(0)
                assert b"NOISE" not in stream.read()
                stream.seek(0)
                said = pipe("restore", "copy", "--replace", stdin=stream, stdout=subprocess.PIPE)
                assert said.startswith("restored ") and "NOISE" not in said
        finally:
            server.terminate()


@contextmanager
def server_of(name: str, devices: int = 1) -> Iterator[tuple[ServerDeviceSet, list[ServerDevice]]]:
    """The server's half of a set that exists, here, on the embedded provider."""
    server = ServerDeviceSet.open(name)
    try:
        server.begin_configuration(Feature.WRITE_MEDIA, 512, 4096, 65536)
        server.request_buffers(65536, 4096, 8)
        server.end_configuration()
        names = [f"{name}-{number}" if number else name for number in range(devices)]
        yield server, [server.open_device(each) for each in names]
    finally:
        try:
            server.signal_abort()
        except (vdi.VDProtocolError, vdi.VDNotOpenError):
            pass
        try:
            server.close()
        except vdi.VDProtocolError:  # the test left a device open
            pass


@pytest.mark.parametrize("quirks", ["ms", "seconds"])
def test_the_vtables(programs: Programs, peculiar: Path, name: str, quirks: str) -> None:
    ascii_name = name.encode("ascii", "ignore").decode()
    with Peers(programs) as peers:
        command = programs.command("adapter", str(peculiar), ascii_name)
        process = peers.start_command(command, env=environment() | {"SQLVDI_QUIRKS": quirks}, stderr=subprocess.STDOUT)
        peers.until(process, "created")
        with server_of(ascii_name) as (_, (device,)):
            assert device.send_command(CommandCode.FLUSH).result(WAIT).code is CompletionCode.SUCCESS
            device.close_device()
            peers.finish()


@pytest.mark.parametrize("unit", ["ms", "seconds"])
def test_a_timeout_is_in_seconds_whatever_the_library_counts_in(
    programs: Programs, peculiar: Path, name: str, tmp_path: Path, unit: str
) -> None:
    """And waiting costs few looks: it does not keep a core busy."""
    with Peers(programs) as peers:
        process = client(peers, peculiar, "idle", name, 1, tmp_path / "stripe", quirks=f"looks,{unit}")
        with server_of(name) as (server, (device,)):
            future = device.send_command(CommandCode.WRITE, server.allocate_buffer(65536))
            nothing = until(process, "nothing")
            assert future.result(WAIT).code is CompletionCode.SUCCESS
            device.close_device()
            ((_, errors),) = peers.finish()
    assert 1.0 <= nothing["seconds"] < 10  # 20 seconds, or a millisecond, in the other unit
    looks = next(int(line.split()[1]) for line in errors.splitlines() if line.startswith("looks"))
    assert looks < 5000


def test_the_first_wait_is_as_long_as_asked(programs: Programs, peculiar: Path, name: str, tmp_path: Path) -> None:
    with Peers(programs) as peers:
        command = [sys.executable, str(ROOT / "tests" / "library_client.py"), str(peculiar), "backup", name, "1",
                   str(tmp_path / "stripe")]  # fmt: skip
        process = peers.start_command(
            command, stderr=subprocess.PIPE, env=os.environ | {"SQLVDI_QUIRKS": "seconds"}
        )
        assert 0.2 <= until(process, "not configured")["seconds"] < 10
        until(process, "created")
        peers.start("cserver", "backup", name, "1", str(MEGABYTES))
        peers.finish()


def test_ctrl_c_ends_a_wait(programs: Programs, peculiar: Path, name: str, tmp_path: Path) -> None:
    with Peers(programs) as peers:
        process = client(peers, peculiar, "backup", name, 1, tmp_path / "stripe", quirks="seconds,noise")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT)
        assert "KeyboardInterrupt" in errors and process.returncode != 0
        peers.running.clear()


# ---- umask


@pytest.mark.parametrize(
    ("mask", "forbidden"), [("0", False), ("77", False), ("77", True)], ids=["none", "strict", "strict, in a container"]
)
def test_what_the_library_creates_is_not_masked(
    peculiar: Path, name: str, tmp_path: Path, mask: str, forbidden: bool
) -> None:
    """The library refuses where its shared memory comes without the group's access (see quirks.cpp).

    The rest of the process keeps its umask meanwhile, except where a container forbids a thread to have its own.
    """
    environ = os.environ | {"SQLVDI_QUIRKS": "umask"}
    if forbidden:
        source, preloaded = tmp_path / "forbidden.c", tmp_path / "forbidden.so"
        source.write_text("#include <errno.h>\nint unshare(int flags) { (void)flags; errno = EPERM; return -1; }\n")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", preloaded, source], check=True, env=environment())
        environ["LD_PRELOAD"] = f"{environ.get('LD_PRELOAD', '')} {preloaded}".strip()
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import vdi_ext as vdi
os.umask(0o{mask})
for _ in range(3):
    vdi.VirtualDeviceSet.create({name!r}, provider={str(peculiar)!r}).close()
assert os.umask(0) == 0o{mask}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == ["umask", "0" if forbidden else mask] * 3


# ---- one process


@pytest.fixture(params=["classes", "peculiar"])
def library(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_what_such_a_library_is(library: Path) -> None:
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True, env=environment()
    ).stdout
    assert {line.split()[2] for line in exported.splitlines() if not line.split()[2].startswith("__")} >= set(NEEDED)
    assert "DllGetClassObject" not in exported and "VdiLiveObjects" not in exported
    provider = vdi.Provider.load(library)
    assert provider.classes_only and provider.path == str(library)
    assert not vdi.Provider.embedded().classes_only
    with pytest.raises(vdi.VDNotSupportedError, match="does not count"):
        provider.live_objects()
    with pytest.raises(vdi.VDNotSupportedError, match=r"only the client's half.*Provider\.embedded\(\)"):
        ServerDeviceSet.open("set", provider=provider)


def test_a_life(library: Path, name: str) -> None:
    with vdi.VirtualDeviceSet.create(name, DeviceSetConfig(device_count=2), provider=library) as vds:
        assert vds.state is SetState.CONFIGURABLE
        with pytest.raises(vdi.VDTimeoutError):
            vds.get_configuration(0)
        with pytest.raises(vdi.VDProtocolError):
            vds.open_device()
        with server_of(name, 2) as (server, devices):
            assert vds.get_configuration(WAIT).features == Feature.WRITE_MEDIA
            first, second = vds.open_device(), vds.open_device(f"{name}-1")
            with pytest.raises(vdi.VDOpenError):
                vds.open_device(f"{name}-2")
            with pytest.raises(vdi.VDTimeoutError):
                first.get_command(0)
            buffer = server.allocate_buffer(65536)
            with memoryview(buffer) as view:
                view[:5] = b"bytes"
            future = devices[1].send_command(CommandCode.WRITE, buffer, size=1024)
            with second.get_command(WAIT) as command:
                assert (command.code, command.size) == (CommandCode.WRITE, 1024)
                with memoryview(command) as view:
                    assert view[:5] == b"bytes" and view.readonly
            assert future.result(WAIT) == (CompletionCode.SUCCESS, 1024, 0)
            for device in devices:
                device.close_device()
            assert list(first) == list(second) == list(first) == []
            assert vds.state is SetState.NORMALLY_TERMINATED
    with pytest.raises(vdi.VDNotOpenError):
        first.get_command(0)
    assert vds.state is SetState.DOES_NOT_EXIST


def test_an_abort_of_each_side(library: Path, name: str) -> None:
    for side in ("client", "server"):
        with vdi.VirtualDeviceSet.create(name, provider=library) as vds, server_of(name) as (server, (device,)):
            vds.get_configuration(WAIT)
            reader = vds.open_device()
            future = device.send_command(CommandCode.FLUSH)
            command = reader.get_command(WAIT)
            (vds if side == "client" else server).signal_abort("a reason that does not travel")
            assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED
            with pytest.raises(vdi.VDAbortError) as caught:
                reader.get_command(WAIT)
            assert caught.value.reason is None
            with pytest.raises(vdi.VDAbortError):
                command.complete()
            assert vds.state is SetState.ABORT


def test_a_set_that_is_left_early_aborts(library: Path, name: str) -> None:
    vds = vdi.VirtualDeviceSet.create(name, provider=library)
    with server_of(name) as (_, (device,)):
        vds.get_configuration(WAIT)
        reader = vds.open_device()
        future = device.send_command(CommandCode.FLUSH)
        command = reader.get_command(WAIT)
        with pytest.raises(vdi.VDOpenError):
            vds.close()
        assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED
        with pytest.raises(vdi.VDNotOpenError):
            command.complete()


@pytest.mark.parametrize("make", [vdi.VirtualDeviceSet.create, vdi.VirtualDeviceSet.open_in_secondary])
def test_there_are_no_instances(library: Path, name: str, make: Callable) -> None:
    with pytest.raises(vdi.VDInstanceNameError, match=r"no named instances.* leave out the instance 'SECOND'"):
        make(name, instance="SECOND", provider=library)
    with vdi.VirtualDeviceSet.create(name, instance="", provider=library):
        pass


@pytest.mark.parametrize(
    "unfit", ["", "a\\b", "x" * 129, "x" * 300, "\N{FLOPPY DISK}" * 129], ids=lambda text: f"{len(text)} characters"
)
def test_names_that_are_none(classes: Path, unfit: str) -> None:
    with pytest.raises(vdi.VDInvalidError):
        vdi.VirtualDeviceSet.create(unfit, provider=classes)
    with pytest.raises(vdi.VDInvalidError):
        vdi.VirtualDeviceSet.open_in_secondary(unfit, provider=classes)


@pytest.mark.parametrize("character", ["x", "\u00e9", "\u20ac", "\N{FLOPPY DISK}"])
def test_names_arrive_whole(classes: Path, character: str) -> None:
    name = f"{os.getpid()}".ljust(128, character)
    with vdi.VirtualDeviceSet.create(name, provider=classes):
        with pytest.raises(vdi.VDProtocolError):
            vdi.VirtualDeviceSet.create(name, provider=classes)
        with ServerDeviceSet.open(name):
            pass


def test_a_configuration_that_is_refused(library: Path, name: str) -> None:
    with pytest.raises(vdi.VDNotSupportedError):
        both = Feature.FILE_MARKS | Feature.RANDOM_ACCESS
        vdi.VirtualDeviceSet.create(name, DeviceSetConfig(device_count=1, features=both), provider=library)
    with pytest.raises(vdi.VDNotSupportedError, match="groups"):
        vdi.VirtualDeviceSet.create(name, provider=library, group=0)


def test_a_result_that_is_none(peculiar: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLVDI_QUIRKS", "wrong")
    with pytest.raises(vdi.VDUnexpectedError), vdi.VirtualDeviceSet.create(name, provider=peculiar) as vds:
        vds.open_device()


# ---- which library


def test_missing_functions_are_named(tmp_path: Path) -> None:
    source, library = tmp_path / "part.c", tmp_path / "part.so"
    absent = {NEEDED[4], NEEDED[10]}
    source.write_text("".join(f"void {function}(void) {{}}\n" for function in NEEDED if function not in absent))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, env=environment())
    with pytest.raises(vdi.VDNotSupportedError, match="does not export") as caught:
        vdi.Provider.load(library)
    words = caught.value.message.replace(",", "").split()
    assert {word for word in words if word.startswith("_ZN")} == absent
    assert "Provider.embedded()" in caught.value.message


def test_a_library_without_what_it_needs(tmp_path: Path) -> None:
    for name, source, more in (("needed", "int needed;", []), ("needing", "extern int needed; int *p = &needed;",
                                                             ["-L.", "-lneeded"])):  # fmt: skip
        (tmp_path / f"{name}.c").write_text(source)
        command = ["cc", "-shared", "-fPIC", "-o", f"lib{name}.so", f"{name}.c", *more]
        subprocess.run(command, cwd=tmp_path, check=True, env=environment())
    (tmp_path / "libneeded.so").unlink()
    with pytest.raises(OSError, match=r"libneeded\.so.*install what is missing"):
        vdi.Provider.load(tmp_path / "libneeding.so")


def run(code: str, **variables: object) -> subprocess.CompletedProcess[str]:
    preamble = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vdi_ext as vdi\n"
    environ = os.environ | {key: str(value) for key, value in variables.items()}
    return subprocess.run(
        [sys.executable, "-c", preamble + code], env=environ, capture_output=True, text=True, timeout=60
    )


if not os.path.exists("/opt/mssql/lib/libsqlvdi.so"):

    def test_the_system_s_library_is_found_as_the_loader_finds_it(
        programs: Programs, classes: Path, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        folders = f"{tmp_path / 'absent'}::{tmp_path / 'empty'}:{classes.parent}"
        # Also where the embedded provider, which has the same name to the loader, is there already.
        done = run("vdi.Provider.embedded(); print(vdi.Provider.system().path)", LD_LIBRARY_PATH=folders)
        assert done.stdout.strip() == str(classes), done.stderr
        for library in ("system", "default"):
            with Peers(programs) as peers:
                client(peers, library, "backup", name, 1, tmp_path / "stripe", LD_LIBRARY_PATH=folders)
                peers.start("cserver", "backup", name, "1", str(MEGABYTES))
                ended_with(peers.finish()[0][0], classes)

    def test_a_system_s_library_that_is_of_no_use_is_an_error(tmp_path: Path, classes: Path) -> None:
        """A default that went to the embedded provider would leave its user waiting for a server that never comes."""
        (tmp_path / "libsqlvdi.so").write_text("not a library")
        for code in ("vdi.Provider.system()", "vdi.VirtualDeviceSet.create()"):
            done = run(code, LD_LIBRARY_PATH=tmp_path)
            assert "OSError" in done.stderr and str(tmp_path / "libsqlvdi.so") in done.stderr
        done = run("print(vdi.Provider.system().path)", LD_LIBRARY_PATH=f"{tmp_path}:{classes.parent}")
        assert done.stdout.strip() == str(classes), done.stderr
        done = run("vdi.VirtualDeviceSet.create(provider='embedded').close()", LD_LIBRARY_PATH=tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_loader_s_cache_is_read_as_ldconfig_reads_it(tmp_path: Path, classes: Path) -> None:
    ldconfig = next(path for path in ("/sbin/ldconfig", "/usr/sbin/ldconfig") if os.path.exists(path))
    cache, settings = tmp_path / "cache", tmp_path / "settings"
    settings.write_text(f"{classes.parent}\n")
    subprocess.run([ldconfig, "-X", "-C", cache, "-f", settings], check=True, env=environment(), capture_output=True)
    assert _cached_libraries(cache, b"libsqlvdi.so") == [str(classes)]
    listing = subprocess.run([ldconfig, "-C", cache, "-p"], capture_output=True, text=True, env=environment()).stdout
    expected: dict[str, list[str]] = {}
    for line in listing.splitlines()[1:]:
        if " => " in line:
            expected.setdefault(line.split()[0], []).append(line.split(" => ")[1])
    for library, paths in expected.items():
        assert _cached_libraries(cache, library.encode()) == paths
    image = cache.read_bytes()
    for end in (0, 10, 30, 60, len(image) // 2):
        cache.write_bytes(image[:end])
        assert set(_cached_libraries(cache, b"libsqlvdi.so")) <= {str(classes)}
    assert _cached_libraries(tmp_path / "absent", b"libsqlvdi.so") == []


def test_the_class_factory_is_preferred() -> None:
    assert not vdi.Provider.load(LIBRARY).classes_only  # it exports the classes as well
