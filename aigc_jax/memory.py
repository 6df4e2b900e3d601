"""How the C library hands memory back, which decides how fast training on a CPU is."""

import ctypes
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's names in malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def keep_freed_memory():
  """Keeps freed blocks up to 1 GiB for the next allocation; where the C library is not glibc, does nothing.

  XLA's CPU backend allocates its temporary buffer anew at every step. Over 32 MiB glibc maps fresh pages for it,
  which the kernel zeroes one fault at a time: a third of the CPU time of a small Transformer's step.
  """
  mallopt = sys.platform == 'linux' and getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt:
    mallopt(MMAP_THRESHOLD, 1 << 30)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
