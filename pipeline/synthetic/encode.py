"""Encodes scenes as video files."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from pipeline.errors import OutputError
from pipeline.synthetic.scene import Scene, SceneConfig

# ITU-T H.273: the code of BT.709 for primaries, transfer characteristics and matrix.
_BT709 = 1


def write_video(
    scene: Scene,
    path: str | os.PathLike[str],
    *,
    codec: str = "libx264",
    crf: int = 18,
    preset: str = "veryfast",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode the scene into an MP4 file: yuv420p, BT.709, limited range, with tags that say so.

    The file is written under a temporary name and renamed when it is complete. `progress` is called with (number of
    encoded frames, number of frames in total) after each frame. Raises OutputError if the file cannot be written, and
    ValueError if `codec` is not a video codec.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        _encode(scene, partial, codec, {"crf": str(crf), "preset": preset}, progress)
        partial.replace(target)
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write the video {target}: {reason}; is the folder there, writable and not full?"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def demo_video(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Scene:
    """Write the default scene as a video. Returns the scene, which gives the ground truth."""
    scene = Scene(SceneConfig())
    write_video(scene, path, progress=progress)
    return scene


def _encode(
    scene: Scene, path: Path, codec: str, options: dict[str, str], progress: Callable[[int, int], None] | None
) -> None:
    config = scene.config
    rate = Fraction(config.fps).limit_denominator(1001 * 1000)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        if not isinstance(stream, av.VideoStream):
            raise ValueError(f"codec must be a video encoder, got {codec!r}")
        stream.width, stream.height, stream.pix_fmt = config.width, config.height, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        for done, frame in enumerate(scene, start=1):
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                # Without accurate rounding the picture is about one grey level darker.
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            )
            picture.pts, picture.time_base = frame.index, 1 / rate
            container.mux(stream.encode(picture))
            if progress is not None:
                progress(done, config.num_frames)
        container.mux(stream.encode())
