"""Subscriptions: replay, live results, resumption, replaced logs, and servers that restart or lose writes."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import msgspec
import pytest
import redis
from support.result_samples import end, epoch, event, frame, gap

from pipeline.bus import StreamKeys
from pipeline.client import subscribe, subscribe_async
from pipeline.contract.results import AnyResult, FrameResult, encode_result
from pipeline.errors import BusError, UsageError


def commit(client: Any, *messages: AnyResult) -> None:
    """Append messages with the entry IDs of the commit script: SEQ-0 for the first message of a frame, then SEQ-1."""
    for message in messages:
        key = StreamKeys.of(message.stream_id).results
        newest = client.xrevrange(key, count=1)
        seq, index = map(int, newest[0][0].split(b"-")) if newest else (0, 0)
        index = index + 1 if seq == message.frame_seq else 0
        client.xadd(key, {"j": encode_result(message)}, id=f"{message.frame_seq}-{index}")


def job(first: int, last: int, **changes: Any) -> list[AnyResult]:
    """Return frame messages; every fifth is followed by an event of the same number."""
    messages: list[AnyResult] = []
    for seq in range(first, last + 1):
        messages.append(frame(seq, **changes))
        if seq % 5 == 0:
            messages.append(event(seq, **changes))
    return messages


class Background:
    """A thread that runs a function. `join` raises the exception of the function."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


def take(results: Generator[AnyResult, None, None], count: int) -> list[AnyResult]:
    return [next(results) for _ in range(count)]


def test_replay_continues_live_and_ends_with_the_stream(redis_url: str, redis_client: Any) -> None:
    log = [*job(1, 200), gap(201, 203), epoch(203), *job(204, 230), end(230)]
    commit(redis_client, *log[:150])
    results = subscribe(redis_url, "cam1", start="start")
    seen = take(results, 150)
    live = Background(lambda: commit(redis_client, *log[150:]))
    seen += list(results)
    live.join()
    assert seen == log
    assert isinstance(seen[0], FrameResult)
    assert seen[0].instances[0].mask is not None
    assert seen[0].instances[0].mask.to_array().sum() == 38 * 29


def test_now_yields_later_results_only(redis_url: str, redis_client: Any) -> None:
    commit(redis_client, *job(1, 30))
    results = subscribe(redis_url, "cam1")
    timer = threading.Timer(0.5, lambda: commit(redis_client, frame(31), end(31)))
    timer.start()
    assert list(results) == [frame(31), end(31)]
    timer.join()


def test_now_on_a_stream_without_a_log_yields_all_its_results(redis_url: str, redis_client: Any) -> None:
    results = subscribe(redis_url, "cam1")
    timer = threading.Timer(0.5, lambda: commit(redis_client, *job(1, 7), end(7)))
    timer.start()
    assert list(results) == [*job(1, 7), end(7)]
    timer.join()


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (9, frame(10)),
        ("9", frame(10)),
        (10, event(10)),
        ("10-0", event(10)),
        ("10-1", frame(11)),
        (20, event(20)),
        ("20-1", end(20)),
    ],
    ids=str,
)
def test_a_start_number_is_the_last_one_read(
    redis_url: str, redis_client: Any, start: int | str, first: AnyResult
) -> None:
    commit(redis_client, *job(1, 20), end(20))
    assert next(subscribe(redis_url, "cam1", start=start)) == first


def test_resuming_after_the_end_ends_at_once(redis_url: str, redis_client: Any) -> None:
    commit(redis_client, *job(1, 20), end(20))
    assert list(subscribe(redis_url, "cam1", start="20-2")) == []


def test_a_subscriber_resumed_at_any_entry_misses_and_repeats_nothing(redis_url: str, redis_client: Any) -> None:
    log = [*job(1, 60), end(60)]
    commit(redis_client, *log)
    seen: list[AnyResult] = []
    while len(seen) < len(log):
        last = seen[-1].frame_seq if seen else 0
        num_followers = sum(message.frame_seq == last for message in seen) - 1
        results = subscribe(redis_url, "cam1", start=f"{last}-{max(num_followers, 0)}")
        seen += take(results, min(7, len(log) - len(seen)))
        results.close()
    assert seen == log


def test_each_of_several_streams_is_complete_and_in_order(redis_url: str, redis_client: Any) -> None:
    names = ["cam1", "cam2", "a.b-c_d"]
    logs = {
        name: [*job(1, 20 + 40 * k, stream_id=name), end(20 + 40 * k, stream_id=name)] for k, name in enumerate(names)
    }
    results = subscribe(redis_url, *names, "cam1", start="start")
    for name in names[:2]:
        commit(redis_client, *logs[name])
    timer = threading.Timer(0.5, lambda: commit(redis_client, *logs["a.b-c_d"]))
    timer.start()
    seen = list(results)
    timer.join()
    for name in names:
        assert [message for message in seen if message.stream_id == name] == logs[name]
    assert len(seen) == sum(map(len, logs.values()))


@pytest.mark.parametrize("num_new", [4, 10, 40], ids=["shorter", "as-long", "longer"])
def test_a_replaced_log_is_read_from_its_beginning(redis_url: str, redis_client: Any, num_new: int) -> None:
    old, new = job(1, 10), [*job(1, num_new, log_id="b2"), end(num_new, log_id="b2")]
    commit(redis_client, *old)
    results = subscribe(redis_url, "cam1", start="start")
    assert take(results, len(old)) == old
    redis_client.delete(StreamKeys.of("cam1").results)
    commit(redis_client, *new)
    assert list(results) == new


def test_a_log_replaced_between_two_subscriptions_is_detected(redis_url: str, redis_client: Any) -> None:
    new = [*job(1, 8, log_id="b2"), end(8, log_id="b2")]
    commit(redis_client, *new)
    assert list(subscribe(redis_url, "cam1", start=50)) == new


def test_a_replaced_log_is_detected_while_another_stream_is_busy(redis_url: str, redis_client: Any) -> None:
    """The new log is shorter, so no entry follows the position of the subscriber."""
    commit(redis_client, *job(1, 50))
    results = subscribe(redis_url, "cam1", "busy", start=50)
    stop = threading.Event()

    def keep_busy() -> None:
        with redis.Redis.from_url(redis_url) as client:
            for seq in range(51, 2000):
                commit(client, frame(seq, stream_id="busy"))
                if stop.wait(0.02):
                    return

    busy = Background(keep_busy)
    while next(results).stream_id != "busy":
        pass
    redis_client.delete(StreamKeys.of("cam1").results)
    commit(redis_client, *job(1, 3, log_id="b2"))
    deadline_s = time.monotonic() + 10
    try:
        found = next(message for message in results if message.log_id == "b2" or time.monotonic() > deadline_s)
    finally:
        stop.set()
        busy.join()
    assert found == frame(1, log_id="b2")


def test_now_on_an_ended_log_waits_for_the_next_job(redis_url: str, redis_client: Any) -> None:
    commit(redis_client, *job(1, 10), end(10))
    results = subscribe(redis_url, "cam1", start="now")

    def replace() -> None:
        time.sleep(0.4)
        redis_client.delete(StreamKeys.of("cam1").results)
        commit(redis_client, *job(1, 10, log_id="b2"), end(10, log_id="b2"))

    later = Background(replace)
    assert list(results) == [*job(1, 10, log_id="b2"), end(10, log_id="b2")]
    later.join()


def test_a_new_log_that_continues_the_numbers_of_the_old_one_is_read_once(redis_url: str, redis_client: Any) -> None:
    """One key contains the entries of two logs, and each entry is yielded once."""
    log = [*job(1, 9), *job(10, 19, log_id="b2"), end(19, log_id="b2")]
    commit(redis_client, *log)
    assert list(subscribe(redis_url, "cam1", start="start")) == log


def test_the_subscription_continues_after_the_server_was_killed_and_restarted(own_redis: Callable[..., Any]) -> None:
    server = own_redis(aof="always")
    log = [*job(1, 100), end(100)]
    with server.client() as client:
        commit(client, *log[:60])
    results = subscribe(server.url, "cam1", start="start")
    seen = take(results, 60)
    server.kill()

    def revive() -> None:
        time.sleep(0.7)
        server.start()
        with server.client() as client:
            commit(client, *log[60:])

    later = Background(revive)
    seen += list(results)
    later.join()
    assert seen == log


def test_results_written_again_after_the_server_lost_them_are_not_repeated(own_redis: Callable[..., Any]) -> None:
    server = own_redis(aof="always")
    log = [*job(1, 100), end(100)]
    with server.client() as client:
        commit(client, *log[:40])
        server.kill()
        shutil.copytree(server.folder, server.folder.with_name("earlier"))
        server.start()
    with server.client() as client:
        commit(client, *log[40:70])
    results = subscribe(server.url, "cam1", start="start")
    seen = take(results, 70)
    server.kill()
    shutil.rmtree(server.folder)
    server.folder.with_name("earlier").rename(server.folder)
    server.start()

    def redo() -> None:
        with server.client() as client:
            for message in log[40:]:
                commit(client, message)
                time.sleep(0.03)

    later = Background(redo)
    seen += list(results)
    later.join()
    assert seen == log


def test_a_job_that_ends_at_a_lower_number_after_the_server_lost_writes_ends_the_iteration(
    redis_url: str, redis_client: Any
) -> None:
    commit(redis_client, *job(1, 50))
    results = subscribe(redis_url, "cam1", start="start")
    take(results, 60)
    redis_client.delete(StreamKeys.of("cam1").results)
    commit(redis_client, *job(1, 30), end(30, reason="stopped"))
    assert list(results) == [end(30, reason="stopped")]


def test_after_a_restart_without_data_the_next_job_is_read(own_redis: Callable[..., Any]) -> None:
    server = own_redis()
    with server.client() as client:
        commit(client, *job(1, 20))
    results = subscribe(server.url, "cam1", start="start")
    take(results, 24)
    server.restart()
    new = [*job(1, 5, log_id="b2"), end(5, log_id="b2")]
    with server.client() as client:
        commit(client, *new)
    assert list(results) == new


def test_subscribe_async_yields_the_same_results(redis_url: str, redis_client: Any) -> None:
    log = [*job(1, 200), gap(201, 203), end(203)]
    commit(redis_client, *log[:-1])
    threading.Timer(0.3, lambda: commit(redis_client, log[-1])).start()

    async def collect() -> list[AnyResult]:
        return [result async for result in subscribe_async(redis_url, "cam1", start="start")]

    assert asyncio.run(collect()) == log == list(subscribe(redis_url, "cam1", start="start"))


def test_subscribe_async_continues_after_a_restart(own_redis: Callable[..., Any]) -> None:
    server = own_redis(aof="always")
    log = [*job(1, 50), end(50)]
    with server.client() as client:
        commit(client, *log[:30])

    async def collect() -> list[AnyResult]:
        results = subscribe_async(server.url, "cam1", start="start")
        seen = [await anext(results) for _ in range(30)]
        server.kill()

        def revive() -> None:
            time.sleep(0.5)
            server.start()
            with server.client() as client:
                commit(client, *log[30:])

        later = asyncio.create_task(asyncio.to_thread(revive))
        seen += [result async for result in results]
        await later
        return seen

    assert asyncio.run(collect()) == log


@pytest.fixture
def positions(redis_client: Any) -> Callable[[], int]:
    """Create a job with the required reader `board`. Return a function that reads the position of `board`."""
    state = StreamKeys.of("cam1").state
    redis_client.hset(state, mapping={"log_id": "a1", "sink:board": 0})
    return lambda: int(redis_client.hget(state, "sink:board"))


def test_a_named_reader_stores_its_position(redis_url: str, redis_client: Any, positions: Callable[[], int]) -> None:
    commit(redis_client, *job(1, 200), end(200))
    results = subscribe(redis_url, "cam1", start="start", reader="board")
    take(results, 100)
    assert positions() <= 83, "at most what was read"
    results.close()
    assert positions() == 82, (
        "message 100 is frame 84, which is not acknowledged; 83 counts as read only when 84 is acknowledged"
    )
    list(subscribe(redis_url, "cam1", start=82, reader="board"))
    assert positions() == 200


def test_a_full_server_accepts_a_readers_position(
    own_redis: Callable[..., Any],
) -> None:
    server = own_redis()
    state = StreamKeys.of("cam1").state
    with server.client() as client:
        client.hset(state, mapping={"log_id": "a1", "sink:board": 0})
        commit(client, *job(1, 20), end(20))
        client.config_set("maxmemory", 1)
        list(subscribe(server.url, "cam1", start="start", reader="board"))
        assert int(client.hget(state, "sink:board")) == 20


@pytest.mark.parametrize(
    "fields", [{"log_id": "a1"}, {"log_id": "b2", "sink:board": 0}, {}], ids=["not-asked", "another-log", "no-job"]
)
def test_a_reader_that_is_not_required_writes_nothing(
    redis_url: str, redis_client: Any, fields: dict[str, Any]
) -> None:
    state = StreamKeys.of("cam1").state
    if fields:
        redis_client.hset(state, mapping=fields)
    before = redis_client.hgetall(state)
    commit(redis_client, *job(1, 20), end(20))
    list(subscribe(redis_url, "cam1", start="start", reader="board"))
    assert redis_client.hgetall(state) == before


def test_a_missing_stream_is_an_error_after_wait_s(redis_url: str) -> None:
    begin_s = time.monotonic()
    with pytest.raises(BusError, match=r"no results of stream 'nobody' on Redis at unix://.* after 0\.5 s") as caught:
        list(subscribe(redis_url, "nobody", wait_s=0.5))
    assert 0.4 < time.monotonic() - begin_s < 3
    assert "\n" not in str(caught.value)


def test_a_missing_stream_is_reported_once_with_the_known_streams(
    redis_url: str, redis_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Known streams are those with a job and those with a log."""
    redis_client.hset(StreamKeys.of("yard").state, "log_id", "a1")
    redis_client.mset(
        {f"other:{index}": "" for index in range(6000)}
    )  # so that one call of SCAN does not return all keys
    commit(redis_client, *job(1, 20, stream_id="door"))
    results = subscribe(redis_url, "door", "dor", start="start", wait_s=4.5)
    with pytest.raises(BusError, match="no results of stream 'dor'"):
        list(results)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"waiting for stream dor: no results yet on Redis at {redis_url}; known streams: door, yard"


def test_a_missing_stream_on_an_empty_server_is_reported(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def collect() -> list[AnyResult]:
        return [result async for result in subscribe_async(redis_url, "cam1", "cam2", wait_s=2.5)]

    with pytest.raises(BusError, match="no results of stream"):
        asyncio.run(collect())
    (record,) = caplog.records
    assert record.getMessage().startswith("waiting for stream cam1, cam2: ")
    assert record.getMessage().endswith("; no stream is known there")


def test_a_missing_stream_is_reported_without_the_right_to_scan(
    own_redis: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    server = own_redis()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~ms:*", "+xread", "+xrevrange")
    url = f"unix://reader:pw@{server.url.removeprefix('unix://')}"
    timer = threading.Timer(3, lambda: commit(server.client(), *job(1, 5), end(5)))
    timer.start()
    assert list(subscribe(url, "cam1")) == [*job(1, 5), end(5)]
    timer.join()
    (record,) = caplog.records
    assert record.getMessage().endswith("the known streams cannot be listed without the right to SCAN")


def test_a_stream_that_appears_in_time_is_not_reported(
    redis_url: str, redis_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    timer = threading.Timer(0.5, lambda: commit(redis_client, *job(1, 5), end(5)))
    timer.start()
    assert list(subscribe(redis_url, "cam1")) == [*job(1, 5), end(5)]
    timer.join()
    assert caplog.records == []


def test_an_unreachable_server_is_an_error_after_timeout_s() -> None:
    with pytest.raises(BusError, match=r"no answer from Redis at unix:///nowhere/redis\.sock for 0\.3 s"):
        list(subscribe("unix:///nowhere/redis.sock", "cam1", timeout_s=0.3))


def test_errors_do_not_contain_the_password() -> None:
    with pytest.raises(BusError, match="no answer") as caught:
        list(subscribe("redis://user:secret@127.0.0.1:1/0", "cam1", timeout_s=0.1))
    assert "secret" not in str(caught.value)


def test_wrong_credentials_are_an_error_at_once(own_redis: Callable[..., Any]) -> None:
    server = own_redis()
    with server.client() as client:
        client.config_set("requirepass", "right")
    with pytest.raises(BusError, match="refuses the credentials"):
        list(subscribe(f"unix://:wrong@{server.url.removeprefix('unix://')}", "cam1"))


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (
            msgspec.json.encode(msgspec.to_builtins(frame(1)) | {"schema": 2}),
            "result schema 2, this program reads 1: install",
        ),
        (b'{"schema": 3, "type": "hologram"}', "result schema 3, this program reads 1: install"),
        (b'{"type": "frame"}', "entry 1-0 of .*results on .* is not a result"),
        (b"\xff", "entry 1-0 of .* is not a result"),
    ],
    ids=["newer", "newer-and-unknown", "incomplete", "garbage"],
)
def test_an_unreadable_entry_is_a_clear_error(redis_url: str, redis_client: Any, payload: bytes, text: str) -> None:
    redis_client.xadd(StreamKeys.of("cam1").results, {"j": payload}, id="1-0")
    with pytest.raises(BusError, match=text):
        list(subscribe(redis_url, "cam1", start="start"))


@pytest.mark.parametrize("start", ["later", "-5", "1-2-3", -1, ""], ids=repr)
def test_an_invalid_start_is_refused_before_reading(start: int | str) -> None:
    with pytest.raises(UsageError, match="expected now, start, a frame number"):
        subscribe("redis://localhost", "cam1", start=start)


def test_no_stream_is_refused() -> None:
    with pytest.raises(UsageError, match="give at least one"):
        subscribe("redis://localhost")
