"""The model registry and the metadata of weights files. Nothing here imports torch."""
