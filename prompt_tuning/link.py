"""A line between the processes of a job: who is there, what each has to say, and who is gone.

Process 0 listens, the others stay connected to it; messages are lines of JSON. A process that is killed closes its
connection, so all others know within moments, by name; a host that vanishes is silent, which is death after a while.
jax's own service would end them from C++, minutes later and without a name. Only the standard library is used.
"""

from collections.abc import Callable
import json
import os
import queue
import socket
import threading
import time
from typing import Any

BEAT_SECONDS = 1.0


class LinkError(OSError):
  """The processes of a job could not find each other, or one of them is gone; the message says what to do."""


class _Peer:
  """One end of a connection."""

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._lines = connection.makefile('rb')
    self._lock = threading.Lock()
    self.name, self.bye = '', False

  def send(self, **message: Any) -> None:
    """Sends one message; a peer that is gone is noticed by who reads from it."""
    try:
      with self._lock:
        self._connection.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      pass

  def read(self, seconds: float) -> dict[str, Any] | None:
    """The next message; None at the end, or after so many seconds of silence, or if it is none of ours."""
    try:
      self._connection.settimeout(max(seconds, 0.01))
      message = json.loads(self._lines.readline())
      return message if isinstance(message, dict) else None
    except (OSError, ValueError):
      return None

  def finish(self) -> None:
    """Nothing more will be sent."""
    try:
      self._connection.shutdown(socket.SHUT_WR)
    except OSError:
      pass

  def close(self) -> None:
    for end in (lambda: self._connection.shutdown(socket.SHUT_RDWR), self._lines.close, self._connection.close):
      try:
        end()
      except OSError:
        pass


class Link:
  """The line of one process; made when all are there."""

  def __init__(
      self, address: str, count: int, index: int, *, timeout: float, silence: float,
      on_loss: Callable[[str], None]):
    """Waits for all processes.

    Args:
      address: HOST:PORT of process 0.
      count, index: processes of the job, and which this is.
      timeout: seconds to wait for the others.
      silence: seconds without a sign of life after which a process counts as gone.
      on_loss: called from a thread, once, with what happened to which process.

    Raises:
      LinkError: the port is in use, there is no answer, or somebody has not come.
    """
    self._count, self.index, self._silence, self._on_loss = count, index, silence, on_loss
    self._peers: dict[int, _Peer] = {}
    self._gathering: dict[str, dict[int, Any]] = {}
    self._gathered: queue.Queue = queue.Queue()
    self._lock, self._closed, self._rounds = threading.Lock(), threading.Event(), 0
    self.lost: str | None = None
    host, _, port = address.rpartition(':')
    deadline = time.monotonic() + timeout
    me = f'{socket.gethostname()}, pid {os.getpid()}'
    if index == 0:
      self.port = self._listen(address, int(port), deadline, timeout)
    else:
      self.port = self._connect(host.strip('[]'), int(port), me, deadline, timeout)
    for number, peer in self._peers.items():
      threading.Thread(target=self._read, args=(number, peer), daemon=True, name=f'link-{number}').start()
    threading.Thread(target=self._beat, daemon=True, name='link-beat').start()

  # --- Finding each other.
  def _listen(self, address: str, port: int, deadline: float, timeout: float) -> int:
    """Takes everybody in, then tells them on which port jax's coordinator will listen."""
    dual = socket.has_dualstack_ipv6()
    try:
      server = socket.create_server(
          ('', port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
      raise LinkError(f'--coordinator_address={address}: process 0 cannot listen on port {port} '
                      f'({os.strerror(error.errno)}). Choose a free port, the same for all processes.') from error
    with server:
      while missing := [i for i in range(1, self._count) if i not in self._peers]:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
          peer = _Peer(server.accept()[0])
        except OSError as error:
          text = (f'Of {self._count} processes {", ".join(map(str, missing))} did not come to {address} within '
                  f'{timeout:.0f} s. Look at their output, or raise --initialization_timeout.')
          for other in self._peers.values():
            other.send(refused=text)
            other.close()
          raise LinkError(text) from error
        self._admit(peer, min(deadline, time.monotonic() + 5))
    with socket.create_server(('', 0)) as free:  # not in use by anybody; jax takes it next
      port = free.getsockname()[1]
    for peer in self._peers.values():
      peer.send(go=port)
    return port

  def _admit(self, peer: _Peer, deadline: float) -> None:
    hello = peer.read(deadline - time.monotonic())
    if hello is None or 'hello' not in hello:  # none of ours
      peer.close()
      return
    number, count, peer.name = hello['hello'], hello['of'], hello['name']
    refused = None
    if count != self._count or not 0 < number < self._count:
      refused = (f'It is --process_index={number} of --process_count={count}, but process 0 expects {self._count} '
                 'processes, itself included. Start all with the same --process_count.')
    elif number in self._peers:
      refused = (f'--process_index={number} has come already, from {self._peers[number].name}. Give every process an '
                 f'index of its own, from 0 to {self._count - 1}.')
    if refused is None:
      self._peers[number] = peer
      return
    peer.send(refused=refused)
    peer.close()

  def _connect(self, host: str, port: int, me: str, deadline: float, timeout: float) -> int:
    """Returns the port of jax's coordinator."""
    said = ''
    while (left := deadline - time.monotonic()) > 0:
      try:
        peer = _Peer(socket.create_connection((host, port), timeout=left))
      except OSError as error:
        said = f'; the last attempt: {error.strerror or error}'
        time.sleep(min(0.5, max(left, 0)))
        continue
      peer.send(hello=self.index, of=self._count, name=me)
      answer = peer.read(left + 5)  # process 0 may have begun to wait later
      if answer and 'go' in answer:
        peer.name = host
        self._peers[0] = peer
        return answer['go']
      peer.close()
      if answer and 'refused' in answer:
        raise LinkError(f'Process 0 at {host}:{port} says: {answer["refused"]}')
      said = '; what listens there is no process of this job, or it ended'
      time.sleep(0.5)
    raise LinkError(
        f'--coordinator_address={host}:{port}: no answer of process 0 within {timeout:.0f} s{said}. Is it running '
        'there, and can the port be reached from here? It may wait longer: --initialization_timeout.')

  # --- While they work.
  def _read(self, number: int, peer: _Peer) -> None:
    while (message := peer.read(self._silence)) is not None:
      if 'gather' in message:
        self._collect(message['gather'], number, message['value'])
      elif 'gathered' in message:
        self._gathered.put(message['gathered'])
      elif 'lost' in message:
        self._lose(message['lost'], None)
      elif 'failed' in message:
        self._lose(f'{self._called(number)} failed: {message["failed"]}', number)
      elif 'bye' in message:
        peer.bye = True
    peer.close()
    if not peer.bye:
      self._lose(f'{self._called(number)} is gone: its connection was closed, or it was silent for '
                 f'{self._silence:.0f} s', number)

  def _called(self, number: int) -> str:
    return f'Process {number} of {self._count} ({self._peers[number].name})'

  def _lose(self, text: str, number: int | None) -> None:
    with self._lock:
      if self.lost is not None or self._closed.is_set():
        return
      self.lost = text
    if self.index == 0:
      for other, peer in self._peers.items():
        if other != number:
          peer.send(lost=text)
    self._gathered.put(None)
    self._on_loss(text)

  def _beat(self) -> None:
    while not self._closed.wait(BEAT_SECONDS):
      for peer in self._peers.values():
        peer.send()

  def gather(self, value: Any) -> list[Any]:
    """What every process gave for `value`, JSON, in their order. All call it in the same order; waits for the last.

    Raises:
      LinkError: one of them is gone.
    """
    self._rounds += 1
    tag = str(self._rounds)
    if self.index == 0:
      self._collect(tag, 0, value)
    else:
      self._peers[0].send(gather=tag, value=value)
    values = self._gathered.get()
    if values is None:
      self._gathered.put(None)
      raise LinkError(self.lost)
    return values

  def _collect(self, tag: str, number: int, value: Any) -> None:
    with self._lock:
      values = self._gathering.setdefault(tag, {})
      values[number] = value
      if len(values) < self._count:
        return
      del self._gathering[tag]
    found = [values[i] for i in range(self._count)]
    for peer in self._peers.values():
      peer.send(gathered=found)
    self._gathered.put(found)

  # --- The end.
  def fail(self, text: str) -> None:
    """Tells the others that this process ends with an error, if it has not taken leave."""
    if self._closed.is_set():
      return
    self._closed.set()
    for peer in self._peers.values():
      peer.send(failed=text)
      peer.finish()

  def close(self) -> None:
    """Tells the others that this process has done its part."""
    self._closed.set()
    for peer in self._peers.values():
      peer.send(bye=True)


def parse(address: str) -> tuple[str, int]:
  """HOST:PORT as its parts.

  Raises:
    LinkError: it is something else.
  """
  host, colon, port = address.rpartition(':')
  if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
    raise LinkError(f'--coordinator_address={address}: expected HOST:PORT of process 0, such as 10.0.0.1:8476.')
  return host.strip('[]'), int(port)


def wait_for(host: str, port: int, timeout: float) -> None:
  """Returns when somebody listens there.

  Raises:
    LinkError: nobody can be reached within `timeout` seconds.
  """
  deadline = time.monotonic() + timeout
  while True:
    try:
      socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.01)).close()
      return
    except OSError as error:
      if time.monotonic() > deadline:
        raise LinkError(f'Process 0 was found on {host}, but its port {port}, which it took for jax, cannot be reached '
                        f'({error.strerror or error}). Let the processes reach all ports of each other.') from error
      time.sleep(0.2)
