"""`evaluate mot` and `track` on synthetic sequences, and on real sequences if they are available."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from support.mot_folders import box_crowd, mask_crowd, official_figures, write_sequence
from support.result_samples import frame, instance

from pipeline.contract.results import Mask, encode_result
from pipeline.tracking.tracker import TrackerConfig

Run = Callable[..., tuple[int, str, str]]
NUM_FRAMES = 20
SHARES = ["HOTA", "DetA", "AssA", "IDF1", "MOTA"]
COUNTS = ["FP", "FN", "IDSW", "Frag", "MT", "ML"]
PERFECT = {"hota": 1, "deta": 1, "assa": 1, "idf1": 1, "fp": 0, "fn": 0, "idsw": 0, "frag": 0}


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """A sequence of 20 frames: two people who walk, a row with flag 0, and detections of the two people."""
    folder = tmp_path / "walk"
    boxes = {n: [(1, f"{n * 3},11,20,50"), (2, f"{201 + n},11,20,50")] for n in range(1, NUM_FRAMES + 1)}
    rows = [f"{n},{own},{box},1,-1,-1,-1" for n, both in boxes.items() for own, box in both]
    write_sequence(folder, [*rows, "1,3,400,11,20,50,0,-1,-1,-1"], NUM_FRAMES)
    (folder / "det").mkdir()
    (folder / "det" / "det.txt").write_text(
        "".join(f"{n},-1,{box},0.9,-1,-1,-1\n" for n, both in boxes.items() for _, box in both)
    )
    return folder


def write_results(path: Path, *, with_masks: bool = True) -> Path:
    """Write a result file (JSON lines) of `sequence`: the two people, an unconfirmed track and a car."""
    more = {} if with_masks else {"mask": None}
    with path.open("wb") as file:
        for n in range(1, NUM_FRAMES + 1):
            instances = [
                instance(5, box_xyxy=(n * 3 - 1, 10, n * 3 + 19, 60), **more),
                instance(6, box_xyxy=(200 + n, 10, 220 + n, 60), **more),
                instance(None, box_xyxy=(500, 10, 520, 60), **more),
                instance(7, label="car", class_id=3, box_xyxy=(300, 10, 350, 60), **more),
            ]
            file.write(encode_result(frame(n, instances=instances)) + b"\n")
    return path


# -- evaluate mot -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("trackeval")
def test_the_tracker_is_evaluated_on_the_detections_of_a_sequence(run: Run, sequence: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    code, out, err = run("evaluate", "mot", "--gt", sequence, "--json", "--output", output)
    assert (code, err) == (0, f"files written to {output}\n")
    metrics = json.loads(out)
    assert metrics == json.loads((output / "metrics.json").read_text())
    assert metrics["judged"] == {"walk": str(sequence / "det" / "det.txt")}
    assert metrics["tracker"]["confirm_s"] == TrackerConfig().confirm_s
    figures = metrics["sequences"]["walk"]
    # a track is confirmed at its second detection of score 0.9, so both people are missed on the first frame
    expected = {"fp": 0, "fn": 2, "idsw": 0, "frag": 0, "mt": 2, "ml": 0, "num_objects": 40, "num_ids": 2}
    assert {name: figures[name] for name in expected} == expected
    assert figures["mota"] == pytest.approx(38 / 40)
    assert metrics["combined"] == figures

    again = run("evaluate", "mot", "--gt", sequence, "--results", output, "--json")
    assert (again[0], json.loads(again[1])["combined"]) == (0, figures)


@pytest.mark.usefixtures("trackeval")
@pytest.mark.parametrize("place", ["walk/det/det.txt", "walk.txt", "det/det.txt"])
def test_detections_may_be_in_another_folder(run: Run, sequence: Path, tmp_path: Path, place: str) -> None:
    path = tmp_path / "other" / place
    path.parent.mkdir(parents=True)
    path.write_text("")
    code, out, _ = run("evaluate", "mot", "--gt", sequence, "--det", tmp_path / "other", "--json")
    metrics = json.loads(out)
    assert (code, metrics["judged"]["walk"], metrics["combined"]["fn"]) == (0, str(path), 40)


@pytest.mark.usefixtures("trackeval")
def test_result_files_are_evaluated_for_the_selected_classes(run: Run, sequence: Path, tmp_path: Path) -> None:
    path = write_results(tmp_path / "walk.jsonl")
    code, out, err = run("evaluate", "mot", "--gt", sequence, "--results", path, "--json")
    assert (code, err) == (0, "")
    metrics = json.loads(out)
    assert metrics["tracker"] is None
    # an error by one pixel, the difference between 0-based and 1-based coordinates, would fail at IoU 0.95
    assert metrics["combined"].items() >= {**PERFECT, "mota": 1}.items()
    code, out, _ = run("evaluate", "mot", "--gt", sequence, "--results", path, "--classes", "person, car", "--json")
    assert (code, json.loads(out)["combined"]["fp"]) == (0, NUM_FRAMES)


@pytest.mark.usefixtures("trackeval")
def test_the_table_lists_all_sequences(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    truth, results = box_crowd(tmp_path)
    files = [item for path in sorted(results.iterdir()) for item in ("--results", path)]
    code, out, err = run("evaluate", "mot", "--gt", truth, *files)
    assert (code, err) == (0, "")
    assert out.startswith(f"results on 3 sequences of {truth}, matched by IoU of boxes\n")
    lines = [line.split() for line in out.splitlines()]
    starts = [place for place, words in enumerate(lines) if words[:1] == ["sequence"]]
    shares, counts = (lines[place : place + 5] for place in starts)
    assert (shares[0], counts[0]) == (["sequence", *SHARES], ["sequence", "objects", "ids", *COUNTS])
    assert [row[0] for row in shares[1:]] == [row[0] for row in counts[1:]] == ["a", "b", "empty", "all"]
    assert int(counts[4][1]) == sum(int(row[1]) for row in counts[1:4]) == 900


@pytest.mark.usefixtures("trackeval")
def test_the_table_of_masks_has_motsa_and_smotsa(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    truth, results = mask_crowd(tmp_path)
    code, out, err = run("evaluate", "mot", "--gt", truth, "--results", results)
    assert (code, err) == (0, "")
    assert f"results on 2 sequences of {truth}, matched by IoU of masks" in out
    assert "IDF1   MOTSA   sMOTSA" in out


@pytest.mark.usefixtures("trackeval")
def test_result_files_with_masks_are_evaluated_by_masks(run: Run, tmp_path: Path) -> None:
    """If the ground truth has masks, the boxes of the results are ignored."""
    mask = instance().mask
    assert mask is not None
    height, width = mask.size
    row = f"{{}} 2001 2 {height} {width} {mask.counts}"
    write_sequence(tmp_path / "masks", [row.format(n) for n in range(1, NUM_FRAMES + 1)], NUM_FRAMES)
    path = tmp_path / "masks.jsonl"
    path.write_bytes(
        b"".join(
            encode_result(frame(n, instances=[instance(9, box_xyxy=(0, 0, 1, 1))])) + b"\n"
            for n in range(1, NUM_FRAMES + 1)
        )
    )
    output = tmp_path / "report"
    code, out, _ = run("evaluate", "mot", "--gt", tmp_path / "masks", "--results", path, "--json", "--output", output)
    metrics = json.loads(out)
    assert (code, metrics["iou_of"]) == (0, "masks")
    assert metrics["combined"].items() >= {**PERFECT, "motsa": 1, "smotsa": 1}.items()
    assert (output / "masks.txt").read_text().splitlines()[0] == f"1 9 2 {height} {width} {mask.counts}"


INVALID_INPUT: dict[str, tuple[str, str]] = {
    "nowhere": ("--gt none", "none: there is no such folder"),
    "no sequences": ("--gt walk/det", "walk/det: expected MOTChallenge sequences, as SEQUENCE/gt/gt.txt"),
    "no seqinfo": ("--gt bare", "bare/seqinfo.ini: there is no such file"),
    "no detections": ("--gt walk --det bare", "detections of walk: expected a file at bare/walk/det/det.txt or "),
    "both": ("--gt walk --det bare --results walk.jsonl", "--det and --results: expected one of them"),
    "foreign file": ("--gt walk --results other.jsonl", "--results other.jsonl: expected walk.jsonl"),
    "no results": ("--gt walk --results bare", "results of walk: expected a file at bare/walk.jsonl or "),
    "no such results": ("--gt walk --results gone/walk.jsonl", "expected a file at gone/walk.jsonl, found none"),
    "damaged row": ("--gt walk --results bad/walk.txt", "bad/walk.txt, line 2: expected frame,id,left,"),
    "damaged message": ("--gt walk --results bad/walk.jsonl", "bad/walk.jsonl, line 1: expected a result message"),
    "frame beyond": ("--gt short --results short.jsonl", "short.jsonl: frame 4 in a sequence of 3"),
    "no classes": ("--gt walk --classes ,", "--classes: expected one or more labels such as person,car"),
    "no masks": ("--gt masks --results masks.jsonl", "masks.jsonl: track 5 on frame 1 has no mask"),
    "bad mask": ("--gt masks --results bad/masks.jsonl", "masks.jsonl: track 5 on frame 1: RLE counts must add up"),
    "other size": ("--gt masks --results masks.txt", "masks.txt: masks must have one size, got 3x2 and 2x3"),
    "boxes for masks": ("--gt masks", "the ground truth has masks, but detections are boxes: give --results"),
    "mixed": ("--gt mixed", "expected sequences of one kind, got boxes in mixed/a/gt/gt.txt and masks in mixed/b"),
}


@pytest.mark.usefixtures("trackeval")
@pytest.mark.parametrize("name", INVALID_INPUT)
def test_invalid_input_gives_one_error_line(
    run: Run, sequence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare" / "gt").mkdir(parents=True)
    (tmp_path / "bare" / "gt" / "gt.txt").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "walk.txt").write_text("1,1,1,1,1,1,1\n1,2\n")
    (tmp_path / "bad" / "walk.jsonl").write_text("{}\n")
    damaged = frame(1, instances=[instance(5, mask=Mask(size=(9, 9), counts="03"))])
    (tmp_path / "bad" / "masks.jsonl").write_bytes(encode_result(damaged) + b"\n")
    (tmp_path / "masks.txt").write_text("1 1 2 2 3 06\n")
    for folder, row in (("short", "1,1,1,1,1,1,1,1"), ("masks", "1 1 2 3 2 06"), ("mixed/b", "1 1 2 3 2 06")):
        write_sequence(tmp_path / folder, [row], 3 if folder == "short" else NUM_FRAMES)
    shutil.copytree(sequence, tmp_path / "mixed" / "a")
    write_results(tmp_path / "walk.jsonl")
    write_results(tmp_path / "short.jsonl")
    write_results(tmp_path / "masks.jsonl", with_masks=False)
    arguments, words = INVALID_INPUT[name]
    code, out, err = run("evaluate", "mot", *arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_without_trackeval_the_error_names_the_package(
    run: Run, sequence: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackeval", None)
    code, out, err = run("evaluate", "mot", "--gt", sequence)
    assert (code, out) == (2, "")
    assert err == "maskstream: error: evaluate mot needs TrackEval: pip install 'maskstream[mot]'\n"


# -- track ------------------------------------------------------------------------------------------------------------


def test_track_writes_motchallenge_results(run: Run, sequence: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.txt"
    assert run("track", "--det", sequence / "det" / "det.txt", "--output", output) == (0, "", "")
    rows = output.read_text().splitlines()
    assert rows[:2] == ["2,1,6,11,20,50,0.9,-1,-1,-1", "2,2,203,11,20,50,0.9,-1,-1,-1"]
    assert len(rows) == 2 * (NUM_FRAMES - 1)


def test_fps_overrides_the_frame_rate_of_the_sequence(run: Run, sequence: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.txt"
    assert run("track", "--det", sequence / "det" / "det.txt", "--output", output, "--fps", "40")[0] == 0
    # for detections of score 0.9, half of confirm_s applies: two frames
    assert output.read_text().startswith("3,1,")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--output out.txt", 2, "--det"),
        ("--det none.txt --output out.txt", 2, "cannot read none.txt: no such file or directory"),
        ("--det det.txt --output out.txt", 2, "det.txt: found no seqinfo.ini that states the frame rate: give --fps"),
        ("--det bad.txt --output out.txt --fps 5", 2, "bad.txt, line 2: expected frame,id,left,top,width,height,score"),
        ("--det det.txt --output out.txt --fps 0", 2, "--fps: expected a number above 0, got 0"),
        ("--det det.txt --output out.txt --fps inf", 2, "--fps: expected a number above 0, got inf"),
        ("--det det.txt --output none/out.txt --fps 5", 1, "cannot write none/out.txt: no such file or directory"),
    ],
)
def test_invalid_arguments_of_track_give_one_error_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("det.txt").write_text("1,-1,1,1,5,5,0.9\n")
    Path("bad.txt").write_text("1,-1,1,1,5,5,0.9\n1;1;1\n")
    found, out, err = run("track", *arguments.split())
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert words in err
    assert not Path("out.txt").exists()


# -- real sequences ---------------------------------------------------------------------------------------------------


def test_metrics_of_real_sequences_equal_trackevals(
    run: Run, shared_data: Path, tmp_path: Path, trackeval: ModuleType
) -> None:
    truth, output = shared_data / "mot", tmp_path / "report"
    code, out, _ = run("evaluate", "mot", "--gt", truth, "--json", "--output", output)
    metrics = json.loads(out)
    assert (code, len(metrics["sequences"]), metrics["combined"]["num_objects"]) == (0, 5, 19483)
    # the metrics are far above these bounds; tracks with a wrong frame number or scale are far below
    assert metrics["combined"]["hota"] > 0.3
    assert metrics["combined"]["mota"] > 0.2
    official = official_figures(trackeval.datasets.MotChallenge2DBox, truth, output)
    assert metrics["sequences"] | {"combined": metrics["combined"]} == official
