"""What a person can put right: each error is one line that says what, where and what would be right."""

import difflib


class AigcError(Exception):
  """An error for people, not a bug: the command line prints its one line and ends with `status`."""

  status = 1


class UsageError(AigcError):
  """A wrong command, config or folder."""

  status = 64


class DataError(AigcError):
  """Data that cannot be used, or numbers that are not finite."""

  status = 65


class StorageError(AigcError):
  """Files that cannot be written or read back whole."""

  status = 74


class Interrupted(AigcError):
  """Stopped by a signal; what was reached is saved and can be resumed."""

  status = 75


def listed(names):
  return ', '.join(str(name) for name in names)


def nearest(name, names):
  """'did you mean X? ' or ''."""
  close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
  return f'did you mean {close[0]!r}? ' if close else ''
