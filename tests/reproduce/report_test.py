"""Tables beside the paper's: what a cell shows, escaping in each form, and that nothing is made up."""

import csv
import io
import re

import pytest

from prompt_tuning.reproduce import report
from prompt_tuning.reproduce.report import Cell, Plot, Report

NO_WEIGHTS = 'the checkpoint is not here'


@pytest.fixture(scope='module')
def lengths() -> Report:
  return Report(
      title='Length of the prompt', source='Lester et al. 2021, figure 3a', row_heads=('size', 'length'),
      cells=[
          Cell(('base', '1'), ('prompt',), (85.8, 86.3, 86.8), paper='91.1', tag='V:LO'),
          Cell(('base', '1'), ('model',), missing=NO_WEIGHTS, paper='94.9±0.2', tag='M'),
          Cell(('base', '20'), ('model',), missing='one run failed'),
          Cell(('base', '20'), ('prompt',), (90.0,), missing='one run failed'),
          Cell(('xxl', '1'), ('prompt',), missing=NO_WEIGHTS),
          Cell(('xxl', '20'), ('model',), text='a_b|c', digits=3),
      ],
      notes=['50% & more'], command='prompt-tuning reproduce lester2021/figure3a', plot=Plot('length', log_x=True))


def rows_of(markdown: str) -> list[list[str]]:
  return [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
          for line in markdown.splitlines() if line.startswith('|')]


def test_markdown_shows_mean_sample_deviation_the_papers_figure_and_reasons(lengths):
  text = report.markdown(lengths)
  assert rows_of(text) == [
      ['size', 'length', 'prompt', 'model'],
      ['---'] * 4,
      ['base', '1', '86.3 ± 0.5 (n=3) (paper: 91.1 [V:LO])', '-<sup>1</sup> (paper: 94.9±0.2 [M])'],
      ['base', '20', '90.0<sup>2</sup>', '-<sup>2</sup>'],
      ['xxl', '1', '-<sup>1</sup>', ''],
      ['xxl', '20', '', r'a\_b\|c'],
  ]
  assert f'1. {NO_WEIGHTS}\n2. one run failed\n' in text
  assert '[M]: from memory, unverified.' in text
  assert '[L]' not in text
  assert text.endswith('- 50% \\& more\n\n```\nprompt-tuning reproduce lester2021/figure3a\n```\n')


def test_csv_has_a_line_a_cell_with_numbers_in_full(lengths):
  lines = list(csv.DictReader(io.StringIO(report.csv(lengths))))
  assert len(lines) == len(lengths.cells)
  first = lines[0]
  assert {name: first[name] for name in ('size', 'length', 'column', 'n', 'values', 'paper', 'tag')} == {
      'size': 'base', 'length': '1', 'column': 'prompt', 'n': '3', 'values': '85.8 86.3 86.8', 'paper': '91.1',
      'tag': 'V:LO'}
  assert float(first['mean']) == pytest.approx(86.3)
  assert float(first['sd']) == pytest.approx(0.5)
  assert (lines[1]['mean'], lines[1]['sd'], lines[1]['missing']) == ('', '', NO_WEIGHTS)
  assert lines[3]['sd'] == ''


def test_latex_is_a_booktabs_table_with_everything_escaped(lengths):
  text = report.latex(lengths)
  assert r'86.3 $\pm$ 0.5 (n=3) (paper: 91.1 [V:LO]) & -\textsuperscript{1} (paper: 94.9$\pm$0.2 [M]) \\' in text
  assert r'a\_b\textbar{}c' in text
  assert r'50\% \& more' in text
  assert r'\begin{tabular}{llrr}' in text
  body = text[text.index(r'\midrule'):text.index(r'\bottomrule')]
  assert {len(re.findall(r'(?<!\\)&', line)) for line in body.splitlines()[1:] if line.strip()} == {3}
  assert text.count('{') - text.count(r'\{') == text.count('}') - text.count(r'\}')


def test_latex_and_markdown_escape_what_they_would_read():
  odd = Report('t', 's', ('#',), [Cell((r'\a{b}_^~$%',), ('<s> *x* [y](z)',), (1.0,))])
  assert r'\textbackslash{}a\{b\}\_\textasciicircum{}\textasciitilde{}\$\%' in report.latex(odd)
  head, _, row = rows_of(report.markdown(odd))
  assert head[1] == r'\<s\> \*x\* \[y\](z)'
  assert row[0] == r'\\a{b}\_^\~\$%'


def test_whole_numbers_and_no_number_without_a_value():
  many = Report('t', 's', ('size',), [Cell(('xxl',), ('total',), (11135336448.0,), digits=0)])
  assert '| xxl | 11,135,336,448 |' in report.markdown(many)
  nothing = Report('t', 's', ('size',), [Cell(('xxl',), ('prompt',))])
  assert '| xxl | -<sup>1</sup> |' in report.markdown(nothing)
  assert '1. no value, and no reason was given' in report.markdown(nothing)
  with pytest.raises(ValueError, match='nothing to draw'):
    report.plot(nothing, 'x.png')


def test_values_that_are_not_finite_are_shown_as_they_are():
  assert '| nan ± nan (n=2) |' in report.markdown(
      Report('t', 's', ('size',), [Cell(('xxl',), ('prompt',), (1.0, float('nan')))]))
  assert Cell(('a',), ('b',), (float('inf'), 1.0)).mean == float('inf')


@pytest.mark.parametrize(('text', 'number'), [
    ('71.8', 71.8), ('94.9±0.2', 94.9), ('10K', 1e4), ('1,000', 1000), ('0', 0), ('99.3 / 99.0', None), ('~90', None),
    ('', None), ('base', None)])
def test_numbers_of_the_papers_figures(text, number):
  assert report._number(text) == number


@pytest.mark.parametrize(('cells', 'message'), [
    ([Cell(('a',), ('b',), (1.0,))] * 2, 'two cells at row'),
    ([Cell(('a', 'x'), ('b',), (1.0,))], '2 parts; expected 1')])
def test_a_report_that_is_no_table(cells, message):
  with pytest.raises(ValueError, match=message):
    Report('t', 's', ('size',), cells)


def test_the_plots_x_is_a_head():
  with pytest.raises(ValueError, match="Plot.x='length'; expected one of row_heads"):
    Report('t', 's', ('size',), [], plot=Plot('length'))


def test_lines_are_columns_and_rows_that_differ_elsewhere(lengths):
  lines = report._lines(lengths)
  assert {label: [x for x, _ in points] for label, points in lines.items()} == {
      'base / prompt': ['1', '20'], 'base / model': ['1', '20'], 'xxl / prompt': ['1'], 'xxl / model': ['20']}
  one = Report('t', 's', ('size',), [Cell(('a',), ('b',), (1.0,)), Cell(('c',), ('b',), (1.0,))], plot=Plot())
  assert list(report._lines(one)) == ['b']


def test_write_leaves_whole_files_and_no_others(lengths, tmp_path):
  paths = report.write(lengths, tmp_path / 'results')
  assert [path.name for path in paths] == ['table.md', 'table.csv', 'table.tex', 'plot.png']
  assert sorted((tmp_path / 'results').iterdir()) == sorted(paths)
  assert paths[3].read_bytes().startswith(b'\x89PNG')
  assert paths[0].read_text() == report.markdown(lengths)
  # names of sizes along x, and zero on a logarithmic axis
  sizes = Report('t', 's', ('size',), [Cell((s,), ('$m$',), (1.0, 2.0)) for s in ('small', 'xxl')], plot=Plot('size'))
  steps = Report('t', 's', ('steps',), [Cell((s,), ('m',), (1.0, 2.0)) for s in ('0', '10K', '100K')],
                 plot=Plot('steps', log_x=True))
  for i, other in enumerate((sizes, steps)):
    report.plot(other, tmp_path / f'{i}.png')
    assert (tmp_path / f'{i}.png').stat().st_size > 5000
