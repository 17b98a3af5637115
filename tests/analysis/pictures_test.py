"""Plots are real pictures, the report holds all and escapes what it is given, and both appear whole or not at all."""

import base64
from html import parser
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from prompt_tuning.analysis import plots, report
from prompt_tuning.analysis.record import Histogram
from prompt_tuning.analysis.report import Section, Table

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning:matplotlib|pyparsing')
ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
HISTOGRAM = Histogram(np.linspace(-1, 2, 21), RNG.integers(0, 50, (2, 20)))
DRAW = {
    'activations': lambda path, title: plots.activations(path, HISTOGRAM, 0.3, ['$a', 'Ġpositive'], title),
    'predictivity': lambda path, title: plots.predictivity_by_layer(
        path, {'prompt': RNG.uniform(0.5, 1, (12, 300)), 'mean of $text': RNG.uniform(0.5, 0.8, (12, 300))}, title),
    'perturbation': lambda path, title: plots.perturbation(
        path, np.arange(0, 21, 5), {'skill': RNG.random((5, 5)), 'random': RNG.random((5, 5))}, title),
    'heatmap': lambda path, title: plots.heatmap(
        path, np.where(np.eye(3, 4) > 0, np.nan, RNG.random((3, 4))), list('ab$'), ['$x', 'y', '漢', 'w'], title),
}


def size(data: bytes) -> tuple[int, int]:
  """Width and height of a PNG."""
  assert data[:8] == b'\x89PNG\r\n\x1a\n'
  assert data[-8:-4] == b'IEND'
  return struct.unpack('>II', data[16:24])


@pytest.mark.parametrize('name', DRAW)
def test_plots_are_pictures(name, tmp_path):
  path = tmp_path / 'new' / f'{name}.png'
  DRAW[name](path, 'sst2: $neuron$ 漢 <b>')
  width, height = size(path.read_bytes())
  assert 300 < width < 2000
  assert 200 < height < 2000
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_fails_leaves_the_old_picture(tmp_path):
  path = tmp_path / 'a.png'
  DRAW['heatmap'](path, 'old')
  before = path.read_bytes()
  with pytest.raises(ValueError, match='same first dimension'):
    plots.perturbation(path, np.arange(3), {'skill': np.zeros((2, 5))}, 'new')
  assert path.read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 1
  with pytest.raises(ValueError, match='gs://bucket/a.png is not on a disk'):
    DRAW['heatmap']('gs://bucket/a.png', 'x')


def test_nothing_is_drawn_by_pyplot():
  """Which would choose a backend for the whole process."""
  code = ('import sys, tempfile; from tests.analysis.pictures_test import DRAW; '
          '[draw(tempfile.mkdtemp() + "/a.png", "x") for draw in DRAW.values()]; '
          'print("matplotlib.figure" in sys.modules, "matplotlib.pyplot" in sys.modules)')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=120)
  assert done.stdout.split() == ['True', 'False'], done.stderr


class Page(parser.HTMLParser):
  """Collects tags with their attributes, and text."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.text = [], ''
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


def test_report_holds_everything_and_escapes_it(tmp_path):
  picture = tmp_path / 'a.png'
  DRAW['heatmap'](picture, 'x')
  evil = '<script>alert("x")</script> & \'"'
  sections = [
      Section(evil, text=f'First {evil}\n\nSecond.', figures={evil: picture}),
      Section('Numbers', tables={evil: Table(['neuron', evil], [[3, 0.123456], [evil, np.float32(0.5)]])},
              words={'top': [(evil, 0.5), ('Ġgood', 0.25)], 'lone': [('\ud800', 1.0)]})]
  path = tmp_path / 'report' / 'index.html'
  report.write(path, evil, sections)
  page = Page(text := path.read_text(encoding='utf-8'))
  names = [tag for tag, _ in page.tags]
  assert 'script' not in names
  assert page.text.count(evil) == 9  # title twice, heading, paragraph, two captions, two cells, word
  assert names.count('p') == 4
  assert not [a for _, attrs in page.tags for a in attrs if a in ('href', 'onclick')]
  (image,) = [attrs for tag, attrs in page.tags if tag == 'img']
  assert image['alt'] == evil
  head, data = image['src'].split(',')
  assert head == 'data:image/png;base64'
  assert base64.b64decode(data) == picture.read_bytes()
  assert 'http' not in text
  for shown in ('0.1235', '0.5000', 'Ġgood (0.250)', '<td class="number">3</td>'):
    assert shown in text


def test_a_missing_picture_leaves_no_report(tmp_path):
  path = tmp_path / 'index.html'
  with pytest.raises(FileNotFoundError, match='none.png'):
    report.write(path, 'x', [Section('a', figures={'b': tmp_path / 'none.png'})])
  assert not list(tmp_path.iterdir())
