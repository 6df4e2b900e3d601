"""How the C library hands memory back, which decides how fast training on a CPU is."""

import ctypes
import sys

# glibc's names in malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8


def keep_freed_memory():
  """Keeps freed blocks up to 1 GiB for the next allocation; where the C library is not glibc, does nothing.

  XLA's CPU backend allocates its temporary buffer anew at every step. Over 32 MiB glibc maps fresh pages for it,
  which the kernel zeroes one fault at a time: a third of the CPU time of a small Transformer's step. Over 64 MiB it
  does so in every arena but the first: hence one arena. A thread keeps the arena that it began with, so this is to be
  called before JAX starts its own.
  """
  mallopt = sys.platform == 'linux' and getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt:
    mallopt(MMAP_THRESHOLD, 1 << 30)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    mallopt(ARENA_MAX, 1)
