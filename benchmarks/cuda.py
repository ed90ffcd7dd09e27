"""What the benchmarks on CUDA share."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_WARM_UPS = 3
"""calls before a capture: compilation, tuning and the first allocations must lie behind"""


class Budget:
    """Time until a moment of the clock, in seconds."""

    def __init__(self, end_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._end_s = end_s
        self._clock = clock

    @property
    def left_s(self) -> float:
        """Below 0 when it is over."""
        return self._end_s - self._clock()


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call in a CUDA graph: replays it on the inputs it was made with. It must not wait for the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def wait_for(device: torch.device) -> Callable[[], None]:
    """What returns when the device has finished; a CPU has, always."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
