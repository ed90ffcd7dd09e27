"""COCO's annotation format and average precision, shared by training and evaluation."""
