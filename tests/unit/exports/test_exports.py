"""The JSONL file and the summary: their content on disk after a crash, a full disk and a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.result_samples import end, epoch, event, frame, gap

from pipeline.contract.results import AnyResult, encode_result
from pipeline.errors import OutputError
from pipeline.exports.jsonl import JsonlTail, JsonlWriter, read_jsonl
from pipeline.exports.summary import Summary, write_summary


def write(path: Path, *messages: AnyResult) -> None:
    with JsonlWriter(path) as writer:
        for message in messages:
            writer.write(message, encode_result(message))


@pytest.mark.parametrize(
    ("messages", "tail"),
    [
        ([], None),
        ([frame(1)], JsonlTail((1, 0), "a1", False)),
        ([frame(1), frame(2)], JsonlTail((2, 0), "a1", False)),
        ([frame(1), frame(2), event(2, "track_start"), event(2, "track_start", 8)], JsonlTail((2, 2), "a1", False)),
        ([frame(1), gap(2, 5)], JsonlTail((5, 0), "a1", False)),
        ([frame(1), end(1)], JsonlTail((1, 1), "a1", True)),
        ([end(0)], JsonlTail((0, 1), "a1", True)),
        ([epoch(0), end(0)], JsonlTail((0, 2), "a1", True)),
    ],
    ids=["empty", "one", "two", "followers", "gap", "end", "end-without-frames", "epoch-then-end"],
)
def test_the_tail_of_an_existing_file(tmp_path: Path, messages: list[AnyResult], tail: JsonlTail | None) -> None:
    path = tmp_path / "cam1.jsonl"
    write(path, *messages)
    with JsonlWriter(path) as writer:
        assert writer.tail == tail
    assert list(read_jsonl(path)) == messages


def test_an_incomplete_last_line_is_truncated_and_the_file_continues(tmp_path: Path) -> None:
    path = tmp_path / "cam1.jsonl"
    write(path, frame(1), frame(2), event(2, "track_start"))
    whole = path.read_bytes()
    start_of_last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(start_of_last, len(whole)):
        path.write_bytes(whole[:size])
        with JsonlWriter(path) as writer:
            assert writer.tail == JsonlTail((2, 0), "a1", False), f"cut at {size}"
            writer.write(event(2, "track_start"), encode_result(event(2, "track_start")))
        assert path.read_bytes() == whole


def test_zero_bytes_after_a_power_cut_are_truncated(tmp_path: Path) -> None:
    path = tmp_path / "cam1.jsonl"
    write(path, frame(1))
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(5000))
    JsonlWriter(path).finish()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content", [b"id,x,y\n1,2,3\n", b"one line without end", b'{"type":"frame"}\n'], ids=["csv", "text", "not-ours"]
)
def test_a_file_of_another_program_is_refused_and_unchanged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cam1.jsonl"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="something other than result messages"):
        JsonlWriter(path)
    assert path.read_bytes() == content


def test_read_jsonl_skips_an_incomplete_last_line(tmp_path: Path) -> None:
    path = tmp_path / "cam1.jsonl"
    write(path, frame(1), frame(2))
    path.write_bytes(path.read_bytes()[:-5])
    assert [message.frame_seq for message in read_jsonl(path)] == [1]


def test_a_full_disk_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "cam1.jsonl"
    path.symlink_to("/dev/full")
    writer = JsonlWriter(path)
    writer.write(frame(1), encode_result(frame(1)))
    with pytest.raises(OutputError, match=r"cam1\.jsonl: no space left on device; free some space") as caught:
        writer.flush()
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError):
        writer.finish()


def test_a_missing_folder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such file or directory"):
        JsonlWriter(tmp_path / "gone" / "cam1.jsonl")


def test_begin_continues_a_file_of_the_same_log(tmp_path: Path) -> None:
    path = tmp_path / "cam1.jsonl"
    write(path, frame(1), frame(2), event(2, "track_start"))
    with JsonlWriter(path) as writer:
        assert writer.begin("a1") == (2, 1)
        stored = list(writer.read_back())
    assert [position for position, _, _ in stored] == [(1, 0), (2, 0), (2, 1)]
    assert [message for _, message, _ in stored] == [frame(1), frame(2), event(2, "track_start")]
    assert b"".join(payload + b"\n" for _, _, payload in stored) == path.read_bytes()


def test_positions_of_messages_before_the_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "cam1.jsonl"
    write(path, epoch(0), end(0))
    with JsonlWriter(path) as writer:
        assert writer.begin("a1") == (0, 2)
        assert [position for position, _, _ in writer.read_back()] == [(0, 1), (0, 2)]


def test_a_file_of_another_log_is_kept_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "cam1.jsonl"
    write(path, frame(1), frame(2))
    before = path.read_bytes()
    with JsonlWriter(path) as writer, pytest.raises(OutputError, match=r"cam1\.jsonl holds .*--overwrite.*--output"):
        writer.begin("b2")
    assert path.read_bytes() == before
    with JsonlWriter(path, overwrite=True) as writer:
        assert writer.begin("b2") is None
        writer.write(frame(1), encode_result(frame(1)))
    assert list(read_jsonl(path)) == [frame(1)]


def test_the_summary_counts_messages(tmp_path: Path) -> None:
    summary = Summary()
    messages = [
        frame(1),
        event(1, "track_start"),
        frame(2),
        gap(3, 4, "overflow"),
        gap(5, 5, "stale"),
        frame(6, dropped_before=3),
        event(6, "track_start", 8, label="car"),
        gap(7, 7, "stale"),
        event(7, "track_end"),
        end(7, num_corrupt=2, num_tracks=2, reason="stopped", detail="asked for"),
    ]
    for message in messages:
        summary.add(message)
    path = tmp_path / "summary.json"
    write_summary(path, summary.streams)
    stream = json.loads(path.read_text())["streams"]["cam1"]
    assert stream["num_frames"] == 3
    assert stream["num_instances"] == 3
    assert stream["gaps"] == {"overflow": 2, "stale": 2}
    assert (stream["num_corrupt"], stream["num_tracks"]) == (2, 2)
    assert stream["tracks"] == {"person": 1, "car": 1}
    assert (stream["first_pts_s"], stream["last_pts_s"], stream["last_seq"]) == (0.0, 0.2, 7)
    assert (stream["reason"], stream["detail"]) == ("stopped", "asked for")
    assert stream["media_fps"] == 25.0
    assert stream["fps"] == 20.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_message_of_another_log_resets_the_summary() -> None:
    summary = Summary()
    summary.add(frame(1))
    summary.add(frame(2))
    summary.add(frame(1, log_id="b2"))
    assert (summary.streams["cam1"].num_frames, summary.streams["cam1"].log_id) == (1, "b2")


def test_media_time_that_jumps_between_epochs_does_not_change_the_rate() -> None:
    summary = Summary()
    for seq in range(1, 11):
        summary.add(frame(seq))
    for seq in range(11, 21):
        summary.add(frame(seq, stream_epoch=2, pts_s=1000 + seq / 25))
    assert summary.streams["cam1"].media_fps == 25.0
    assert summary.streams["cam1"].num_epochs == 2


def test_a_full_disk_keeps_the_old_summary_and_leaves_no_part_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    (tmp_path / "summary.json.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="no space left"):
        write_summary(path, {})
    assert path.read_text() == "old"
    assert not (tmp_path / "summary.json.part").is_symlink()
