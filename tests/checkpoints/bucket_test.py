"""T5X checkpoints in a bucket: TensorStore's own client against a small server that speaks as much of the protocol."""
import http.server
import json
import pathlib
import re
import shutil
import threading
import urllib.parse

import jax
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.checkpoints import base, compare, convert
from tests import models


class Bucket(http.server.BaseHTTPRequestHandler):
  """Objects are the files below `root`, whatever the bucket's name."""

  root: pathlib.Path

  def log_message(self, *args):
    pass

  def answer(self, code, body=b'', **headers):
    self.send_response(code)
    for name, value in {'Content-Length': str(len(body)), **headers}.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(body)

  def do_GET(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    if url.path.endswith('/o'):
      names = (str(path.relative_to(self.root)) for path in sorted(self.root.rglob('*')) if path.is_file())
      wanted = [n for n in names if query.get('startOffset', '') <= n < query.get('endOffset', '\x7f')]
      self.answer(200, json.dumps({'items': [{'name': n} for n in wanted]}).encode(), Content_Type='application/json')
      return
    name = urllib.parse.unquote(url.path.split('/o/')[1])
    if not (self.root / name).is_file():
      self.answer(404)
      return
    data = (self.root / name).read_bytes()
    if match := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', '')):
      first, last = int(match[1]), int(match[2] or len(data) - 1)
      span = f'bytes {first}-{min(last, len(data) - 1)}/{len(data)}'
      self.answer(206, data[first:last + 1], Content_Range=span, x_goog_generation='1')
    else:
      self.answer(200, data, x_goog_generation='1')

  def do_POST(self):
    name = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))['name']
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(self.rfile.read(int(self.headers['Content-Length'])))
    self.answer(200, json.dumps({'name': name, 'generation': '1'}).encode(), Content_Type='application/json')


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
  """The folder whose files are in `gs://bucket`."""
  root = tmp_path_factory.mktemp('bucket')
  handler = type('Handler', (Bucket,), {'root': root})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TENSORSTORE_GCS_HTTP_URL', f'http://127.0.0.1:{server.server_port}')
    patch.setenv('GCE_METADATA_ROOT', '127.0.0.1:1')  # no credentials are looked for elsewhere
    yield handler
  server.shutdown()
  server.server_close()


def values(path) -> dict[str, np.ndarray]:
  """All parameters of a checkpoint, read through `load_params`."""
  source = base.open_base(path)
  shapes = {name: jax.ShapeDtypeStruct(leaf.info.shape, leaf.info.dtype)
            for name, leaf in compare.parameters(source).items()}
  return trees.flatten(base.load_params(source, trees.unflatten(shapes)))


@pytest.mark.parametrize('name', ['t5x/t5x_native_t5_1_0/checkpoint_0', 't5x/t5x_orbax/checkpoint_0'])
def test_reading(bucket, name):
  shutil.copytree(models.GOLDENS / name, bucket.root / name, dirs_exist_ok=True)
  expected, found = values(models.GOLDENS / name), values(f'gs://bucket/{name}')
  assert expected.keys() == found.keys()
  for path, x in expected.items():
    np.testing.assert_array_equal(found[path], x, err_msg=path)


def test_writing_index_last(bucket):
  source = base.open_base(models.GOLDENS / 'hf/t5_v1_1')
  convert.convert(source, 'gs://bucket/new/checkpoint_7', 't5x')
  assert sorted(path.name for path in (bucket.root / 'new').iterdir()) == ['checkpoint_7']
  again = base.open_base('gs://bucket/new/checkpoint_7')
  assert list(compare.differences(compare.parameters(source), compare.parameters(again))) == []
  with pytest.raises(FileExistsError, match='gs://bucket/new/checkpoint_7 already holds a checkpoint'):
    convert.convert(source, 'gs://bucket/new/checkpoint_7', 't5x')


def test_a_missing_chunk(bucket):
  name = 't5x/t5x_native_t5_1_0/checkpoint_0'
  shutil.copytree(models.GOLDENS / name, bucket.root / 'cut' / 'checkpoint_0', dirs_exist_ok=True)
  (bucket.root / 'cut/checkpoint_0/target.encoder.encoder_norm.scale/0').unlink()
  with pytest.raises(FileNotFoundError, match='encoder_norm.scale/0 is missing, a chunk of encoder/encoder_norm/scale'):
    base.open_base('gs://bucket/cut/checkpoint_0')


@pytest.mark.parametrize(('path', 'message'), [
    ('gs://bucket/nowhere', 'gs://bucket/nowhere holds no T5X checkpoint.*copy the folder first'),
    ('gs:/', 'does not exist'),
    ('nonsense://bucket/x', 'nonsense://bucket/x: not an address that is understood; expected .* gs://BUCKET/FOLDER'),
])
def test_what_is_not_there(bucket, path, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    base.open_base(path)
