"""The model registry: architecture, categories, input size and weights of each model. Nothing here imports torch.

Category IDs are COCO's. The input size follows torchvision's rule (the shorter side is resized to `min_size`, unless
the longer side would exceed `max_size`), with both sides rounded down to even numbers, because frames are 4:2:0.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib.util
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.contract import defaults
from pipeline.errors import ModelError, UsageError

ModelOutput = Literal["boxes", "masks", "keypoints"]

_PACKAGED_WEIGHTS = Path(__file__).parents[1] / "engine" / "weights"

_STREET_CATEGORIES = ((1, "person"), (2, "bicycle"), (3, "car"), (4, "motorcycle"), (6, "bus"), (8, "truck"))

# Eleven of COCO's IDs 1 to 90 have no category.
_COCO_LABELS = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag "
    "tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle - wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote "
    "keyboard cell_phone microwave oven toaster sink refrigerator - book clock vase scissors teddy_bear "
    "hair_drier toothbrush"
)
_COCO_CATEGORIES = tuple(
    (class_id, label.replace("_", " ")) for class_id, label in enumerate(_COCO_LABELS.split(), start=1) if label != "-"
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Specification of one model.

    architecture          key of `pipeline.engine.architectures.ARCHITECTURES`
    output                what the model detects besides boxes: nothing (`boxes`), masks, or COCO's 17 keypoints
    categories            (class_id, label) pairs with COCO's IDs, ascending
    head_class_ids        class ID of each output of the class head: output k + 1 is head_class_ids[k], output 0 is the
                          background
    min_size, max_size    shorter and longer side of the network's input in pixels, before padding to a multiple of 32
    mean, std             normalisation of RGB in [0, 1]
    weights_file          file name in the package or in torch's download cache
    weights_url           torchvision's download URL; None for weights that are part of the package
    sha256                checksum of the file: complete for packaged weights, the first digits for torchvision's
    size_mb               file size in 10^6 bytes
    box_ap, mask_ap, keypoint_ap    COCO's AP at IoU (keypoints: OKS) 0.50:0.95; mask_ap and keypoint_ap are None if the
                          model has no such output
    ap_source             data set and source of the AP
    """

    name: str
    architecture: str
    output: ModelOutput
    categories: tuple[tuple[int, str], ...]
    head_class_ids: tuple[int, ...]
    min_size: int
    max_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_file: str
    weights_url: str | None
    sha256: str
    licence: str
    size_mb: float
    box_ap: float
    mask_ap: float | None
    keypoint_ap: float | None
    ap_source: str

    @property
    def labels(self) -> dict[int, str]:
        """class_id -> label."""
        return dict(self.categories)


def _torchvision_spec(
    name: str,
    output: ModelOutput,
    file: str,
    size_mb: float,
    *,
    box_ap: float,
    mask_ap: float | None = None,
    keypoint_ap: float | None = None,
    categories: tuple[tuple[int, str], ...] = _COCO_CATEGORIES,
    head_class_ids: tuple[int, ...] = tuple(range(1, 91)),
    min_size: int = 800,
    max_size: int = 1333,
    ap_source: str = "COCO val2017, published by torchvision",
) -> ModelSpec:
    return ModelSpec(
        name=name,
        architecture=name,
        output=output,
        categories=categories,
        head_class_ids=head_class_ids,
        min_size=min_size,
        max_size=max_size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights_file=file,
        weights_url=f"https://download.pytorch.org/models/{file}",
        sha256=Path(file).stem.rpartition("-")[2],
        licence="BSD-3-Clause (torchvision), trained on COCO 2017",
        size_mb=size_mb,
        box_ap=box_ap,
        mask_ap=mask_ap,
        keypoint_ap=keypoint_ap,
        ap_source=ap_source,
    )


_SPECS = (
    ModelSpec(
        name="street",
        architecture="street",
        output="masks",
        categories=_STREET_CATEGORIES,
        head_class_ids=tuple(class_id for class_id, _ in _STREET_CATEGORIES),
        min_size=384,
        max_size=768,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        weights_file="street.safetensors",
        weights_url=None,
        sha256="a7279df94bd2c04275f6a47c1706615605fa4ab787547b38f79addca2e0ecc97",
        licence="non-commercial (trained on Cityscapes and COCO pictures); backbone Apache-2.0",
        size_mb=13.6,
        box_ap=0.210,
        mask_ap=0.180,
        keypoint_ap=None,
        ap_source="222 street pictures kept out of the training (Cityscapes, COCO, Penn-Fudan), bf16",
    ),
    _torchvision_spec(
        "maskrcnn_resnet50_fpn_v2",
        "masks",
        "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        185.8,
        box_ap=0.474,
        mask_ap=0.418,
    ),
    _torchvision_spec(
        "maskrcnn_resnet50_fpn", "masks", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", 178.1, box_ap=0.379, mask_ap=0.346
    ),
    _torchvision_spec(
        "keypointrcnn_resnet50_fpn",
        "keypoints",
        "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        237.0,
        box_ap=0.546,
        keypoint_ap=0.650,
        categories=((1, "person"),),
        head_class_ids=(1,),
        ap_source="people of COCO val2017, published by torchvision",
    ),
    _torchvision_spec(
        "fasterrcnn_resnet50_fpn_v2", "boxes", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 175.2, box_ap=0.467
    ),
    _torchvision_spec(
        "fasterrcnn_resnet50_fpn", "boxes", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 167.5, box_ap=0.370
    ),
    _torchvision_spec(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "boxes",
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
        77.8,
        box_ap=0.228,
        min_size=320,
        max_size=640,
    ),
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def get_model(name: str) -> ModelSpec:
    """The model with this name. Raises ModelError, which lists the existing names."""
    spec = MODELS.get(name)
    if spec is None:
        raise ModelError(f"unknown model {name!r}{_did_you_mean(name, MODELS)}: expected one of {', '.join(MODELS)}")
    return spec


def default_model(device: str) -> str:
    """Name of the default model for a device (auto, cpu, cuda or cuda:N)."""
    on_cuda = device.startswith("cuda") or (device == "auto" and cuda_expected())
    return defaults.CUDA_MODEL if on_cuda else defaults.CPU_MODEL


def class_ids_of(spec: ModelSpec, labels: Iterable[str]) -> list[int]:
    """Class IDs of `labels`, ascending and distinct. Raises UsageError for a label that the model does not have."""
    known = {label: class_id for class_id, label in spec.categories}
    wanted = [label.strip() for label in labels]
    for label in wanted:
        if label not in known:
            raise UsageError(
                f"class {label!r} is unknown to model {spec.name}{_did_you_mean(label, known)}: "
                f"expected some of {', '.join(known)}"
            )
    return sorted({known[label] for label in wanted})


def input_hw(spec: ModelSpec, picture_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the network's input for a picture of picture_hw pixels. Both are even.

    The function is idempotent. Where torchvision's rule gives an odd size, this is one pixel less.
    """
    limit_short, limit_long = spec.min_size // 2 * 2, spec.max_size // 2 * 2
    short, long = min(picture_hw), max(picture_hw)
    if long * limit_short <= limit_long * short:
        out_short, out_long = limit_short, long * limit_short // short
    else:
        out_short, out_long = short * limit_long // long, limit_long
    out_short, out_long = max(out_short // 2 * 2, 2), max(out_long // 2 * 2, 2)
    return (out_short, out_long) if picture_hw[0] <= picture_hw[1] else (out_long, out_short)


def bus_hw(spec: ModelSpec, picture_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the frames on the bus: the model's input size, but not larger than the source. Both are even.

    A side of one pixel becomes two, the minimum of 4:2:0.
    """
    height, width = input_hw(spec, picture_hw)
    if height <= picture_hw[0] and width <= picture_hw[1]:
        return height, width
    return max(picture_hw[0] // 2 * 2, 2), max(picture_hw[1] // 2 * 2, 2)


def weights_path(spec: ModelSpec, override: str | None = None) -> Path:
    """Path of the weights file, which need not exist.

    This is `override` if it is given, otherwise the package's own file or torchvision's file in torch's download cache:
    $TORCH_HOME/hub/checkpoints, where TORCH_HOME defaults to $XDG_CACHE_HOME/torch and XDG_CACHE_HOME to ~/.cache.
    """
    if override is not None:
        return Path(os.path.expanduser(override))
    if spec.weights_url is None:
        return _PACKAGED_WEIGHTS / spec.weights_file
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    torch_home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(torch_home)) / "hub" / "checkpoints" / spec.weights_file


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One row of the table of the `models` command."""

    spec: ModelSpec
    weights: Path
    present: bool
    """whether the weights file exists on this machine"""
    default_for: str
    """'cpu', 'cuda' or an empty string"""


def model_rows() -> list[ModelRow]:
    """One row for each model, in the order of the registry."""
    default_for = {default_model(device): device for device in ("cpu", "cuda")}
    rows = []
    for spec in MODELS.values():
        path = weights_path(spec)
        rows.append(ModelRow(spec, path, path.is_file(), default_for.get(spec.name, "")))
    return rows


def cuda_expected() -> bool:
    """Whether torch will find a CUDA device, without importing torch: torch's CUDA library and a GPU exist.

    Uses NVML instead of CUDA, because a process that has initialised CUDA cannot fork children that use it.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}:
        return False
    torch_package = importlib.util.find_spec("torch")
    if torch_package is None or not torch_package.submodule_search_locations:
        return False
    windows = sys.platform == "win32"
    library = (
        Path(torch_package.submodule_search_locations[0])
        / "lib"
        / ("torch_cuda.dll" if windows else "libtorch_cuda.so")
    )
    if not library.is_file():
        return False
    with suppress(OSError):
        nvml = ctypes.CDLL("nvml.dll" if windows else "libnvidia-ml.so.1")
        count = ctypes.c_uint(0)
        if nvml.nvmlInit_v2() == 0:
            found = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
            nvml.nvmlShutdown()
            return found and count.value > 0
    return False


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
