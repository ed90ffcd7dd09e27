"""The synthetic street: reproducible pixels, ground truth that matches the picture, and the encoded video."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from pipeline.errors import OutputError
from pipeline.synthetic import Scene, SceneConfig, SceneFrame, SceneObject, ground_truth, write_video

CONFIG = SceneConfig(width=320, height=180, fps=5.0, num_frames=50)


def is_clearly_visible(item: SceneObject, visibility: float = 0.95) -> bool:
    """Whether the object has at least this visibility and does not touch the edge of the picture."""
    x1, y1, x2, y2 = item.box_xyxy
    return item.visibility > visibility and x1 > 0 and y1 > 0 and x2 < 320 and y2 < 180


def digest(frame: SceneFrame) -> str:
    """SHA-256 of a frame's pixels, instance map and objects."""
    return hashlib.sha256(
        frame.image.tobytes() + frame.instance_map.tobytes() + repr(frame.objects).encode()
    ).hexdigest()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(CONFIG)


@pytest.fixture(scope="module")
def frames(scene: Scene) -> list[SceneFrame]:
    return list(scene)


@pytest.fixture(scope="module")
def video(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "street.mp4"
    write_video(scene, path)
    return path


def test_same_parameters_give_the_same_pixels_in_any_order(frames: list[SceneFrame]) -> None:
    again = Scene(CONFIG)
    for index in (37, 3, 49, 0):
        assert digest(again.render(index)) == digest(frames[index])


def test_another_seed_gives_another_scene(frames: list[SceneFrame]) -> None:
    other = Scene(SceneConfig(width=320, height=180, fps=5.0, num_frames=50, seed=CONFIG.seed + 1))
    assert digest(other.render(0)) != digest(frames[0])


def test_frames_have_the_documented_shape_type_and_time(frames: list[SceneFrame]) -> None:
    assert len(frames) == 50
    for index, frame in enumerate(frames):
        assert frame.image.shape == (180, 320, 3)
        assert frame.image.dtype == np.uint8
        assert frame.instance_map.shape == (180, 320)
        assert frame.instance_map.dtype == np.uint16
        assert frame.index == index
        assert frame.pts_s == pytest.approx(index / 5.0)


def test_objects_agree_with_the_instance_map(frames: list[SceneFrame]) -> None:
    for frame in frames:
        assert [o.object_id for o in frame.objects] == [int(i) for i in np.unique(frame.instance_map) if i]
        for item in frame.objects:
            mask = frame.mask(item.object_id)
            rows, columns = np.nonzero(mask)
            assert item.box_xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.area_px == len(rows)
            assert 0.0 < item.visibility <= 1.0
            assert {1: "person", 2: "bicycle", 3: "car"}[item.class_id] == item.label


def test_ground_truth_equals_the_objects_of_the_rendered_frames(scene: Scene, frames: list[SceneFrame]) -> None:
    assert ground_truth(scene) == [frame.objects for frame in frames]


def test_an_object_keeps_its_class(frames: list[SceneFrame]) -> None:
    classes: dict[int, set[int]] = {}
    for frame in frames:
        for item in frame.objects:
            classes.setdefault(item.object_id, set()).add(item.class_id)
    assert all(len(found) == 1 for found in classes.values())
    assert {1, 2, 3} == set().union(*classes.values())
    assert min(classes) >= 1


def test_an_object_moves_at_most_a_few_pixels_between_frames() -> None:
    scene = Scene(SceneConfig(width=320, height=180, num_frames=12, num_people=8))
    truth = ground_truth(scene)
    compared = 0
    for before, after in itertools.pairwise(truth):
        boxes = {o.object_id: o for o in before if is_clearly_visible(o)}
        for item in after:
            if item.object_id in boxes and is_clearly_visible(item):
                compared += 1
                old = boxes[item.object_id].box_xyxy
                # A car in the near lane makes 5.6 m/s * 286 px / 10.7 m / 25 fps = 6 pixels a frame.
                assert np.abs(np.subtract(item.box_xyxy, old)).max() <= 9
    assert compared > 20


def test_some_objects_are_occluded(frames: list[SceneFrame]) -> None:
    shares = [o.visibility for frame in frames for o in frame.objects if o.area_px > 30]
    assert min(shares) < 0.6
    assert max(shares) == 1.0


def test_objects_enter_and_leave_the_street(frames: list[SceneFrame]) -> None:
    seen = [{o.object_id for o in frame.objects} for frame in frames]
    assert set.union(*seen[25:]) - set.union(*seen[:10])
    assert set.union(*seen[:10]) - set.union(*seen[40:])


def test_objects_change_in_size(frames: list[SceneFrame]) -> None:
    heights: dict[int, list[float]] = {}
    for frame in frames:
        for o in frame.objects:
            if is_clearly_visible(o):
                heights.setdefault(o.object_id, []).append(o.box_xyxy[3] - o.box_xyxy[1])
    assert max(max(h) / min(h) for h in heights.values()) > 1.5


def test_a_rider_sits_on_the_bicycle() -> None:
    scene = Scene(SceneConfig(width=320, height=180, fps=2.0, num_frames=20, num_people=0, num_cars=0))
    met = 0
    for frame in scene:
        objects = {o.object_id: o for o in frame.objects}
        for bicycle in (o for o in frame.objects if o.class_id == 2 and is_clearly_visible(o, 0.5)):
            rider = objects.get(bicycle.object_id + 1)
            assert rider is not None
            assert rider.class_id == 1
            assert rider.box_xyxy[1] < bicycle.box_xyxy[1]
            met += 1
    assert met


def test_the_mask_covers_the_pixels_that_an_object_changes() -> None:
    """Pixels of a mask differ from the empty street; the sky, far from all masks and shadows, does not."""
    full = Scene(SceneConfig(width=320, height=180, num_frames=1, noise=0.0))
    empty = Scene(SceneConfig(width=320, height=180, num_frames=1, noise=0.0, num_people=0, num_cars=0, num_bicycles=0))
    frame, street = full.render(0), empty.render(0)
    difference = np.abs(frame.image.astype(int) - street.image).max(axis=2)
    for item in frame.objects:
        if item.class_id != 2 and item.area_px > 50:
            assert np.mean(difference[frame.mask(item.object_id)] > 4) > 0.85
    changed_sky = difference[: 180 // 4]
    assert changed_sky.max() == 0


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (90, 160), (640, 128)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_scenes_of_any_even_size_can_be_rendered(size: tuple[int, int]) -> None:
    frame = Scene(SceneConfig(width=size[0], height=size[1], num_frames=1)).render(0)
    assert frame.image.shape == (size[1], size[0], 3)


def test_a_scene_without_objects_is_an_empty_street() -> None:
    scene = Scene(SceneConfig(width=64, height=48, num_frames=2, num_people=0, num_cars=0, num_bicycles=0))
    for frame in scene:
        assert frame.objects == ()
        assert not frame.instance_map.any()
        assert frame.image.std() > 5


def test_noise_differs_between_frames_and_is_absent_at_level_0() -> None:
    still = {"width": 160, "height": 90, "num_frames": 2, "num_people": 0, "num_cars": 0, "num_bicycles": 0}
    first, second = (f.image.astype(int) for f in Scene(SceneConfig(**still, noise=3.0)))
    assert (first - second).std() / np.sqrt(2) == pytest.approx(3.0, rel=0.25)
    quiet = [f.image for f in Scene(SceneConfig(**still, noise=0.0))]
    assert np.array_equal(*quiet)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 321, "width must be even and from 16 to 8192 pixels, got 321"),
        ("height", 0, "height must be even and from 16 to 8192 pixels, got 0"),
        ("fps", 0.0, "fps must be above 0 and at most 1000, got 0.0"),
        ("num_frames", 0, "num_frames must be at least 1, got 0"),
        ("num_cars", -1, "num_cars must not be negative, got -1"),
        ("noise", float("nan"), "noise must be from 0 to 50 grey levels, got nan"),
    ],
)
def test_a_parameter_out_of_range_raises_value_error(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SceneConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [-1, 50])
def test_an_index_outside_the_scene_raises_index_error(scene: Scene, index: int) -> None:
    with pytest.raises(IndexError, match=f"frame index must be from 0 to 49, got {index}"):
        scene.render(index)


def test_the_video_has_the_right_codec_size_rate_and_colour_tags(video: Path) -> None:
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height, stream.average_rate) == (320, 180, 5)
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        assert context.color_range == ColorRange.MPEG


def test_the_decoded_video_equals_the_scene(video: Path, frames: list[SceneFrame]) -> None:
    """Decode with the formula of BT.709, so that a wrong matrix or range fails the test."""
    with av.open(str(video)) as container:
        decoded = list(container.decode(video=0))
    assert len(decoded) == len(frames)
    for picture, frame in zip(decoded, frames, strict=True):
        assert float(picture.pts * picture.time_base) == pytest.approx(frame.pts_s)
        image = bt709_limited_to_rgb(picture.to_ndarray())
        error = image - frame.image
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 30.0
        assert np.abs(error.mean(axis=(0, 1))).max() < 2.0


def bt709_limited_to_rgb(planes: np.ndarray) -> np.ndarray:
    """Convert I420 (H * 3 // 2, W) uint8 to RGB (H, W, 3) float64 by ITU-R BT.709-6, items 3.2 to 3.4, with 8 bits."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    chroma = planes[height:].reshape(2, height // 2, width // 2).repeat(2, 1).repeat(2, 2)
    y = (planes[:height] - 16.0) / 219
    cb, cr = (chroma - 128.0) / 224
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    return np.clip(np.stack([red, green, blue], -1), 0, 1) * 255


def test_progress_is_called_after_each_frame(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    scene = Scene(SceneConfig(width=64, height=48, num_frames=4))
    write_video(scene, tmp_path / "street.mp4", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [p.name for p in tmp_path.iterdir()] == ["street.mp4"]


def test_an_interrupted_video_leaves_no_file(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(Scene(SceneConfig(width=64, height=48, num_frames=4)), tmp_path / "street.mp4", progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_raises_output_error(tmp_path: Path) -> None:
    scene = Scene(SceneConfig(width=64, height=48, num_frames=1))
    with pytest.raises(OutputError, match=r"cannot write the video .*street\.mp4: .*; is the folder there"):
        write_video(scene, tmp_path / "nowhere" / "street.mp4")
