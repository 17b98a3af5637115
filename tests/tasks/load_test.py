"""Names, and what loading one costs."""

import subprocess
import sys
import textwrap

import pytest

from prompt_tuning import tasks

NAMES = {
    'taskless_glue_rte_v002', 'taskless_glue_rte_v200', 'taskless_glue_sst2_v002', 'taskless_glue_sst2_v200',
    'taskless_super_glue_boolq_v102', 'taskless_super_glue_cb_v102', 'taskless_super_glue_wsc_v102',
}


@pytest.mark.parametrize(('name', 'near'), [
    ('sst2_sampel', 'sst2_sample'),
    ('taskless_superglue_cb_v102', 'taskless_super_glue_cb_v102'),
    ('super_glue_bolq_v102', 'super_glue_boolq_v102'),
])
def test_an_unknown_name_is_answered_with_near_ones(name, near):
  with pytest.raises(ValueError, match=f"no task or mixture '{name}'.*{near}"):
    tasks.load(name)


def test_loading_needs_no_network_and_importing_the_package_no_tensorflow():
  script = textwrap.dedent(f'''
      import socket, sys
      def refuse(*args, **kwargs):
        raise AssertionError('a connection was tried')
      socket.socket.connect = socket.getaddrinfo = refuse
      from prompt_tuning import tasks
      assert not {{'seqio', 'tensorflow'}} & set(sys.modules), 'importing prompt_tuning.tasks is not cheap'
      import seqio
      for name in {sorted(NAMES)}:
        task = tasks.load(name)
        assert isinstance(task.source, seqio.TfdsDataSource)
        assert set(task.splits) == {{'train', 'validation', 'test'}}
        print(task.source.tfds_dataset.name)
  ''')
  run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr
  assert run.stdout.split() == [
      'glue/rte:1.0.0', 'glue/rte:2.0.0', 'glue/sst2:1.0.0', 'glue/sst2:2.0.0',
      'super_glue/boolq:1.0.2', 'super_glue/cb:1.0.2', 'super_glue/wsc.fixed:1.0.2']
