"""Processes of a job find each other, agree and end together; what goes wrong is one message within bounded time."""

import argparse
import concurrent.futures
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest

from prompt_tuning import hosts, link

ROOT = pathlib.Path(__file__).parent.parent


def free_port() -> int:
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


def flags(*given) -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  hosts.add_flags(parser)
  return parser.parse_args(given)


class Member:
  """A link of a job in this process, and what it was told of losses."""

  made: ClassVar[list] = []

  def __init__(self, port, count, index, timeout=20.0, silence=20.0):
    self.losses, self.told = [], threading.Event()
    self.link = link.Link(
        f'127.0.0.1:{port}', count, index, timeout=timeout, silence=silence, on_loss=self._lose)
    self.made.append(self)

  def _lose(self, text):
    self.losses.append(text)
    self.told.set()

  def die(self):
    """As the kernel does for a process that is killed."""
    self.link._closed.set()
    for peer in self.link._peers.values():
      peer.close()


@pytest.fixture(autouse=True)
def closed():
  """No line outlives its test."""
  yield
  while Member.made:
    Member.made.pop().die()


def together(*calls):
  """Results or errors of calls made at the same time."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return [f.exception() or f.result() for f in [pool.submit(call) for call in calls]]


def job(count, **kwargs):
  port = free_port()
  return together(*[lambda i=i: Member(port, count, i, **kwargs) for i in range(count)])


def test_what_each_says_in_order_and_goodbye():
  members = job(3)
  assert len({member.link.port for member in members}) == 1
  for value in ('a', 'b'):
    found = together(*[lambda m=m, i=i, v=value: m.link.gather([v, i]) for i, m in enumerate(members)])
    assert found == [[[value, 0], [value, 1], [value, 2]]] * 3
  for member in members[::-1]:
    member.link.close()
    member.die()
  time.sleep(0.2)
  assert [member.losses for member in members] == [[], [], []]


@pytest.mark.parametrize('dead', [0, 1])
def test_all_are_told_who_is_gone(dead):
  members = job(3)
  members[dead].die()
  for member in members[:dead] + members[dead + 1:]:
    assert member.told.wait(10)
    assert len(member.losses) == 1
    assert member.losses[0].startswith(f'Process {dead} of 3 (')
    assert 'is gone' in member.losses[0]
    with pytest.raises(link.LinkError, match='is gone'):
      member.link.gather(0)


def test_silence_is_death_and_a_failure_is_told_on(monkeypatch):
  monkeypatch.setattr(link, 'BEAT_SECONDS', 0.1)
  members = job(2, silence=1.0)
  time.sleep(2)
  assert members[0].losses == []
  members[1].link._closed.set()  # beats no more
  assert members[0].told.wait(10)
  assert 'it was silent for 1 s' in members[0].losses[0]
  members = job(3)
  members[2].link.fail('a reason')
  for member in members[:2]:
    assert member.told.wait(10)
    assert member.losses[0].startswith('Process 2 of 3 (')
    assert member.losses[0].endswith('failed: a reason')


def test_who_does_not_belong_is_refused_and_the_job_goes_on():
  port = free_port()
  with concurrent.futures.ThreadPoolExecutor() as pool:
    first = pool.submit(Member, port, 3, 0)
    second = pool.submit(Member, port, 3, 1)
    with pytest.raises(link.LinkError, match='--process_index=3 of --process_count=4, but process 0 expects 3'):
      Member(port, 4, 3)
    while not second.running():
      time.sleep(0.05)
    time.sleep(0.5)
    with pytest.raises(link.LinkError, match=r'--process_index=1 has come already, from .*pid'):
      Member(port, 3, 1)
    stranger = socket.create_connection(('127.0.0.1', port))
    stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
    third = pool.submit(Member, port, 3, 2)
    assert [m.result().link.index for m in (first, second, third)] == [0, 1, 2]
    stranger.close()


def test_who_does_not_come_is_named_to_all():
  port = free_port()
  errors = together(lambda: Member(port, 3, 0, timeout=2), lambda: Member(port, 3, 1, timeout=20))
  assert str(errors[0]).startswith(f'Of 3 processes 2 did not come to 127.0.0.1:{port} within 2 s.')
  assert str(errors[1]).startswith(f'Process 0 at 127.0.0.1:{port} says: Of 3 processes 2 did not come')


def test_a_port_in_use_and_a_coordinator_that_does_not_answer():
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(link.LinkError, match=rf'process 0 cannot listen on port {port} \(Address already in use\)'):
      Member(port, 2, 0)
    began = time.monotonic()
    with pytest.raises(link.LinkError, match='no answer of process 0 within 1 s; what listens there is no process of'):
      Member(port, 2, 1, timeout=1)
  with pytest.raises(link.LinkError, match=r'no answer of process 0 within 1 s; the last attempt: Connection refused'):
    Member(port, 2, 1, timeout=1)
  with pytest.raises(link.LinkError, match=rf'found on 127.0.0.1, but its port {port}.*cannot be reached.*refused'):
    link.wait_for('127.0.0.1', port, timeout=0.5)
  assert time.monotonic() - began < 15


@pytest.fixture
def alone(monkeypatch):
  """No cluster around, whatever runs the tests."""
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_', 'TPU_', 'JAX_COORDINATOR')):
      monkeypatch.delenv(name)


def test_flags_that_do_not_make_a_job(alone):
  hosts.start(flags())
  hosts.start(flags('--coordinator_address=localhost:8476', '--process_count=1', '--process_index=0'))
  assert not hosts.several()
  assert hosts.is_first()
  with pytest.raises(ValueError, match='No --coordinator_address, --process_count, --process_index, and this is not'):
    hosts.start(flags('--multiprocess'))
  with pytest.raises(ValueError, match='No --process_index, and this is not one of a TPU pod, SLURM.*Give all three'):
    hosts.start(flags('--coordinator_address=localhost:8476', '--process_count=2'))
  with pytest.raises(ValueError, match='--process_index=2 of --process_count=2: expected one from 0 to 1'):
    hosts.start(flags('--coordinator_address=localhost:8476', '--process_count=2', '--process_index=2'))
  with pytest.raises(link.LinkError, match='--coordinator_address=8476: expected HOST:PORT'):
    hosts.start(flags('--coordinator_address=8476', '--process_count=2', '--process_index=1'))


SLURM = {'SLURM_JOB_ID': '4096', 'SLURM_STEP_NODELIST': 'node[3-4]', 'SLURM_NTASKS': '16', 'SLURM_PROCID': '9',
         'SLURM_LOCALID': '1'}
OPEN_MPI = {'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.0.0.7:34911', 'OMPI_COMM_WORLD_SIZE': '4',
            'OMPI_COMM_WORLD_RANK': '3', 'OMPI_COMM_WORLD_LOCAL_RANK': '0'}


@pytest.mark.parametrize(('environment', 'expected'), [
    (SLURM, ('node3:61440', 16, 9, [1])), (OPEN_MPI, ('10.0.0.7:61441', 4, 3, [0]))])
def test_the_environment_says_what_flags_do_not(alone, monkeypatch, environment, expected):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  none = dict.fromkeys(('coordinator_address', 'process_count', 'process_index'))
  assert hosts._completed(none, 5) == expected
  assert hosts._completed({**none, 'coordinator_address': 'other:1'}, 5) == ('other:1', *expected[1:])
  monkeypatch.setenv(next(name for name in environment if name.endswith(('NTASKS', 'SIZE'))), 'many')
  with pytest.raises(ValueError, match=r"could not be read from the environment \(ValueError.*'many'"):
    hosts._completed(none, 5)


def test_alone_there_is_nothing_to_agree_on():
  hosts.agree(lambda: 1 / 0)
  assert hosts.gather([1]) == [[1]]
  assert hosts.completed({'shards': [1, None]}) == {'shards': [1, None]}


def test_what_is_missing_is_taken_from_another():
  here, there = {'a': [None, {'b': 2}], 'c': 1}, {'a': [{'b': 3}, None], 'c': 1}
  assert hosts._merged(here, there) == {'a': [{'b': 3}, {'b': 2}], 'c': 1}


CHILD = """
import argparse, os, sys, time
from prompt_tuning import hosts
parser = argparse.ArgumentParser()
hosts.add_flags(parser)
flags = parser.parse_args()
hosts.start(flags)
import jax
i = jax.process_index()
hosts.agree(lambda: {'configuration': 'A = 1', 'data': 'rows'})
assert hosts.completed([i or None, None if i else 7]) == [1, 7]
try:
  hosts.agree(lambda: {'configuration': f'A = 1\\nB = {i}', 'data': 'rows'})
except hosts.DisagreementError as error:
  print(error, flush=True)
hosts.advise(lambda: 'Last words.')
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize('dead', [0, 1])
def test_two_processes_with_jax_disagree_and_lose_each_other(dead):
  port = free_port()
  processes = [subprocess.Popen(
      [sys.executable, '-c', CHILD, f'--coordinator_address=127.0.0.1:{port}', '--process_count=2',
       f'--process_index={i}'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''}) for i in range(2)]
  try:
    for process in processes:
      said = [process.stdout.readline() for _ in range(5)]
      host = socket.gethostname()
      assert said[0].startswith(f'Process 1 on {host} differs from process 0 on {host} in configuration. Start all')
      assert said[1:] == ['configuration:\n', '  -B = 0\n', '  +B = 1\n', 'ready\n']
    processes[dead].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, err = processes[1 - dead].communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert processes[1 - dead].returncode == 1, err
    assert f'prompt-tuning: Process {dead} of 2 (' in err
    assert 'This process ends too. Last words.' in err
  finally:
    for process in processes:
      process.kill()
      process.communicate()
