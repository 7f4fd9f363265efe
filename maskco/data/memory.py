"""Memory of loading workers."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Lets this process keep up to 256 MiB that it frees, where the C library is glibc.

    glibc returns the large blocks of images to the system as soon as they are freed. The next image's are fetched
    again, page by page, which takes about a sixth of a loading worker's time. glibc adapts, but not up to whole
    batches.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
    mallopt(M_TRIM_THRESHOLD, 256 << 20)
