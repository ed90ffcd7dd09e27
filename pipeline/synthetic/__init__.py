"""A rendered street scene with exact ground truth for every pixel. The demo, the tests and the training use it.

>>> scene = Scene(SceneConfig(num_frames=100))
>>> frame = scene.render(42)
>>> frame.image, frame.objects, frame.mask(frame.objects[0].object_id)
"""

from __future__ import annotations

from pipeline.synthetic.encode import demo_video, write_video
from pipeline.synthetic.scene import LABELS, Scene, SceneConfig, SceneFrame, SceneObject, ground_truth

__all__ = ["LABELS", "Scene", "SceneConfig", "SceneFrame", "SceneObject", "demo_video", "ground_truth", "write_video"]
