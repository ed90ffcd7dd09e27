"""What the benchmarks on CUDA share."""

from __future__ import annotations

from collections.abc import Callable

import torch

_WARM_UPS = 3
"""calls before a capture: compilation, tuning and the first allocations must lie behind"""


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
