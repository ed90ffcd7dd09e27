"""From the detections of successive frames to tracks, and from tracks to result messages."""
