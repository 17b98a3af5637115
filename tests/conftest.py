"""Eight simulated devices for every test, and what the tests share."""

import os

# Compile quickly rather than well: most of a test's time is compilation.
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true', '--xla_cpu_use_fusion_emitters=false'])
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
