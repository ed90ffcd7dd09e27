"""Array kernels, each with a slow and plainly correct form in `ops.reference`."""
