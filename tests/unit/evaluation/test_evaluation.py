"""Class masks, matching, tracking metrics and comparison sheets of the evaluations, computed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ops.masks import encode_rle
from pipeline.coco.annotations import Annotation
from pipeline.coco.average_precision import coco_metrics
from pipeline.contract.arrays import Detections
from pipeline.evaluation.class_masks import ClassMasks, PixelCounts
from pipeline.evaluation.clear_mot import TrackedFrame, tracking_metrics
from pipeline.evaluation.comparison_sheet import CAPTION_PX, GAP_PX, HEADING_PX, TILE_WH, SheetRow, draw_sheet
from pipeline.evaluation.matching import Matching, confident_detections, crowd_flags, match_objects, pairwise_ious
from pipeline.evaluation.report_files import worst_and_best
from pipeline.evaluation.scene_truth import MIN_AREA_PX, scene_annotations, scene_ground_truth
from pipeline.evaluation.video_evaluation import FrameTracks, FrameTruth, video_metrics
from pipeline.synthetic import LABELS, Scene, SceneConfig

HEIGHT, WIDTH = 8, 10
PERSON, CAR = 1, 3
Box = tuple[int, int, int, int]


def filled(box: Box) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def annotation(box: Box, category_id: int = PERSON, *, is_crowd: bool = False) -> Annotation:
    x1, y1, x2, y2 = map(float, box)
    rle = coco_mask.encode(np.asfortranarray(filled(box), np.uint8))
    return Annotation(category_id, (x1, y1, x2, y2), rle, is_crowd, (x2 - x1) * (y2 - y1))


def found(
    *boxes: Box, classes: Sequence[int] = (), scores: Sequence[float] = (), with_masks: bool = True
) -> Detections:
    return Detections(
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores or [0.9] * len(boxes), np.float32),
        class_ids=np.array(classes or [PERSON] * len(boxes), np.int32),
        mask_bits=None,
        rle_counts=[encode_rle(filled(box)) for box in boxes] if with_masks else None,
        width=WIDTH,
        height=HEIGHT,
    )


# -- class masks ------------------------------------------------------------------------------------------------------


def test_iou_and_dice_of_pixel_counts() -> None:
    region = PixelCounts()
    # two squares of 4 x 4, shifted by two columns: intersection 8, union 24
    region.add(filled((0, 0, 4, 4)), filled((2, 0, 6, 4)), np.zeros((HEIGHT, WIDTH), np.bool_))
    assert region.iou == pytest.approx(8 / 24)
    assert region.dice == pytest.approx(16 / 32)
    # on a second picture none of 2 pixels is found: the pixel counts are summed, not the ratios
    region.add(filled((0, 0, 2, 1)), filled((0, 0, 0, 0)), np.zeros((HEIGHT, WIDTH), np.bool_))
    assert region.iou == pytest.approx(8 / 26)
    assert region.dice == pytest.approx(16 / 34)


def test_iou_and_dice_without_pixels_are_nan() -> None:
    assert np.isnan(PixelCounts().iou)
    assert np.isnan(PixelCounts().dice)


def counted(
    annotations: list[Annotation], detections: Detections, labelled: Sequence[int] = (PERSON, CAR)
) -> dict[int, tuple[int, int, int]]:
    regions = ClassMasks([PERSON, CAR], 0.5)
    regions.add(annotations, detections, labelled)
    return {key: (area.truth_px, area.found_px, area.common_px) for key, area in regions.counts.items()}


def test_class_masks_are_unions_of_confident_instances() -> None:
    # the union of two people that overlap in one column is 3 x 4 px; the low-scoring detection does not count
    annotations = [annotation((0, 0, 2, 4)), annotation((1, 0, 3, 4))]
    detections = found((0, 0, 3, 2), (2, 0, 4, 2), (5, 5, 9, 8), scores=[0.9, 0.5, 0.49])
    assert counted(annotations, detections) == {PERSON: (12, 8, 6), CAR: (0, 0, 0)}


def test_pixels_are_counted_per_class() -> None:
    detections = found((0, 0, 2, 2), classes=[CAR])
    assert counted([annotation((0, 0, 2, 2))], detections) == {PERSON: (4, 0, 0), CAR: (0, 4, 0)}


def test_a_class_that_a_picture_does_not_label_is_not_counted() -> None:
    detections = found((0, 0, 2, 2), (4, 4, 8, 8), classes=[PERSON, CAR])
    assert counted([annotation((0, 0, 2, 2))], detections, labelled=[PERSON]) == {PERSON: (4, 4, 4), CAR: (0, 0, 0)}


def test_crowd_pixels_are_ignored_for_the_class_of_the_crowd_only() -> None:
    annotations = [annotation((0, 0, 2, 2)), annotation((0, 0, WIDTH, 1), is_crowd=True)]
    detections = found((0, 0, 2, 2), (4, 0, 6, 1), (4, 0, 6, 1), classes=[PERSON, PERSON, CAR])
    assert counted(annotations, detections) == {PERSON: (2, 2, 2), CAR: (0, 2, 0)}


def test_class_masks_need_masks() -> None:
    with pytest.raises(ValueError, match="have none"):
        counted([annotation((0, 0, 2, 2))], found((0, 0, 2, 2), with_masks=False))


# -- matching ---------------------------------------------------------------------------------------------------------


def matching_of(annotations: list[Annotation], detections: Detections) -> Matching:
    return match_objects(pairwise_ious(annotations, detections), crowd_flags(annotations))


def test_panoptic_quality_by_hand() -> None:
    annotations = [annotation((0, 0, 4, 4)), annotation((6, 0, 8, 2)), annotation((6, 4, 8, 6), CAR)]
    # the first is found with 12 of 16 px, the third with another class
    matching = matching_of(annotations, found((0, 0, 4, 3), (6, 4, 8, 6)))
    assert (matching.matches, matching.missed, matching.false_positives, matching.ignored) == (
        ((0, 0),),
        (1, 2),
        (1,),
        (),
    )
    assert matching.ious == (pytest.approx(0.75),)
    assert matching.panoptic_quality == pytest.approx(0.75 / (1 + 3 / 2))


def test_the_detection_with_the_higher_iou_is_matched() -> None:
    matching = matching_of([annotation((0, 0, 4, 4))], found((0, 0, 4, 3), (0, 0, 4, 4)))
    assert (matching.matches, matching.false_positives) == (((0, 1),), (0,))


def test_detections_inside_a_crowd_are_ignored() -> None:
    annotations = [annotation((0, 0, 6, 6), is_crowd=True), annotation((8, 6, 10, 8))]
    # detections inside the crowd, half inside, less than half inside, and outside
    matching = matching_of(annotations, found((0, 0, 2, 2), (5, 0, 7, 2), (5, 3, 8, 5), (8, 6, 10, 8)))
    assert (matching.matches, matching.ignored, matching.false_positives, matching.missed) == (
        ((1, 3),),
        (0, 1),
        (2,),
        (),
    )


def test_panoptic_quality_without_objects_and_detections_is_none() -> None:
    assert matching_of([annotation((0, 0, 6, 6), is_crowd=True)], found((0, 0, 2, 2))).panoptic_quality is None
    assert matching_of([], found()).panoptic_quality is None
    assert matching_of([], found((0, 0, 2, 2))).panoptic_quality == 0


def test_the_iou_of_boxes_is_used_if_masks_are_missing() -> None:
    annotations = [annotation((0, 0, 4, 4))]
    assert pairwise_ious(annotations, found((0, 0, 4, 2), with_masks=False))[0, 0] == pytest.approx(0.5)
    without = [Annotation(PERSON, (0.0, 0.0, 4.0, 4.0), None, is_crowd=False, area_px=16.0)]
    assert pairwise_ious(without, found((0, 0, 4, 2)))[0, 0] == pytest.approx(0.5)


def test_confident_detections_selects_by_score_and_class() -> None:
    kept = confident_detections(
        found((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3), classes=[1, 3, 1], scores=[0.5, 0.9, 0.4]), 0.5, [1]
    )
    assert (kept.scores.tolist(), kept.class_ids.tolist(), kept.boxes_xyxy.tolist()) == ([0.5], [1], [[0, 0, 1, 1]])
    assert kept.rle_counts == [encode_rle(filled((0, 0, 1, 1)))]


# -- tracking ---------------------------------------------------------------------------------------------------------


def frame(truth_ids: list[int], track_ids: list[int], ious: object) -> TrackedFrame:
    table = np.array(ious, np.float64).reshape(len(truth_ids), len(track_ids))
    return TrackedFrame(np.array(truth_ids, np.int64), np.array(track_ids, np.int64), table)


def test_perfect_tracking_has_mota_1_and_idf1_1() -> None:
    figures = tracking_metrics([frame([1, 2], [5, 6], [[0.9, 0], [0, 0.5]])] * 3)
    assert (figures.num_objects, figures.num_missed, figures.num_false, figures.num_switches) == (6, 0, 0, 0)
    assert (figures.mota, figures.idf1) == (1, 1)


def test_an_identity_switch_after_a_gap_lowers_mota_and_idf1() -> None:
    followed, lost, by_another = frame([1], [5], 0.9), frame([1], [], []), frame([1], [6], 0.9)
    figures = tracking_metrics([followed, followed, followed, lost, by_another])
    assert (figures.num_objects, figures.num_missed, figures.num_false, figures.num_switches) == (5, 1, 0, 1)
    assert figures.mota == pytest.approx(1 - 2 / 5)
    # track 5 matches in three frames: 2 * 3 / (5 objects + 4 instances)
    assert figures.idf1 == pytest.approx(6 / 9)


def test_a_match_is_kept_while_its_iou_reaches_the_threshold() -> None:
    # in the second frame each track has a higher IoU with the other object, but the matches of the first frame remain
    figures = tracking_metrics([frame([1, 2], [5, 6], [[0.9, 0], [0, 0.9]]), frame([1, 2], [5, 6], [[0.5, 0.9]] * 2)])
    assert (figures.num_switches, figures.mota) == (0, 1)
    # a match ends if its IoU is below the threshold
    swapped = frame([1, 2], [5, 6], [[0.49, 0.9], [0.9, 0.49]])
    figures = tracking_metrics([frame([1, 2], [5, 6], [[0.9, 0], [0, 0.9]]), swapped])
    assert figures.num_switches == 2
    assert figures.mota == pytest.approx(1 - 2 / 4)
    assert figures.idf1 == pytest.approx(0.5)


def test_mota_may_be_negative_and_is_nan_without_objects() -> None:
    assert tracking_metrics([frame([1], [5, 6, 7], [[0, 0, 0]])]).mota == pytest.approx(1 - 4)
    nothing = tracking_metrics([frame([], [], [])])
    assert np.isnan(nothing.mota)
    assert np.isnan(nothing.idf1)
    assert tracking_metrics([frame([], [5], [])]).idf1 == 0


# -- a scene ----------------------------------------------------------------------------------------------------------

SCENE = SceneConfig(width=320, height=180, num_frames=6, fps=5.0, seed=5)


@pytest.fixture(scope="module")
def scene_truths() -> list[FrameTruth]:
    return [FrameTruth(*scene_annotations(frame, LABELS)) for frame in Scene(SCENE)]


def as_tracks(frame: FrameTruth, *, with_masks: bool = True) -> FrameTracks:
    """Return the ground truth as tracks, with the objects that are too small to count."""
    entries = frame.annotations
    return FrameTracks(
        Detections(
            boxes_xyxy=np.array([entry.box_xyxy for entry in entries], np.float32).reshape(-1, 4),
            scores=np.linspace(0.9, 0.6, len(entries), dtype=np.float32),
            class_ids=np.array([entry.category_id for entry in entries], np.int32),
            mask_bits=None,
            rle_counts=[entry.rle["counts"] for entry in entries if entry.rle] if with_masks else None,
            width=SCENE.width,
            height=SCENE.height,
        ),
        np.array(frame.object_ids, np.int64),
    )


@pytest.mark.parametrize("with_masks", [True, False])
def test_the_ground_truth_evaluated_against_itself_is_perfect(scene_truths: list[FrameTruth], with_masks: bool) -> None:
    crowds = [entry.is_crowd for frame in scene_truths for entry in frame.annotations]
    assert 0 < sum(crowds) < len(crowds)
    itself = [as_tracks(frame, with_masks=with_masks) for frame in scene_truths]
    computed = video_metrics(scene_truths, itself, LABELS, (SCENE.height, SCENE.width), with_masks=with_masks)
    assert computed.precision.boxes.ap == pytest.approx(1)
    assert (computed.precision.masks is None) == (not with_masks)
    assert computed.precision.masks is None or computed.precision.masks.ap == pytest.approx(1)
    assert (computed.mask_tracking is None) == (not with_masks)
    for tracking in filter(None, (computed.tracking, computed.mask_tracking)):
        assert (tracking.num_objects, tracking.num_false) == (len(crowds) - sum(crowds), 0)
        assert (tracking.mota, tracking.idf1) == (1, 1)


def test_tracks_are_evaluated_by_boxes_and_by_masks(scene_truths: list[FrameTruth]) -> None:
    itself = [as_tracks(frame) for frame in scene_truths]
    swapped = []
    for frame in itself:
        empty = [encode_rle(np.zeros((SCENE.height, SCENE.width), bool)) for _ in range(len(frame.detections))]
        swapped.append(FrameTracks(dataclasses.replace(frame.detections, rle_counts=empty), frame.track_ids))
    computed = video_metrics(scene_truths, swapped, LABELS, (SCENE.height, SCENE.width), with_masks=True)
    assert computed.tracking.mota == 1
    assert computed.mask_tracking is not None
    assert computed.mask_tracking.num_missed == computed.mask_tracking.num_objects


def test_objects_on_frames_without_a_result_are_missed(scene_truths: list[FrameTruth]) -> None:
    nothing = FrameTracks(Detections.empty(SCENE.width, SCENE.height), np.zeros(0, np.int64))
    given = [as_tracks(frame) if index % 2 else nothing for index, frame in enumerate(scene_truths)]
    computed = video_metrics(scene_truths, given, LABELS, (SCENE.height, SCENE.width), with_masks=True)
    empty = sum(not e.is_crowd for frame in scene_truths[::2] for e in frame.annotations)
    assert computed.tracking.num_missed == empty > 0
    assert computed.precision.masks is not None
    assert 0.2 < computed.precision.masks.ap < 0.8


def test_instances_without_a_track_count_for_precision_only(scene_truths: list[FrameTruth]) -> None:
    itself = [as_tracks(frame) for frame in scene_truths]
    untracked = [FrameTracks(frame.detections, np.zeros_like(frame.track_ids)) for frame in itself]
    computed = video_metrics(scene_truths, untracked, LABELS, (SCENE.height, SCENE.width), with_masks=True)
    assert computed.precision.boxes.ap == pytest.approx(1)
    assert (computed.tracking.mota, computed.tracking.idf1) == (0, 0)


def test_the_ground_truth_of_a_scene_holds_visible_pixels() -> None:
    shown = Scene(SCENE).render(3)
    annotations, object_ids = scene_annotations(shown, [CAR])
    cars = [item for item in shown.objects if item.class_id == CAR]
    assert object_ids == [item.object_id for item in cars]
    for entry, item in zip(annotations, cars, strict=True):
        assert entry.rle is not None
        assert coco_mask.area(entry.rle) == item.area_px
        assert entry.is_crowd == (item.area_px < MIN_AREA_PX)


def test_precision_by_hand() -> None:
    # one of two people is found with IoU 1: precision is 1 up to recall 0.5, at 51 of 101 points
    coco = scene_ground_truth(
        [[annotation((0, 0, 4, 4)), annotation((5, 5, 9, 8))]], {PERSON: "person"}, (HEIGHT, WIDTH)
    )
    precision = coco_metrics(coco, {0: found((0, 0, 4, 4))})
    assert precision.masks is not None
    assert precision.masks.ap == pytest.approx(51 / 101)
    assert precision.boxes.metrics["AR100"] == pytest.approx(0.5)


# -- sheets -----------------------------------------------------------------------------------------------------------


def test_worst_and_best_frames_keep_a_minimum_distance() -> None:
    qualities = [0.5, 0.1, 0.11, None, 0.9, 0.95]
    assert worst_and_best(qualities) == ([1, 2, 0, 4, 5], [5, 4, 0, 2, 1])
    assert worst_and_best(qualities, apart=2) == ([1, 4], [5, 0, 2])
    assert worst_and_best([0.5] * 9)[0] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("hw", [(100, 200), (300, 60), (1, 1)], ids=str)
def test_a_sheet_has_a_row_for_each_picture(hw: tuple[int, int]) -> None:
    detections = Detections.empty(hw[1], hw[0])
    rows = [
        SheetRow(np.full((*hw, 3), 10 * (n + 1), np.uint8), [], detections, matching_of([], detections), {}, "")
        for n in range(3)
    ]
    sheet = np.asarray(draw_sheet("heading", rows))
    scale = min(TILE_WH[0] / hw[1], TILE_WH[1] / hw[0])
    tile_h = round(hw[0] * scale)
    assert sheet.shape == (HEADING_PX + 3 * (CAPTION_PX + tile_h + GAP_PX), 2 * TILE_WH[0] + GAP_PX, 3)
    for n in range(3):
        y = HEADING_PX + n * (CAPTION_PX + tile_h + GAP_PX) + CAPTION_PX + tile_h // 2
        for x in (TILE_WH[0] // 2, TILE_WH[0] + GAP_PX + TILE_WH[0] // 2):
            assert sheet[y, x].tolist() == [10 * (n + 1)] * 3


def test_matched_objects_share_a_colour_and_errors_are_red() -> None:
    annotations = [annotation((0, 0, 4, 4)), annotation((6, 0, 9, 3))]
    detections = found((0, 0, 4, 4), (6, 5, 9, 8))
    row = SheetRow(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8), annotations, detections, matching_of(annotations, detections),
        {PERSON: ""}, "",
    )  # fmt: skip
    sheet = np.asarray(draw_sheet("", [row])).astype(int)
    scale = TILE_WH[1] / HEIGHT
    left = round((TILE_WH[0] - WIDTH * scale) / 2)

    def at(x: float, y: float, side: int) -> list[int]:
        pixel: list[int] = sheet[
            HEADING_PX + CAPTION_PX + round(y * scale), left + side * (TILE_WH[0] + GAP_PX) + round(x * scale)
        ].tolist()
        return pixel

    assert at(2, 2, 0) == at(2, 2, 1) != [0, 0, 0]
    for pixel in (at(7.5, 1.5, 0), at(7.5, 6.5, 1)):
        assert pixel[0] > 4 * pixel[1]
        assert pixel[1] == pixel[2]
    assert at(7.5, 1.5, 1) == at(7.5, 6.5, 0) == [0, 0, 0]
