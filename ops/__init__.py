"""Array kernels, each with a slow and plainly correct reference in `ops.reference`, and the tracker's step."""
