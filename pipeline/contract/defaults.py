"""The default values of options, read by the configuration, the command line and the library.

Plain constants without imports, so that `--help` can show them without loading the configuration's dependencies.
"""

from __future__ import annotations

from typing import Final

CONF: Final = 0.5
"""confidence threshold: the score at which a track begins; `segment` returns detections from this score up"""
MIN_SCORE: Final = 0.0
MAX_STALENESS_S: Final = 0.5
STRIDE: Final = 1
DROP_POLICY: Final = "auto"
RTSP_TRANSPORT: Final = "tcp"

CPU_MODEL: Final = "street"
CUDA_MODEL: Final = "maskrcnn_resnet50_fpn_v2"
DEVICE: Final = "auto"
PRECISION: Final = "auto"
BATCH: Final = 4
BATCH_TIMEOUT_MS: Final = 20.0
WORKERS: Final = 1

REDIS_MEMORY_MB: Final = 1024
MAX_IN_FLIGHT: Final = 16
RESULT_TTL_S: Final = 3600

RUNS_FOLDER: Final = "runs"
"""without an output folder, results go to a fresh folder in this one"""
