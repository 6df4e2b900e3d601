"""What tests of whole runs share."""

import pytest

from tests import tiny


@pytest.fixture(scope='module')
def cached_programs(tmp_path_factory):
  """The folder of a compile cache for the runs of a test file."""
  folder = tmp_path_factory.mktemp('xla')
  with tiny.compile_cache(folder):
    yield folder


@pytest.fixture(scope='module')
def source(tmp_path_factory, cached_programs):
  """data.source of a text; a run on it keeps its programs."""
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')
