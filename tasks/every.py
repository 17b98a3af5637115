"""Registers every task when imported, those too that are else registered when named: for seqio's own commands.

`seqio_cache_tasks --module_import=prompt_tuning.tasks.every --tasks=e2e_low100_s3,sst2_sample ...`
"""

from prompt_tuning.tasks import catalogue

catalogue.register_all()
