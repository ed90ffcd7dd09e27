"""Drawing of results: colours, masks, boxes, skeletons, labels, objects at the edges, and its speed."""

from __future__ import annotations

import time

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from support import result_samples
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights

from ops.masks import encode_rle
from pipeline.contract.arrays import NUM_KEYPOINTS
from pipeline.contract.results import FrameResult, Instance, Mask
from pipeline.exports.labels import TEXT_DARK, LabelPainter
from pipeline.exports.render import LIMBS, OUTLINE, UNCONFIRMED, draw_result, track_colour


def ellipse(hw: tuple[int, int], box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    x1, y1, x2, y2 = box
    inside: NDArray[np.bool_] = ((x - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + (
        (y - (y1 + y2) / 2) / (y2 - y1) * 2
    ) ** 2 <= 1
    return inside


def instance(
    hw: tuple[int, int], box: tuple[float, float, float, float], track_id: int | None = 7, *, with_mask: bool = True
) -> Instance:
    mask = Mask(size=hw, counts=encode_rle(ellipse(hw, box)).decode()) if with_mask else None
    return result_samples.instance(track_id, box_xyxy=box, mask=mask)


def result(hw: tuple[int, int], *instances: Instance) -> FrameResult:
    return result_samples.frame(1, width=hw[1], height=hw[0], instances=list(instances))


def drawn(hw: tuple[int, int], *instances: Instance, background: int = 90) -> NDArray[np.uint8]:
    picture = np.full((*hw, 3), background, np.uint8)
    draw_result(picture, result(hw, *instances))
    return picture


def test_the_colour_is_blended_inside_the_mask_and_the_rest_is_unchanged() -> None:
    hw, box = (720, 1280), (400.0, 200.0, 600.0, 500.0)
    picture = drawn(hw, instance(hw, box))
    expected = 90 * 0.58 + np.array(track_colour(7)) * 0.42
    assert np.abs(picture[350, 500] - expected).max() <= 1
    changed = (picture != 90).any(axis=2)
    assert changed[200:500, 400:600].any()
    changed[198:502, 398:602] = False  # outlines are two pixels wide and their edges soft
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 160, "a label above the box"
    assert rows.max() < 200
    assert columns.min() >= 400
    assert columns.max() < 600
    corner = picture[215:240, 402:415]
    assert (corner == 90).all(), "inside the box, outside the mask"


def test_a_hole_in_the_mask_is_not_coloured() -> None:
    hw, box = (720, 1280), (400.0, 200.0, 600.0, 500.0)
    ring = ellipse(hw, box) & ~ellipse(hw, (460.0, 300.0, 540.0, 400.0))
    holed = result_samples.instance(box_xyxy=box, mask=Mask(size=hw, counts=encode_rle(ring).decode()))
    picture = drawn(hw, holed)
    assert (picture[350, 500] == 90).all()
    assert (picture[350, 430] != 90).any()


def test_instances_without_mask_get_a_box_and_a_label() -> None:
    hw = (720, 1280)
    picture = drawn(hw, instance(hw, (400.0, 200.0, 600.0, 500.0), with_mask=False))
    assert tuple(picture[350, 400]) == track_colour(7)
    assert (picture[350, 500] == 90).all()


def test_a_box_without_mask_and_skeleton_has_a_thicker_line() -> None:
    hw, box = (720, 1280), (400.0, 200.0, 600.0, 500.0)
    alone = drawn(hw, instance(hw, box, with_mask=False))
    accompanied = drawn(hw, person(box, {}))
    num_alone, num_accompanied = (
        (picture[300:400, 390:410] != 90).any(axis=2).sum(axis=1) for picture in (alone, accompanied)
    )
    assert (num_accompanied == 1).all()
    assert (num_alone > num_accompanied).all()


JOINTS = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"]


def person(box: tuple[float, float, float, float], seen: dict[str, tuple[float, float]]) -> Instance:
    """A person with these visible joints; the others are in the middle of the box and not visible."""
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    keypoints = [(*seen.get(joint, middle), 3.0 if joint in seen else 0.0) for joint in JOINTS]
    return result_samples.instance(box_xyxy=box, mask=None, keypoints=keypoints)


def test_limbs_connect_adjacent_joints() -> None:
    assert len(JOINTS) == NUM_KEYPOINTS
    arms_and_legs = [("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")]
    sides = [*arms_and_legs, ("shoulder", "hip"), ("ear", "shoulder"), ("eye", "ear")]
    expected = {frozenset((f"{side}_{a}", f"{side}_{b}")) for a, b in sides for side in ("left", "right")}
    expected |= {frozenset((f"left_{joint}", f"right_{joint}")) for joint in ("eye", "shoulder", "hip")}
    expected |= {frozenset(("nose", f"{side}_eye")) for side in ("left", "right")}
    assert {frozenset((JOINTS[a], JOINTS[b])) for a, b in LIMBS} == expected
    assert len(LIMBS) == len(expected)


def test_visible_joints_are_drawn_with_the_limbs_between_them() -> None:
    hw, box = (720, 1280), (400.0, 200.0, 700.0, 600.0)
    seen = {
        "left_hip": (450.5, 300.5),
        "left_knee": (450.5, 400.5),
        "nose": (600.5, 250.5),
        "right_hip": (650.5, 300.5),
    }
    picture = drawn(hw, person(box, seen))
    colour = track_colour(7)
    for x, y in seen.values():
        assert tuple(picture[int(y), int(x)]) == colour
    assert tuple(picture[350, 450]) == colour, "thigh"
    assert tuple(picture[300, 550]) == colour, "between the hips"
    picture[297 - 4 : 304 + 4, 440:661] = 90
    picture[290:411, 440:461] = 90
    picture[240:261, 590:611] = 90
    assert (picture[210:590, 410:690] == 90).all(), "no other joint, and no limb to one"


def test_a_joint_is_centred_on_its_coordinates() -> None:
    hw, box = (720, 1280), (400.0, 200.0, 700.0, 600.0)
    around = slice(400, 421), slice(490, 511)
    for x, y in [(500.5, 410.5), (501.0, 411.0)]:
        marked = (drawn(hw, person(box, {"nose": (x, y)}))[around].astype(int) - 90).sum(axis=2)
        rows, columns = np.mgrid[400:421, 490:511] + 0.5
        weight = np.abs(marked)
        centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        assert centre == pytest.approx([x, y], abs=0.1)


def test_limbs_have_soft_edges_and_an_outline() -> None:
    hw, box = (720, 1280), (400.0, 200.0, 700.0, 600.0)
    seen = {"left_hip": (430.0, 300.0), "left_knee": (470.0, 420.0)}
    across = drawn(hw, person(box, seen))[360, 430:470].astype(int)
    inside = (across == track_colour(7)).all(axis=1)
    assert 2 <= inside.sum() <= 5
    others = {tuple(pixel) for pixel in across[~inside]}
    assert min(sum(pixel) for pixel in others) < 3 * 90 / 2, "far darker than the picture"
    assert len(others) >= 5, "steps between picture, outline and limb"


@pytest.mark.parametrize("background", [0, 255])
def test_a_skeleton_is_visible_on_any_background(background: int) -> None:
    hw, box = (720, 1280), (400.0, 200.0, 700.0, 600.0)
    seen = {"left_hip": (430.0, 300.0), "left_knee": (470.0, 420.0)}
    across = drawn(hw, person(box, seen), background=background)[360, 440:460].astype(int)
    assert np.abs(across - background).sum(axis=1).max() > 150
    if background == 255:
        assert (np.abs(across - np.array(OUTLINE)).max(axis=1) < 60).any()


def test_a_small_person_has_thin_limbs() -> None:
    hw = (720, 1280)

    def limb_px(height: float) -> int:
        box = (600.0, 100.0, 600.0 + height / 3, 100.0 + height)
        seen = {"left_hip": (600 + height / 6, 100 + height / 2), "left_knee": (600 + height / 6, 100 + height * 0.9)}
        picture = drawn(hw, person(box, seen))
        return int((picture[int(100 + height * 0.7), 605 : int(595 + height / 3)] != 90).any(axis=1).sum())

    assert limb_px(60) < limb_px(150) < limb_px(400)


@pytest.mark.parametrize("place", [(-50.0, -50.0), (1e12, -1e12), (1279.9, 719.9)], ids=str)
def test_joints_outside_the_picture_are_clipped(place: tuple[float, float]) -> None:
    hw = (720, 1280)
    picture = drawn(hw, person((0.0, 0.0, 300.0, 300.0), {"left_hip": (150.5, 150.5), "left_knee": place}))
    assert tuple(picture[150, 150]) == track_colour(7)


def test_a_picture_without_instances_is_unchanged() -> None:
    assert (drawn((48, 64)) == 90).all()


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 30.0, 30.0),
        (1250.0, 0.0, 1280.0, 30.0),
        (0.0, 690.0, 30.0, 720.0),
        (1250.0, 690.0, 1280.0, 720.0),
        (0.0, 0.0, 1280.0, 720.0),
        (-40.0, -40.0, 20.0, 20.0),
        (1270.0, 700.0, 1400.0, 900.0),
        (500.0, 300.0, 500.4, 300.4),
    ],
    ids=[
        "top-left",
        "top-right",
        "bottom-left",
        "bottom-right",
        "whole",
        "beyond-top-left",
        "beyond-bottom-right",
        "speck",
    ],
)
def test_the_whole_label_is_in_the_picture_wherever_the_box_is(box: tuple[float, float, float, float]) -> None:
    hw = (720, 1280)
    # a box of the same width in the middle of the picture: its label has the same text
    free = drawn(hw, instance(hw, (300.0, 300.0, 300.0 + min(box[2] - box[0], 600.0), 340.0), with_mask=False))
    picture = drawn(hw, instance(hw, box, with_mask=False))

    def num_text_pixels(canvas: NDArray[np.uint8]) -> int:
        return int((canvas == TEXT_DARK).all(axis=2).sum())

    assert num_text_pixels(free) > 50
    assert num_text_pixels(picture) == num_text_pixels(free)


@pytest.mark.parametrize("hw", [(1, 1), (2, 2), (5, 200), (200, 5), (30, 40), (97, 63)], ids=str)
def test_in_pictures_too_small_for_a_label_the_rest_is_drawn(hw: tuple[int, int]) -> None:
    picture = drawn(hw, instance(hw, (0.0, 0.0, float(hw[1]), float(hw[0]))))
    assert (picture != 90).any()


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    hw = (720, 1280)
    boxes = [(400.0 + 25 * k, 200.0, 470.0 + 25 * k, 500.0) for k in range(4)]
    together = drawn(hw, *(instance(hw, box, k + 1, with_mask=False) for k, box in enumerate(boxes)))
    one = drawn(hw, instance(hw, boxes[0], 1, with_mask=False))
    num_text = int((one == TEXT_DARK).all(axis=2).sum())
    assert (together == TEXT_DARK).all(axis=2).sum() > 3.5 * num_text


def hidden_share(hw: tuple[int, int], boxes: list[tuple[float, float, float, float]]) -> float:
    """Return the share of the objects' pixels that labels cover."""
    instances = [instance(hw, box, number) for number, box in enumerate(boxes, start=1)]
    with_labels = drawn(hw, *instances)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelPainter, "draw", lambda self, one, colour: None)
        without = drawn(hw, *instances)
    objects = np.logical_or.reduce([ellipse(hw, box) for box in boxes])
    return float((with_labels != without).any(axis=2)[objects].mean())


@pytest.mark.parametrize("height", [360, 720, 1080])
def test_labels_hide_little_of_a_street(height: int) -> None:
    """People of a tenth to a fifth of the height, some side by side, before two cars."""
    people = [(60, 150, 82, 220), (84, 150, 104, 215), (150, 140, 166, 190), (230, 150, 250, 212), (252, 155, 270, 215)]
    people += [(300, 130, 312, 168), (380, 160, 404, 236), (420, 150, 441, 222)]
    cars = [(140, 175, 260, 235), (20, 200, 130, 260)]
    boxes = [tuple(side * height / 360 for side in box) for box in [*people, *cars]]
    assert hidden_share((height, height * 4 // 3), boxes) < 0.06  # type: ignore[arg-type]


def test_a_label_goes_beside_its_object_where_others_are_above_and_below() -> None:
    column = [(200.0, 20.0 + 40 * k, 225.0, 60.0 + 40 * k) for k in range(8)]
    assert hidden_share((360, 480), column) < 0.02


def test_text_follows_the_size_of_the_picture() -> None:
    def chip_h(height: int) -> int:
        hw = (height, height * 4 // 3)
        box = (0.2 * hw[1], 0.5 * hw[0], 0.8 * hw[1], 0.9 * hw[0])
        picture = drawn(hw, instance(hw, box, with_mask=False))
        return int((picture[: int(box[1]), int(box[0]) + 3] != 90).any(axis=1).sum())

    heights = [chip_h(height) for height in (360, 720, 1080, 2160)]
    assert heights == sorted(heights)
    assert heights[0] <= 15
    assert heights[-1] > 2 * heights[1]


def test_instances_without_tracks_have_colours_of_their_own() -> None:
    hw = (360, 480)
    boxes = [(20.0 + 150 * k, 100.0, 120.0 + 150 * k, 300.0) for k in range(3)]
    untracked = [msgspec.structs.replace(instance(hw, box, None), state="untracked") for box in boxes]
    picture = drawn(hw, *untracked)
    colours = {tuple(picture[200, int(box[0])].tolist()) for box in boxes}
    assert colours == {track_colour(1), track_colour(2), track_colour(3)}


def test_the_label_is_readable_on_every_colour() -> None:
    def luminance(bgr: tuple[int, int, int]) -> float:
        linear = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in bgr]
        return 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]

    hw = (720, 1280)
    for track_id in [None, *range(1, 200)]:
        colour = track_colour(track_id)
        picture = drawn(hw, instance(hw, (400.0, 200.0, 700.0, 500.0), track_id, with_mask=False))
        chip = picture[176:199, 402:500].reshape(-1, 3)
        text = max(chip, key=lambda pixel: abs(luminance(tuple(pixel)) - luminance(colour)))
        light, dark = sorted([luminance(tuple(text)), luminance(colour)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, f"track {track_id} {colour}"


def test_colours_of_tracks_are_stable_and_far_apart() -> None:
    assert track_colour(7) == track_colour(7)
    assert track_colour(None) == UNCONFIRMED
    bgr = np.array([track_colour(track_id) for track_id in range(1, 13)], np.float32)[None] / 255
    lab = cv2.cvtColor(bgr, cv2.COLOR_BGR2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + np.eye(12) * 1000
    # a colour difference of 2.3 is just noticeable (CIE76); consecutive tracks must differ far more
    assert distance.min() > 25
    assert min(distance[k, k + 1] for k in range(11)) > 60


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(48, 64, 3\) uint8, got \(64, 48, 3\) uint8"):
        draw_result(np.zeros((64, 48, 3), np.uint8), result((48, 64)))


def test_drawing_ten_instances_at_720p_is_fast() -> None:
    hw = (720, 1280)
    instances = [instance(hw, (20.0 + 120 * k, 100.0, 130.0 + 120 * k, 620.0), k + 1) for k in range(10)]
    message, picture = result(hw, *instances), np.full((*hw, 3), 90, np.uint8)
    draw_result(picture, message)
    times_s = []
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # so that the CPU time of this thread is the whole cost, also on a busy machine
    try:
        for _ in range(15):
            begin_s = time.thread_time()
            draw_result(picture, message)
            times_s.append(time.thread_time() - begin_s)
    finally:
        cv2.setNumThreads(num_threads)
    # 4 ms on an idle core, 12 ms on a busy machine; the limit detects work on whole frames for each instance
    assert min(times_s) < 0.03
