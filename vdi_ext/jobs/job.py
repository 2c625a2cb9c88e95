"""What a backup and a restore have in common: one device set, one thread per device, one statement.

The statement's result alone says whether the operation succeeded (section 1.2 of the specification): the devices' end
does not, and neither does an abort.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from .._core.device import VirtualDevice
from .._core.device_set import VirtualDeviceSet
from .._core.provider import Provider
from ..config import DeviceSetConfig
from ..constants import Feature
from ..errors import VDAbortError, VDError, VDTimeoutError
from ..events import Configured, EventStream, StateChanged
from .events import Reporter
from .statements import SQLError, Statement

_POLL = 0.1  # seconds between two looks at the statement
_PATIENCE = 10.0  # seconds that one side is given to end after the other has
_ABORT_PATIENCE = 3.0  # seconds that a statement is given to fail by itself when its devices are gone


class Job:
    """Runs one statement against one device set.

    Parameters
    ----------
    reporter : Reporter
        Told about phases.
    devices : int
        Number of devices, 1 to 64.
    serve : callable
        ``serve(job, device, number)``: answers the commands of one device until it ends, on a thread of its own.
    provider : Provider or None
        None: the client's default.
    request_complete : bool
        Ask the server for a Complete command after the last Flush.
    instance, group : str, optional
        As for `VirtualDeviceSet.create`.
    features : Feature
        What else to ask for.
    """

    def __init__(
        self,
        reporter: Reporter,
        devices: int,
        serve: Callable[["Job", VirtualDevice, int], None],
        *,
        provider: Provider | None,
        request_complete: bool = True,
        instance: str | None = None,
        group: str | None = None,
        features: Feature = Feature.LIKE_PIPE,
    ) -> None:
        self.reporter = reporter
        self.devices = devices
        self.statement: Statement | None = None
        self.device_set: VirtualDeviceSet | None = None
        self.config: DeviceSetConfig | None = None
        self._serve = serve
        self._where: dict[str, Any] = {"provider": provider, "instance": instance, "group": group}
        self._features = features | (Feature.REQUEST_COMPLETE if request_complete else Feature.LIKE_PIPE)
        self.ending = threading.Event()  # it goes wrong: whoever waits for anything but the devices must stop
        self._wake = threading.Event()
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    @property
    def events(self) -> EventStream:
        return self.reporter.events

    @property
    def complete_granted(self) -> bool:
        return bool(self.config.features & Feature.COMPLETE_ENABLED)

    def hear(self, text: str) -> None:
        """Pass on what the server says; for the statement's thread, on which nothing may be raised."""
        try:
            self.reporter.message(text)
        except BaseException as error:
            self._failures.append(error)
            self._wake.set()

    def stop(self, error: BaseException) -> None:
        """End it from another thread: `run` raises the error, if it has not ended before."""
        self._failures.append(error)
        self._wake.set()

    def run(self, submit: Callable[[list[str]], Statement], configured: Callable[[DeviceSetConfig], None]) -> None:
        """Run to the end.

        Parameters
        ----------
        submit : callable
            Given the devices' names, starts the statement.
        configured : callable
            Told the negotiated configuration before any device is opened.

        Raises
        ------
        SQLError
            The statement failed, or was lost with its server.
        VDError
            The interface failed.
        BaseException
            Whatever `serve`, the user's progress function or a signal raised first.
        """
        self.reporter.phase("creating")
        wish = DeviceSetConfig(device_count=self.devices, features=self._features)
        try:
            with VirtualDeviceSet.create(config=wish, **self._where) as self.device_set:
                self._changed("set", "configurable", detail=self.device_set.name)
                try:
                    self._run(submit, configured)
                except BaseException as error:
                    # Both sides must see the end before the buffers go.
                    self._abort(error)
                    self._settle()
                    raise
                self.reporter.phase("closing")
        except VDAbortError as error:
            raise self._explained(error) from error
        finally:
            if self.statement is not None:
                self.statement.stop()
                state = "lost" if self.statement.lost else "succeeded" if self.statement.succeeded else "failed"
                self._changed("statement", state)
            self._changed("set", "closed")

    def _changed(self, subject: str, state: str, device: int | None = None, detail: str | None = None) -> None:
        self.events.emit(StateChanged, subject, state, device, detail)

    def _run(self, submit: Callable[[list[str]], Statement], configured: Callable[[DeviceSetConfig], None]) -> None:
        names = [self.device_set.name] + [f"{self.device_set.name}-{n}" for n in range(2, self.devices + 1)]
        self.statement = submit(names)
        self._changed("statement", "submitted")
        self.statement.on_done(self._wake.set)
        self.reporter.phase("configuring")
        self.config = self._await_configuration()
        self._changed("set", "initializing")
        self.events.emit(Configured, self.config)
        configured(self.config)
        for number, name in enumerate(names, 1):
            title = f"vdi-device-{number}"
            thread = threading.Thread(target=self._device, args=(number, name), name=title, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._await_devices()
        self._await_statement()

    def _await_configuration(self) -> DeviceSetConfig:
        while True:
            try:
                return self.device_set.get_configuration(timeout=_POLL)
            except VDTimeoutError:
                self._raise_failure()
                # A statement that fails at once never touches the set.
                if self.statement.done:
                    self.statement.result()
                    raise SQLError(["the statement ended without using its devices"]) from None

    def _device(self, number: int, name: str) -> None:
        try:
            self.reporter.phase("opening", device=number)
            device = self.device_set.open_device(name)
            self._changed("device", "active", number, name)
            self._serve(self, device, number)
            self._changed("device", "closed", number)
        except BaseException as error:  # raised again by the job's thread
            self._failures.append(error)
        finally:
            self._wake.set()

    def _await_devices(self) -> None:
        ended: float | None = None
        while any(thread.is_alive() for thread in self._threads):
            self._wake.wait(_POLL)
            self._wake.clear()
            self.reporter.tick()
            self._raise_failure()
            # The server closes its devices before its statement ends; a server that is gone can not.
            if self.statement.done:
                ended = ended or time.monotonic()
                if time.monotonic() - ended > _PATIENCE:
                    self.statement.result()
                    raise SQLError(["the statement ended, but its devices were not closed"])
        self._raise_failure()

    def _await_statement(self) -> None:
        while not self.statement.wait(_POLL):
            self.reporter.tick()
        self._raise_failure()
        self.statement.result()

    def _raise_failure(self) -> None:
        if self._failures:
            if all(isinstance(error, VDAbortError) for error in list(self._failures)):
                # An abort is the consequence of something, which another thread may be about to report.
                self._join()
            raise min(list(self._failures), key=lambda error: isinstance(error, VDAbortError))

    def _abort(self, error: BaseException) -> None:
        self.ending.set()
        if isinstance(error, VDAbortError):
            return
        name = "cancelled" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        try:
            self.device_set.signal_abort(name)
        except VDError:
            # The set was not usable any more; the error being raised says why.
            if not isinstance(error, VDError):
                raise
        self._changed("set", "abort", detail=name)

    def _settle(self) -> None:
        """After an abort: every thread returns, the statement ends by itself or is ended."""
        self._join()
        if self.statement is not None and not self.statement.wait(_ABORT_PATIENCE):
            self.statement.stop()

    def _join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:  # a signal may have come between its making and its start
                thread.join(_PATIENCE)

    def _explained(self, error: VDAbortError) -> BaseException:
        """What the server says of an abort, or its silence; the abort itself only where it reports no failure."""
        if self.statement is None or not self.statement.done:
            return error
        try:
            self.statement.result()
        except SQLError as sql:
            return sql
        return error
