"""Memory that is free goes back to the system, so that one block after another takes no more."""

import ctypes
import platform

# From glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 1 << 20


def return_large_tensors() -> None:
    """From now on, have memory of tensors from 1 MiB go back to the system once they are freed.

    By itself, glibc raises the size from which it does so up to 32 MiB as large pieces are freed.
    Weights of a block then lie in the heaps of the threads that read them, with holes that are
    never given back. The setting is one of the process and stays. Other C libraries are left as
    they are.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)


def return_free_memory() -> None:
    """Give what is free in glibc's heaps back to the system now."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
