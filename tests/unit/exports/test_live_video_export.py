"""The writer of a camera's annotated video, fed with stored pictures and results that do not always match."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support import result_samples
from support.video_files import counting_frames, write_video

from pipeline.contract.results import FrameResult
from pipeline.errors import OutputError
from pipeline.exports import live_video
from pipeline.exports.live_video import LiveVideoWriter
from pipeline.segments import SegmentReader, SegmentWriter
from pipeline.segments.format import finished_segments
from pipeline.source import open_source

WIDTH, HEIGHT, FPS, GOP = 96, 64, 25, 10
MARK = (40.0, 20.0, 80.0, 50.0)
S = 1_000_000_000


def keep(folder: Path, *epochs: Sequence[Sequence[float]]) -> None:
    """Store epochs, each with one or more sequences of times. Picture n over all epochs has the luma 20 + 4 n."""
    writer = SegmentWriter(folder, segment_s=0.0)
    first = 0
    for epoch, sequences in enumerate(epochs, start=1):
        for times_s in sequences:
            frames = counting_frames(first + len(times_s), WIDTH, HEIGHT)[first:]
            first += len(times_s)
            path = write_video(
                folder / f"{first}.mkv",
                frames,
                pts=[round(time_s * 1000) for time_s in times_s],
                time_base=Fraction(1, 1000),
                options={"g": str(GOP), "qp": "10"},
            )
            with open_source(str(path), "live", on_packet=writer.take) as reader:
                writer.begin(epoch)
                assert [picture.pts_s for picture in reader] == pytest.approx(times_s)
            path.unlink()
        writer.end()


def result(index: int, pts_s: float, epoch: int = 1, **changes: Any) -> FrameResult:
    fields: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "instances": [], "arrived_at_ns": int(pts_s * S)}
    return result_samples.frame(index, pts_s=round(pts_s, 3), stream_epoch=epoch, **(fields | changes))


def annotate(folder: Path, results: Sequence[FrameResult], name: str = "cam1.mp4") -> None:
    with LiveVideoWriter(folder / name, SegmentReader(folder)) as writer:
        for message in results:
            writer.write(message)


def shown(folder: Path) -> list[tuple[float, int]]:
    """Time of each picture of the video, and its index among the stored pictures."""
    with av.open(str(folder / "cam1.mp4")) as container:
        return [
            (float(frame.time or 0.0), round((frame.to_ndarray()[HEIGHT - 12 : HEIGHT - 2, 2:12].mean() - 20) / 4))
            for frame in container.decode(video=0)
        ]


def steps(num: int, first_s: float = 0.0) -> list[float]:
    return [first_s + k / FPS for k in range(num)]


def test_pictures_without_a_result_are_left_out_and_the_others_keep_their_time(tmp_path: Path) -> None:
    times_s = steps(40, first_s=3.0)
    keep(tmp_path, [times_s])
    marked = result_samples.instance(box_xyxy=MARK, mask=None)
    taken = [1, 2, 5, 11, 12, 30, 39]
    annotate(tmp_path, [result(n, times_s[n], instances=[marked] if n == 11 else []) for n in taken])
    assert [number for _, number in shown(tmp_path)] == taken
    assert [time_s for time_s, _ in shown(tmp_path)] == pytest.approx([(n - 1) / FPS for n in taken], abs=1e-3)
    with av.open(str(tmp_path / "cam1.mp4")) as container:
        colourful = [
            int(np.ptp(frame.to_ndarray(format="bgr24")[20:50, 40:80].astype(int), axis=2).max()) > 40
            for frame in container.decode(video=0)
        ]
    assert colourful == [n == 11 for n in taken]
    assert finished_segments(tmp_path) == []


def test_results_wait_for_their_segment(tmp_path: Path) -> None:
    times_s = steps(2 * GOP)
    with LiveVideoWriter(tmp_path / "cam1.mp4", SegmentReader(tmp_path)) as writer:
        for n in range(GOP):
            writer.write(result(n, times_s[n]))
        keep(tmp_path, [times_s])
        writer.write(result(GOP, times_s[GOP]))
        assert finished_segments(tmp_path) == []
    assert [number for _, number in shown(tmp_path)] == list(range(GOP + 1))
    assert not (tmp_path / "cam1.mp4.part").exists()


def test_between_epochs_the_video_follows_the_time_of_arrival(tmp_path: Path) -> None:
    first, again, second = steps(10, 100.0), steps(10, 7.0), steps(10, 50.0)
    keep(tmp_path, [first], [again], [second])
    arrived_s = [*steps(10), *steps(10, 2.0), *steps(10, 60.0)]
    annotate(
        tmp_path,
        [
            result(n, pts_s, epoch=1 + n // 10, arrived_at_ns=int(arrived_s[n] * S))
            for n, pts_s in enumerate([*first, *again, *second])
            if n != 9
        ],
    )
    assert [number for _, number in shown(tmp_path)] == [n for n in range(30) if n != 9]
    assert [time_s for time_s, _ in shown(tmp_path)] == pytest.approx(
        [time_s for n, time_s in enumerate(arrived_s) if n != 9], abs=1e-3
    )


def test_results_without_a_picture_are_counted_in_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times_s = steps(4 * GOP)
    keep(tmp_path, [times_s])
    finished_segments(tmp_path)[1][2].unlink()
    with caplog.at_level(logging.WARNING):
        annotate(tmp_path, [result(n, time_s) for n, time_s in enumerate([*times_s, 9.0, 9.04])])
    assert [number for _, number in shown(tmp_path)] == [*range(GOP), *range(2 * GOP, 4 * GOP)]
    [record] = caplog.records
    assert f"lacks {GOP + 2} frames" in record.getMessage()


def test_the_oldest_waiting_result_is_left_out_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_video, "MAX_WAITING", 8)
    times_s = steps(2 * GOP)
    with LiveVideoWriter(tmp_path / "cam1.mp4", SegmentReader(tmp_path)) as writer:
        for n in range(GOP):
            writer.write(result(n, times_s[n]))
        keep(tmp_path, [times_s])
    assert [number for _, number in shown(tmp_path)] == list(range(2, GOP))
    assert "lacks 2 frames" in caplog.text


def test_a_picture_of_another_size_than_its_result_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(tmp_path, [steps(GOP)])
    annotate(tmp_path, [result(n, n / FPS, width=WIDTH + 2 * (n == 3)) for n in range(GOP)])
    assert [number for _, number in shown(tmp_path)] == [n for n in range(GOP) if n != 3]
    assert "lacks 1 frames" in caplog.text


def test_without_a_picture_there_is_no_video(tmp_path: Path) -> None:
    annotate(tmp_path, [])
    annotate(tmp_path, [result(1, 0.0)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reader.lock"]


def test_a_file_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    keep(tmp_path, [steps(GOP)])
    results = [result(n, n / FPS) for n in range(GOP)]
    with pytest.raises(OutputError, match="the folder is gone"):
        annotate(tmp_path, results, name="gone/cam1.mp4")
