"""What the tests of training share."""

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest


@pytest.fixture(scope='module')
def compile_once(tmp_path_factory):
  """Where most runs are the same program, the second takes it from disk."""
  options = {'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
             'jax_persistent_cache_min_compile_time_secs': 0.5, 'jax_persistent_cache_min_entry_size_bytes': 0}
  before = {name: getattr(jax.config, name) for name in options}
  for values in (options, before):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if values is options:
      yield
