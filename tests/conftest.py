"""Eight simulated devices for every test, and what the tests share."""

import atexit
import os
import shutil
import tempfile

# Compile quickly rather than well: most of a test's time is compilation.
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true', '--xla_cpu_use_fusion_emitters=false'])
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# The command line keeps compiled programs: not in the user's folder, and of this process and those it starts alone.
os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='prompt_tuning_tests_')
atexit.register(shutil.rmtree, os.environ['XDG_CACHE_HOME'], ignore_errors=True)

# Files of few tests that take minutes: begun first, or one process would be left alone with them at the end.
LONG = ('multihost_test', 'interrupted_test', 'learns_test', 'command_test', 'bench_test', 'bench_driver_test',
        'population_step_test', 'population_test', 'collectives_test', 'sharding_test', 'batching_run_test')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.stem not in LONG)
