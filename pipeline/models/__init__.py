"""The registry of models, and what a weights file says of itself. Nothing here imports torch."""
