"""A set of damaged and unusual videos outside the repository, and the number of pictures that they contain."""

from __future__ import annotations

from pathlib import Path

import av

NUM_FILES = 43

WITHOUT_PICTURES = {
    "mp4parse_clusterfuzz.mp4",
    "mp4parse_invalid_userdata.mp4",
    "small_AudioVideoInterleave.avi",
    "small_Mpeg4.mp4",
}


def count_undamaged_frames(path: Path) -> int:
    """Count the undamaged pictures of the stream that FFmpeg considers the best, up to the first undecodable packet."""
    count = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                return 0
            stream.thread_count = 1  # with more threads FFmpeg does not detect all damage
            for frame in container.decode(stream):
                count += not frame.is_corrupt
    except av.error.InvalidDataError:
        pass
    return count
