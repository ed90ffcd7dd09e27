"""Evaluation of models on annotated pictures, of the pipeline on a synthetic video, and of trackers on MOTChallenge."""
