"""Synthetic folders in the formats of MOTChallenge and MOTS, and their metrics as computed by TrackEval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ops.masks import encode_rle

NUM_FRAMES, FPS = 30, 10
MASK_HW = (48, 64)
CELL_PX = 16


def write_sequence(folder: Path, rows: list[str], num_frames: int = NUM_FRAMES) -> None:
    """Write the ground truth and `seqinfo.ini` of a sequence."""
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text("".join(f"{row}\n" for row in rows))
    (folder / "seqinfo.ini").write_text(f"[Sequence]\nname={folder.name}\nframeRate={FPS}\nseqLength={num_frames}\n")


def box_crowd(folder: Path) -> tuple[Path, Path]:
    """Write ground truth and results of the sequences `a`, `b` and `empty`. Return both folders.

    The boxes drift; some have the flag 0, and one object is rarely detected. The results contain misses, false
    positives and ID switches; those of `empty` are empty.
    """
    truth, results = folder / "truth", folder / "results"
    results.mkdir()
    for seed, name in enumerate(("a", "b", "empty")):
        rng = np.random.default_rng(seed)
        starts, speeds = rng.uniform(0, 200, (12, 2)), rng.normal(0, 2, (12, 2))
        rows, found = [], []
        for frame in range(1, NUM_FRAMES + 1):
            for number in range(12):
                left, top = starts[number] + frame * speeds[number]
                rows.append(f"{frame},{number + 1},{left:.2f},{top:.2f},40,80,{int(number > 1)},1,1")
                off_left, off_top = rng.normal(0, 3, 2)
                track_id = number + 1 + (100 if frame > 2 * number else 0)
                if rng.random() < (0.1 if number == 11 else 0.9):
                    found.append(f"{frame},{track_id},{left + off_left:.2f},{top + off_top:.2f},40,80,0.9,-1,-1,-1")
            if frame % 3 == 0:
                found.append(f"{frame},{300 + frame},{rng.uniform(0, 200):.2f},300,40,80,0.6,-1,-1,-1")
        write_sequence(truth / name, rows)
        (results / f"{name}.txt").write_text("" if name == "empty" else "".join(f"{row}\n" for row in found))
    return truth, results


def mask_crowd(folder: Path) -> tuple[Path, Path]:
    """Write ground truth and results of two MOTS sequences. Return both folders.

    Each object has a cell of its own, because masks must not overlap in MOTS. Most objects are people; there is a car,
    and an ignored region over two cells with a false positive completely inside and one partly inside.
    """
    truth, results = folder / "truth", folder / "results"
    results.mkdir()
    for seed, name in enumerate(("a", "b")):
        rng = np.random.default_rng(seed)
        rows, found = [], []
        for frame in range(1, NUM_FRAMES + 1):
            rows.append(_mask_row(frame, 10000, 10, (0, CELL_PX, 0, 2 * CELL_PX - 8)))
            for cell in range(2, 12):
                class_id = 1 if cell == 11 else 2
                if frame % 9 != cell % 9:
                    rows.append(_mask_row(frame, class_id * 1000 + cell, class_id, _region(cell, rng)))
                if rng.random() < 0.85:
                    track_id = class_id * 1000 + cell + (100 if frame > 2 * cell else 0)
                    found.append(_mask_row(frame, track_id, class_id, _region(cell, rng)))
            found += [_mask_row(frame, 2500 + cell, 2, _region(cell, rng)) for cell in (0, 1)]
        write_sequence(truth / name, rows)
        (results / f"{name}.txt").write_text("".join(f"{row}\n" for row in found))
    return truth, results


def _region(cell: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a region of random size inside the cell."""
    row, col = divmod(cell, MASK_HW[1] // CELL_PX)
    trim = rng.integers(0, 4, 4).tolist()
    top, left = row * CELL_PX, col * CELL_PX
    return top + trim[0], top + CELL_PX - trim[1], left + trim[2], left + CELL_PX - trim[3]


def _mask_row(frame: int, track_id: int, class_id: int, region: tuple[int, int, int, int]) -> str:
    mask = np.zeros(MASK_HW, np.bool_)
    mask[region[0] : region[1], region[2] : region[3]] = True
    return f"{frame} {track_id} {class_id} {MASK_HW[0]} {MASK_HW[1]} {encode_rle(mask).decode()}"


def official_figures(dataset_type: Any, truth: Path, results: Path) -> dict[str, dict[str, float | int]]:
    """Return TrackEval's metrics of each sequence and of `combined`, with our names and rounding."""
    from trackeval.metrics import CLEAR, HOTA, Identity

    names = sorted(path.stem for path in results.glob("*.txt"))
    dataset = dataset_type(
        {
            "GT_FOLDER": str(truth),
            "TRACKERS_FOLDER": str(results.parent),
            "TRACKERS_TO_EVAL": [results.name],
            "TRACKER_SUB_FOLDER": "",
            "SKIP_SPLIT_FOL": True,
            "SEQ_INFO": dict.fromkeys(names),
            "DO_PREPROC": False,
            "PRINT_CONFIG": False,
        }
    )
    metrics = (HOTA(), CLEAR({"PRINT_CONFIG": False}), Identity({"PRINT_CONFIG": False}))
    data = {
        name: dataset.get_preprocessed_seq_data(dataset.get_raw_seq_data(results.name, name), "pedestrian")
        for name in names
    }
    each = {name: [metric.eval_sequence(own) for metric in metrics] for name, own in data.items()}
    combined = [
        metric.combine_sequences({name: each[name][place] for name in names}) for place, metric in enumerate(metrics)
    ]
    of_masks = dataset_type.__name__.startswith("MOTS")
    figures = {name: _figures(*of_metrics, of_masks) for name, of_metrics in each.items()}
    return figures | {"combined": _figures(*combined, of_masks)}


def _figures(hota: Any, clear: Any, identity: Any, of_masks: bool) -> dict[str, float | int]:
    shares = {"hota": np.mean(hota["HOTA"]), "deta": np.mean(hota["DetA"]), "assa": np.mean(hota["AssA"])}
    shares |= {"idf1": identity["IDF1"]}
    shares |= {"motsa": clear["MOTA"], "smotsa": clear["sMOTA"]} if of_masks else {"mota": clear["MOTA"]}
    counts = {"fp": "CLR_FP", "fn": "CLR_FN", "idsw": "IDSW", "frag": "Frag", "mt": "MT", "ml": "ML"}
    return {
        **{name: round(float(value), 6) for name, value in shares.items()},
        **{name: int(clear[key]) for name, key in counts.items()},
        "num_objects": int(clear["CLR_TP"] + clear["CLR_FN"]),
        "num_ids": int(clear["MT"] + clear["PT"] + clear["ML"]),
    }
