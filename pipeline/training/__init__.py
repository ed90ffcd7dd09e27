"""Training of the registered models on data in COCO's format."""
