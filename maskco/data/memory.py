"""Memory of loading workers."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Lets this process keep up to 256 MiB that it frees, where the C library is glibc.

    glibc gives the large blocks of images back to the system as soon as they are freed, and the next image's are
    fetched anew, page by page: about a sixth of a loading worker's time. Its own adaption stops short of whole batches.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
    mallopt(M_TRIM_THRESHOLD, 256 << 20)
