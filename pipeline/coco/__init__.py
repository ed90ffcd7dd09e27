"""COCO's annotation format and average precision, for training and evaluation alike."""
