"""Array kernels, each with a slow and plainly correct reference in `ops.reference`, and the tracker's step.

Importing this package sets the cache folders of numba and torch; it imports neither of them.
"""

from ops.cache import set_cache_folders

set_cache_folders()
