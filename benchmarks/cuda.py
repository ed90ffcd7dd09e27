"""Helpers of the benchmarks on CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_WARM_UPS = 3
"""calls before a capture, for compilation, autotuning and the first allocations"""


class Budget:
    """Time left until a point in time of the clock, in seconds."""

    def __init__(self, end_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._end_s = end_s
        self._clock = clock

    @property
    def left_s(self) -> float:
        """Seconds left; negative after the end."""
        return self._end_s - self._clock()


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Capture a call in a CUDA graph and return a function that replays it on the same inputs. The call must not
    synchronise with the host.
    """
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
    """A function that waits until the device has finished its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
