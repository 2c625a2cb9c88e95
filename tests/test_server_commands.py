"""Server half: sending, completions, the device's error state, abort, the completion agent."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from server_pair import TIMEOUT, TRANSFER, Pair, active, start, until

from vdi_ext import (
    CommandCode,
    CompletionCode,
    Feature,
    SetState,
    VDAbortError,
    VDBusyError,
    VDClosedError,
    VDInvalidError,
    VDIOError,
    VDProtocolError,
    VDQueueFullError,
    VDTimeoutError,
)
from vdi_ext.server import Completion

# ---- one command


def test_a_completion_says_how_it_went() -> None:
    with active(Feature.READ_MEDIA) as pair:
        buffer = pair.buffer()
        future = pair.device.send_command(CommandCode.READ, buffer)
        command = pair.reader.get_command(TIMEOUT)
        assert (command.code, command.size) == (CommandCode.READ, TRANSFER)
        with memoryview(command) as view:
            view[:3] = b"abc"
        command.complete(CompletionCode.HANDLE_EOF, 3)
        completion = future.result(TIMEOUT)
        assert completion == Completion(CompletionCode.HANDLE_EOF, 3, 0)  # the count is honoured whatever the code
        assert isinstance(completion.code, CompletionCode)
        assert bytes(memoryview(buffer)[:3]) == b"abc"


def test_positions_go_both_ways() -> None:
    with active(features=Feature.RANDOM_ACCESS) as pair:
        future = pair.device.send_command(CommandCode.SET_POSITION, position=2**64 - 1, size=2)
        command = pair.reader.get_command(TIMEOUT)
        assert (command.code, command.position, command.size) == (CommandCode.SET_POSITION, 2**64 - 1, 2)
        command.complete(position=2**63 + 5)
        assert future.result(TIMEOUT) == (0, 0, 2**63 + 5)


def test_any_win32_code_passes() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete(0xDEADBEEF)
        assert future.result(TIMEOUT).code == 0xDEADBEEF


def test_any_command_code_passes() -> None:
    with active() as pair:
        for code in (*CommandCode, 77):
            buffer = pair.buffer() if code in (CommandCode.READ, CommandCode.WRITE) else None
            future = pair.device.send_command(code, buffer)
            command = pair.reader.get_command(TIMEOUT)
            assert (command.code, command.size) == (code, buffer.size if buffer else 0)
            command.complete(0, 0)
            assert future.result(TIMEOUT).code == 0


def test_a_part_of_a_buffer() -> None:
    with active() as pair:
        buffer = pair.buffer()
        memoryview(buffer)[:] = b"abcdefgh" * (TRANSFER // 8)
        future = pair.device.send_command(CommandCode.WRITE, buffer, size=1024)
        with pair.reader.get_command(TIMEOUT) as command:
            assert bytes(command) == b"abcdefgh" * 128
        assert future.result(TIMEOUT).bytes_transferred == 1024


@pytest.mark.parametrize(("size", "wire"), [(0, 0), (5, 5), (-5, 2**32 - 5), (2**32 - 1, 2**32 - 1), (-(2**31), 2**31)])
def test_counts_are_32_bits_with_or_without_sign(size: int, wire: int) -> None:
    with active() as pair:
        pair.device.send_command(CommandCode.SKIP_BLOCKS, size=size)
        command = pair.reader.get_command(TIMEOUT)
        assert command.size == wire
        command.complete()


def test_arguments_of_send_command() -> None:
    with active() as pair:
        buffer = pair.buffer()
        for wrong, arguments in (
            (TypeError, {"buffer": bytearray(TRANSFER)}),
            (TypeError, {"buffer": memoryview(buffer)}),
            (TypeError, {"callback": 5}),
            (TypeError, {"size": "5"}),
            (OverflowError, {"size": 2**32}),
            (OverflowError, {"size": -(2**31) - 1}),
            (OverflowError, {"position": -1}),
            (OverflowError, {"position": 2**64}),
        ):
            with pytest.raises(wrong):
                pair.device.send_command(CommandCode.WRITE, **arguments)
        with pytest.raises(OverflowError):
            pair.device.send_command(2**32)
        with pytest.raises(TypeError):
            pair.device.send_command("WRITE")  # type: ignore[arg-type]
        with pytest.raises(VDTimeoutError):
            pair.reader.get_command(0)  # nothing of that was sent
        assert not pair.server.agent_running and not buffer.is_lent


@pytest.mark.parametrize("size", [TRANSFER + 1, 2**32 - 1, 0])
def test_a_transfer_beyond_its_buffer_is_refused(size: int) -> None:
    with active() as pair:
        buffer = pair.buffer()
        called: list[Completion] = []
        with pytest.raises(VDInvalidError):
            pair.device.send_command(CommandCode.WRITE, buffer, size=size, callback=called.append)
        assert not called and not buffer.is_lent
        pair.server.free_buffer(buffer)


def test_a_transfer_without_a_buffer_is_refused() -> None:
    with active() as pair, pytest.raises(VDInvalidError):
        pair.device.send_command(CommandCode.WRITE, size=512)


def test_a_future_can_not_be_cancelled() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH)
        assert future.running() and not future.cancel() and not future.cancelled()
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT) == (0, 0, 0)
        assert future.done() and future.exception() is None and not future.cancel()


def test_a_callback_runs_on_the_agents_thread_before_the_future_is_done() -> None:
    with active() as pair:
        seen: list[tuple[Completion, int, bool]] = []
        buffer = pair.buffer()

        def callback(completion: Completion) -> None:
            seen.append((completion, threading.get_ident(), buffer.is_lent))

        future = pair.device.send_command(CommandCode.WRITE, buffer, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT) == (0, TRANSFER, 0)
        ((completion, thread, lent),) = seen
        assert completion == future.result() and thread != threading.get_ident() and not lent


def test_commands_arrive_in_order_and_complete_in_any() -> None:
    with active() as pair:
        order: list[int] = []
        futures = [
            pair.device.send_command(CommandCode.FLUSH, size=n, callback=lambda c: order.append(c.position))
            for n in range(8)
        ]
        commands = [pair.reader.get_command(TIMEOUT) for _ in range(8)]
        assert [c.size for c in commands] == list(range(8))
        turn = [3, 0, 7, 1, 6, 2, 5, 4]
        for n in turn:
            commands[n].complete(position=n)
        assert [f.result(TIMEOUT).position for f in futures] == list(range(8))
        assert order == turn


@pytest.mark.threaded
def test_a_callback_sends_the_next_command() -> None:
    rounds = 300
    with active() as pair:
        buffers = [pair.buffer() for _ in range(4)]
        left = rounds - len(buffers)
        completions: list[Completion] = []
        done = threading.Event()

        def send(buffer_number: int) -> None:
            pair.device.send_command(
                CommandCode.WRITE, buffers[buffer_number], callback=lambda c: again(c, buffer_number)
            )

        def again(completion: Completion, buffer_number: int) -> None:
            nonlocal left
            completions.append(completion)
            if left:
                left -= 1
                send(buffer_number)
            elif len(completions) == rounds:
                done.set()

        def read() -> int:
            count = 0
            for command in pair.reader:
                count += 1
                command.complete()
            return count

        reader = start(read)
        for n in range(len(buffers)):
            send(n)
        assert done.wait(TIMEOUT)
        pair.device.close_device()
        assert reader.outcome() == rounds
        assert completions == [(0, TRANSFER, 0)] * rounds


def test_close_device_delivers_what_was_sent() -> None:
    with active() as pair:
        futures = [pair.device.send_command(CommandCode.FLUSH) for _ in range(3)]
        pair.device.close_device()
        with pytest.raises(VDProtocolError):
            pair.device.send_command(CommandCode.FLUSH)
        for command in pair.reader:
            command.complete()
        assert [f.result(TIMEOUT).code for f in futures] == [0, 0, 0]
        with pytest.raises(VDClosedError):
            pair.reader.get_command(0)


# ---- refused sends


def refusal(pair: Pair, error: type[Exception], code: CommandCode = CommandCode.FLUSH) -> None:
    called: list[Completion] = []
    buffer = pair.buffer() if pair.server.state is SetState.ACTIVE else None
    with pytest.raises(error):
        pair.device.send_command(code, buffer, callback=called.append)
    assert not called
    assert buffer is None or not buffer.is_lent


def test_a_full_queue_refuses() -> None:
    with active() as pair:
        futures = []
        calls = 0

        def count(completion: Completion) -> None:
            nonlocal calls
            calls += 1

        with pytest.raises(VDQueueFullError):
            for _ in range(10000):
                futures.append(pair.device.send_command(CommandCode.FLUSH, callback=count))
        assert len(futures) >= 4032  # long enough for every buffer and some control commands
        refusal(pair, VDQueueFullError)
        for _ in futures:
            pair.reader.get_command(TIMEOUT).complete()
        assert {f.result(TIMEOUT).code for f in futures} == {0}
        assert calls == len(futures)
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0


def test_refusals_by_state() -> None:
    with active(device_count=2) as pair:
        failed = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete(CompletionCode.NOT_SUPPORTED)
        assert failed.result(TIMEOUT).code is CompletionCode.NOT_SUPPORTED
        refusal(pair, VDIOError)
        pair.device.close_device()
        refusal(pair, VDProtocolError)
        pair.server.signal_abort()
        refusal(pair, VDAbortError)
        pair.server.close()
        refusal(pair, VDProtocolError)


@pytest.mark.threaded
def test_refusals_while_completions_run() -> None:
    """The routine of a refused send runs on the sender's thread, others on the agent's at the same time."""
    with active(device_count=2) as pair:
        pair.server_devices[1].close_device()
        results: list[Completion] = []
        stop = threading.Event()

        def refused() -> int:
            count = 0
            while not stop.is_set():
                with pytest.raises(VDProtocolError):
                    pair.server_devices[1].send_command(CommandCode.FLUSH, callback=results.append)
                count += 1
            return count

        thread = start(refused)
        for _ in range(500):
            future = pair.device.send_command(CommandCode.FLUSH)
            pair.reader.get_command(TIMEOUT).complete()
            assert future.result(TIMEOUT).code == 0
        stop.set()
        assert thread.outcome()
        assert not results


def test_a_callback_is_refused_on_the_agents_own_thread() -> None:
    with active(device_count=2) as pair:
        pair.server_devices[1].close_device()
        outcome: queue.Queue[BaseException | None] = queue.Queue()

        def callback(completion: Completion) -> None:
            try:
                pair.server_devices[1].send_command(CommandCode.FLUSH, callback=callback)
            except VDProtocolError as error:
                outcome.put(error)

        future = pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        assert isinstance(outcome.get(timeout=TIMEOUT), VDProtocolError)
        assert future.result(TIMEOUT).code == 0
        assert outcome.empty()


# ---- error state of a device (6.4)


def fail(pair: Pair, code: int = CompletionCode.DISK_FULL) -> None:
    future = pair.device.send_command(CommandCode.FLUSH)
    pair.reader.get_command(TIMEOUT).complete(code)
    assert future.result(TIMEOUT).code == code


@pytest.mark.parametrize(
    "code", [c for c in CompletionCode if c is not CompletionCode.SUCCESS], ids=lambda code: code.name
)
def test_every_code_but_success_is_an_error(code: CompletionCode) -> None:
    with active() as pair:
        fail(pair, code)
        with pytest.raises(VDIOError):
            pair.device.send_command(CommandCode.WRITE, pair.buffer())
        cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
        with pair.reader.get_command(TIMEOUT) as command:
            assert command.code is CommandCode.CLEAR_ERROR
        assert cleared.result(TIMEOUT).code == 0
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0


@pytest.mark.threaded
def test_what_was_queued_behind_an_error_is_never_seen() -> None:
    with active() as pair:
        buffers = [pair.buffer() for _ in range(4)]
        futures = [pair.device.send_command(CommandCode.WRITE, b, size=512 * (n + 1)) for n, b in enumerate(buffers)]
        first, second = pair.reader.get_command(TIMEOUT), pair.reader.get_command(TIMEOUT)
        first.complete(CompletionCode.DISK_FULL, 100)
        assert futures[0].result(TIMEOUT) == (CompletionCode.DISK_FULL, 100, 0)
        assert [f.result(TIMEOUT) for f in futures[2:]] == [(CompletionCode.IO_DEVICE, 0, 0)] * 2
        assert not futures[1].done() and buffers[1].is_lent and not buffers[2].is_lent
        with pytest.raises(VDTimeoutError):
            pair.reader.get_command(0)
        second.complete()  # a late completion is passed on as it is
        assert futures[1].result(TIMEOUT) == (0, 1024, 0)
        with pytest.raises(VDIOError):
            pair.device.send_command(CommandCode.FLUSH)


def test_clear_error_is_withheld_until_older_commands_are_complete() -> None:
    with active() as pair:
        futures = [pair.device.send_command(CommandCode.FLUSH) for _ in range(3)]
        commands = [pair.reader.get_command(TIMEOUT) for _ in range(3)]
        commands[1].complete(CompletionCode.NOT_SUPPORTED)
        assert futures[1].result(TIMEOUT).code is CompletionCode.NOT_SUPPORTED
        cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
        for command in (commands[0], commands[2]):
            with pytest.raises(VDTimeoutError):
                pair.reader.get_command(0)
            command.complete()
        command = pair.reader.get_command(TIMEOUT)
        assert command.code is CommandCode.CLEAR_ERROR
        with pytest.raises(VDIOError):  # active again only when the server has the completion
            pair.device.send_command(CommandCode.FLUSH)
        command.complete()
        assert cleared.result(TIMEOUT).code == 0
        assert [f.result(TIMEOUT).code for f in futures] == [0, CompletionCode.NOT_SUPPORTED, 0]
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0


def test_a_clear_error_that_fails_clears_nothing() -> None:
    with active() as pair:
        fail(pair)
        for code in (CompletionCode.NOT_SUPPORTED, CompletionCode.SUCCESS):
            cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
            pair.reader.get_command(TIMEOUT).complete(code)
            assert cleared.result(TIMEOUT).code is code
            if code:
                with pytest.raises(VDIOError):
                    pair.device.send_command(CommandCode.FLUSH)
        pair.device.send_command(CommandCode.FLUSH)


def test_a_clear_error_without_an_error() -> None:
    with active() as pair:
        cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
        pair.reader.get_command(TIMEOUT).complete()
        assert cleared.result(TIMEOUT).code == 0
        pair.device.send_command(CommandCode.FLUSH)


def test_a_clear_error_that_fails_is_an_error_itself() -> None:
    with active() as pair:
        cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
        pair.reader.get_command(TIMEOUT).complete(CompletionCode.NOT_SUPPORTED)
        assert cleared.result(TIMEOUT).code is CompletionCode.NOT_SUPPORTED
        with pytest.raises(VDIOError):
            pair.device.send_command(CommandCode.FLUSH)


def test_errors_are_of_one_device() -> None:
    with active(device_count=2) as pair:
        fail(pair)
        future = pair.server_devices[1].send_command(CommandCode.FLUSH)
        pair.client_devices[1].get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0


def test_a_device_in_error_is_closed_in_order() -> None:
    with active() as pair:
        fail(pair)
        pair.device.close_device()
        with pytest.raises(VDClosedError):
            pair.reader.get_command(TIMEOUT)
        assert pair.server.state is SetState.NORMALLY_TERMINATED


@pytest.mark.threaded
def test_many_errors_one_after_another() -> None:
    with active() as pair:
        for _ in range(50):
            futures = [pair.device.send_command(CommandCode.FLUSH) for _ in range(4)]
            command = pair.reader.get_command(TIMEOUT)
            command.complete(CompletionCode.END_OF_MEDIA)
            codes = [f.result(TIMEOUT).code for f in futures]
            assert codes == [CompletionCode.END_OF_MEDIA] + [CompletionCode.IO_DEVICE] * 3
            cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
            pair.reader.get_command(TIMEOUT).complete()
            assert cleared.result(TIMEOUT).code == 0


# ---- abort (9.3)


@pytest.mark.parametrize("side", ["server", "client"])
def test_an_abort_completes_everything_once(side: str) -> None:
    with active() as pair:
        calls: list[Completion] = []
        buffers = [pair.buffer() for _ in range(3)]
        futures = [pair.device.send_command(CommandCode.WRITE, b, callback=calls.append) for b in buffers]
        command = pair.reader.get_command(TIMEOUT)
        getattr(pair, side).signal_abort("enough")
        assert [f.result(TIMEOUT) for f in futures] == [(CompletionCode.OPERATION_ABORTED, 0, 0)] * 3
        until(lambda: len(calls) == 3)
        assert not any(b.is_lent for b in buffers)
        for call in (
            lambda: pair.device.send_command(CommandCode.FLUSH),
            lambda: pair.buffer(),
            lambda: pair.server.get_configuration(),
            lambda: pair.server.execute_completion_agent(),
            lambda: pair.device.close_device(),
            lambda: pair.reader.get_command(TIMEOUT),
            lambda: pair.client.get_configuration(TIMEOUT),
            lambda: command.complete(),
        ):
            with pytest.raises(VDAbortError) as caught:
                call()
            assert caught.value.reason is not None and "enough" in caught.value.reason
        with memoryview(buffers[0]) as view:
            view[:1] = b"x"  # stays valid until Close
        pair.server.free_buffer(buffers[1])
        pair.server.signal_abort()  # changes nothing
        assert pair.server.state is SetState.ABORT


def test_an_abort_before_the_first_send() -> None:
    with active() as pair:
        pair.server.signal_abort()
        with pytest.raises(VDAbortError):
            pair.device.send_command(CommandCode.FLUSH)
        with pytest.raises(VDAbortError):
            pair.server.execute_completion_agent()


def test_reasons_are_cut_between_characters() -> None:
    with active() as pair:
        pair.server.signal_abort("雪" * 200 + "\0\ud800")
        with pytest.raises(VDAbortError) as caught:
            pair.reader.get_command(TIMEOUT)
        assert caught.value.reason is not None
        assert caught.value.reason.count("雪") == 85  # 255 bytes
        with pytest.raises(TypeError):
            pair.server.signal_abort(5)  # type: ignore[arg-type]


@pytest.mark.threaded
def test_a_race_of_abort_and_completions_loses_and_doubles_nothing() -> None:
    for _ in range(30):
        with active() as pair:
            calls: list[Completion] = []
            futures = [pair.device.send_command(CommandCode.FLUSH, callback=calls.append) for _ in range(20)]

            def complete(pair: Pair = pair) -> None:
                try:
                    for _ in range(20):
                        pair.reader.get_command(TIMEOUT).complete()
                except VDAbortError:
                    pass

            thread = start(complete)
            pair.server.signal_abort()
            codes = [f.result(TIMEOUT).code for f in futures]
            thread.outcome()
            assert set(codes) <= {0, 995} and codes == sorted(codes)
            until(lambda calls=calls: len(calls) == 20)  # type: ignore[misc]
            assert sorted(c.code for c in calls) == codes


# ---- the completion agent


@pytest.mark.threaded
def test_the_agent_on_a_thread_of_the_caller() -> None:
    with active() as pair:
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.agent_running)
        threads: list[int] = []
        future = pair.device.send_command(CommandCode.FLUSH, callback=lambda c: threads.append(threading.get_ident()))
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        assert threads == [agent.ident]
        pair.device.close_device()
        assert list(pair.reader) == []
        assert agent.outcome() is None
        assert not pair.server.agent_running
        assert pair.server.state is SetState.NORMALLY_TERMINATED
        with pytest.raises(VDProtocolError):
            pair.server.execute_completion_agent()


def test_the_agent_on_the_main_thread() -> None:
    with active() as pair:

        def drive() -> list[int]:
            until(lambda: pair.server.agent_running)
            codes = []
            for _ in range(3):
                future = pair.device.send_command(CommandCode.FLUSH)
                pair.reader.get_command(TIMEOUT).complete()
                codes.append(future.result(TIMEOUT).code)
            pair.device.close_device()
            return codes

        driver = start(drive)
        pair.server.execute_completion_agent()
        assert driver.outcome() == [0, 0, 0]


def test_the_agent_ends_with_close() -> None:
    with active() as pair:
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.agent_running)
        first = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert first.result(TIMEOUT).code == 0  # the agent has arrived
        future = pair.device.send_command(CommandCode.FLUSH)
        with pytest.raises(VDProtocolError):
            pair.server.close()
        assert future.result(TIMEOUT).code == 995
        try:
            agent.outcome()
        except VDAbortError:
            pass  # Close with open devices is an abort as well


def test_the_agent_ends_with_an_abort() -> None:
    with active() as pair:
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.agent_running)
        pair.client.signal_abort("not today")
        with pytest.raises(VDAbortError, match="not today"):
            agent.outcome()


def test_two_agents_are_one_too_many() -> None:
    with active() as pair:
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.agent_running)
        with pytest.raises(VDBusyError):
            pair.server.execute_completion_agent()
        with pytest.raises(VDBusyError):
            start(pair.server.execute_completion_agent).outcome()
        pair.device.close_device()
        assert list(pair.reader) == []
        agent.outcome()


def test_the_sets_own_agent_counts_as_one() -> None:
    with active() as pair:
        assert not pair.server.agent_running
        pair.device.send_command(CommandCode.FLUSH)
        assert pair.server.agent_running
        with pytest.raises(VDBusyError):
            pair.server.execute_completion_agent()
        agents = [t for t in threading.enumerate() if t.name.startswith("vdi-agent")]
        assert len(agents) == 1 and agents[0].daemon


def test_an_agent_before_the_devices_are_open() -> None:
    with Pair() as pair:
        pair.configure()
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.state is SetState.ACTIVE)
        pair.open_devices()
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        pair.device.close_device()
        assert list(pair.reader) == []
        agent.outcome()


# ---- callbacks that raise


class Mishap(Exception):
    pass


def raising(completion: Completion) -> None:
    raise Mishap(f"got {completion.code}")


def test_an_exception_of_a_callback_aborts_and_is_raised_by_the_agent() -> None:
    with active() as pair:
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.agent_running)
        first = pair.device.send_command(CommandCode.FLUSH, callback=raising)
        second = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        with pytest.raises(Mishap, match="got 0"):
            agent.outcome()
        assert first.result(TIMEOUT).code == 0 and second.result(TIMEOUT).code == 995
        with pytest.raises(VDAbortError, match="Mishap: got 0"):
            pair.reader.get_command(TIMEOUT)
        with pytest.raises(VDAbortError):  # raised once
            pair.server.execute_completion_agent()


def test_an_exception_on_the_sets_own_agent_is_raised_by_execute_completion_agent() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH, callback=raising)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        with pytest.raises(VDAbortError) as caught:  # the set is aborted before the future is done
            pair.device.send_command(CommandCode.FLUSH)
        assert isinstance(caught.value.__cause__, Mishap)
        with pytest.raises(Mishap):
            pair.server.execute_completion_agent()


def test_an_exception_that_nobody_asked_for_is_raised_by_close() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH, callback=raising)
        pair.reader.get_command(TIMEOUT).complete()
        future.result(TIMEOUT)
        with pytest.raises(Mishap):
            pair.server.close()
        assert pair.server.state is SetState.DOES_NOT_EXIST
        pair.server.close()


def test_the_users_exception_surfaces_and_tells_of_the_callbacks() -> None:
    with active() as pair:
        with pytest.raises(KeyError) as caught, pair.server:
            future = pair.device.send_command(CommandCode.FLUSH, callback=raising)
            pair.reader.get_command(TIMEOUT).complete()
            future.result(TIMEOUT)
            raise KeyError("mine")
        assert "Mishap" in "".join(caught.value.__notes__)


def test_all_callbacks_raise() -> None:
    with active() as pair:
        futures = [pair.device.send_command(CommandCode.FLUSH, callback=raising) for _ in range(4)]
        pair.reader.get_command(TIMEOUT).complete()
        assert [f.result(TIMEOUT).code for f in futures] == [0, 995, 995, 995]
        with pytest.raises(Mishap, match="got 0") as caught:
            pair.server.execute_completion_agent()
        assert len(caught.value.__notes__) == 3


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exceptions_that_are_no_errors(kind: type[BaseException]) -> None:
    with active() as pair:

        def callback(completion: Completion) -> None:
            raise kind

        future = pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        with pytest.raises(kind):
            pair.server.execute_completion_agent()


def test_a_callback_that_goes_on_after_the_abort_is_no_news() -> None:
    with active() as pair:

        def callback(completion: Completion) -> None:
            pair.device.send_command(CommandCode.FLUSH, callback=callback)

        future = pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.server.signal_abort()
        assert future.result(TIMEOUT).code == 995
        pair.server.close()  # does not raise the callback's VDAbortError


def test_a_future_that_its_user_finished() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH)
        future.set_result(Completion(0, 0, 0))
        pair.reader.get_command(TIMEOUT).complete()
        until(lambda: pair.server.state is SetState.ABORT)
        with pytest.raises(Exception, match="FINISHED"):
            pair.server.execute_completion_agent()


# ---- callbacks that end the set


@pytest.mark.threaded
def test_a_callback_closes_the_set() -> None:
    with active() as pair:
        codes: list[int] = []

        def callback(completion: Completion) -> None:
            codes.append(completion.code)
            with pytest.raises(VDProtocolError):  # devices are open
                pair.server.close()

        first = pair.device.send_command(CommandCode.FLUSH, callback=callback)
        second = pair.device.send_command(CommandCode.FLUSH, callback=lambda c: codes.append(c.code))
        pair.reader.get_command(TIMEOUT).complete()
        assert (first.result(TIMEOUT).code, second.result(TIMEOUT).code) == (0, 995)
        until(lambda: not pair.server.agent_running)
        assert codes == [0, 995] or codes == [995, 0] or codes == [0, 995]
        assert pair.server.state is SetState.DOES_NOT_EXIST


def test_a_callback_closes_the_device_and_the_set() -> None:
    with active() as pair:

        def callback(completion: Completion) -> None:
            pair.device.close_device()
            pair.server.close()

        future = pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        assert list(pair.reader) == []
        until(lambda: not pair.server.agent_running)
        pair.server.close()


def test_a_callback_aborts_the_set() -> None:
    with active() as pair:
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.agent_running)
        first = pair.device.send_command(CommandCode.FLUSH, callback=lambda c: pair.server.signal_abort("from inside"))
        second = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        with pytest.raises(VDAbortError, match="from inside"):
            agent.outcome()
        assert (first.result(TIMEOUT).code, second.result(TIMEOUT).code) == (0, 995)


def test_a_callback_can_not_be_the_agent() -> None:
    with active() as pair:
        future = pair.device.send_command(
            CommandCode.FLUSH, callback=lambda c: pair.server.execute_completion_agent()
        )
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        with pytest.raises(VDBusyError):
            pair.server.execute_completion_agent()


# ---- serverTimeOut (9.4)


def test_two_intervals_without_a_completion_abort() -> None:
    with active(server_timeout=0.2) as pair:
        begin = time.monotonic()
        future = pair.device.send_command(CommandCode.FLUSH)
        assert future.result(TIMEOUT).code == 995
        assert time.monotonic() - begin >= 0.4
        with pytest.raises(VDAbortError) as caught:
            pair.device.send_command(CommandCode.FLUSH)
        assert caught.value.reason is not None and "serverTimeOut" in caught.value.reason


def test_any_completion_restarts_the_count() -> None:
    with active(server_timeout=0.5) as pair:
        stuck = pair.device.send_command(CommandCode.FLUSH)
        held = pair.reader.get_command(TIMEOUT)
        begin = time.monotonic()
        while time.monotonic() - begin < 1.5:  # 3 intervals, with completions all the time
            future = pair.device.send_command(CommandCode.FLUSH)
            pair.reader.get_command(TIMEOUT).complete()
            assert future.result(TIMEOUT).code == 0
        assert not stuck.done() and pair.server.state is SetState.ACTIVE
        held.complete()
        assert stuck.result(TIMEOUT).code == 0


def test_nothing_pending_is_not_counted() -> None:
    with active(server_timeout=0.05) as pair:
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        with pytest.raises(VDTimeoutError):
            pair.reader.get_command(0.5)  # 10 intervals
        assert pair.server.state is SetState.ACTIVE


# ---- threads


@pytest.mark.threaded
def test_many_threads_send() -> None:
    with active(device_count=4, count=16) as pair:
        def serve(reader: object) -> int:
            count = 0
            for command in reader:  # type: ignore[attr-defined]
                command.complete()
                count += 1
            return count

        def send(n: int) -> int:
            buffers = [pair.buffer() for _ in range(2)]
            device = pair.server_devices[n % 4]
            total = 0
            for _ in range(100):
                futures = [device.send_command(CommandCode.WRITE, b) for b in buffers]
                total += sum(f.result(TIMEOUT).bytes_transferred for f in futures)
            return total

        readers = [start(lambda r=r: serve(r)) for r in pair.client_devices]  # type: ignore[misc]
        senders = [start(lambda n=n: send(n)) for n in range(8)]  # type: ignore[misc]
        assert [s.outcome() for s in senders] == [200 * TRANSFER] * 8
        for device in pair.server_devices:
            device.close_device()
        assert [r.outcome() for r in readers] == [400] * 4
