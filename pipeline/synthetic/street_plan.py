"""The plan of the street: positions of kerbs, lanes and house fronts, and the direction of the sunlight.

World coordinates in metres, as `pipeline.synthetic.camera` defines them. The main road runs along X, from left to right
in the picture. Z values are distances from the camera; X values lie left (negative) or right of the optical axis.
"""

from __future__ import annotations

import numpy as np

# Direction from the ground towards the sun: upper left, slightly behind the camera. Shadows fall to the right and away.
LIGHT = np.array([-0.55, 0.75, -0.37])

NEAR_KERB_Z = 8.8
FAR_KERB_Z = 16.6
FACADE_Z = 20.4
ROAD_MIDDLE_Z = (NEAR_KERB_Z + FAR_KERB_Z) / 2
NEAR_LANE_Z = 10.7
FAR_LANE_Z = 14.7

# The side street runs along Z, from the main road to a second street at SIDE_END_Z.
SIDE_KERB_X = (-5.6, 0.6)
SIDE_WALL_X = (-7.6, 2.6)
SIDE_LANE_AWAY_X = -0.9
SIDE_LANE_TOWARDS_X = -4.1
SIDE_END_Z = 46.0

# Left and right edge of the pedestrian crossing over the main road.
ZEBRA_X = (2.1, 5.1)
