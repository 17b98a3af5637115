"""Reading XSum: documents in both forms, addresses, and what they say when broken."""

import pytest

from prompt_tuning.tasks import xsum_files

PAGE = """[{0}]URL[{0}]
http://web.archive.org/web/2016/http://www.bbc.co.uk:80/news/uk-wales-38334966

[{0}]{1}[{0}]
One sentence tells it.

[{0}]RESTBODY[{0}]
Share this with
Email
The story begins.

It ends.
"""


@pytest.mark.parametrize(('path', 'topic'), [
    ('sport/football/33627800', 'sport'), ('sport1/hi/football/1234.stm', 'sport'), ('news/uk-30891145', 'news/uk'),
    ('news/uk-england-humber-40062271', 'news/uk'), ('news/world-us-canada-37467287', 'news/world'),
    ('news/business-35773812', 'news/business'), ('news/science-environment-21', 'news/science'),
    ('news/10138849', 'news'), ('newsbeat/article/12', 'other'),
])
def test_topics(path, topic):
  assert xsum_files.topic(f'http://web.archive.org/web/20170222202339/http://www.bbc.com:80/{path}') == topic
  assert xsum_files.topic('http://example.org/' + path) == 'other'


@pytest.mark.parametrize(('mark', 'summary'), [('SN', 'FIRST-SENTENCE'), ('XSUM', 'INTRODUCTION')])
def test_extracted_pages(tmp_path, mark, summary):
  path = tmp_path / '38334966.summary'
  path.write_text(PAGE.format(mark, summary))
  assert xsum_files.read_page(path) == (
      '38334966', 'The story begins.\nIt ends.', 'One sentence tells it.', 'news/uk')


def test_a_broken_page_says_what_it_has(tmp_path):
  (tmp_path / '1.data').write_text('[SN]URL[SN]\nx\n')
  with pytest.raises(ValueError, match=r'1\.data: expected the parts URL, .*; found URL\.'):
    xsum_files.read_page(tmp_path / '1.data')


def test_addresses_with_and_without_ids(tmp_path):
  path = tmp_path / 'urls.txt'
  path.write_text('http://www.bbc.co.uk/news/uk-11\n\n22\thttp://www.bbc.co.uk/sport/golf/story\n')
  assert xsum_files.read_topics(path) == {'11': 'news/uk', '22': 'sport'}
  path.write_text('http://www.bbc.co.uk/news/uk-11\nhttp://www.bbc.co.uk/news/uk\n')
  with pytest.raises(ValueError, match=r'urls\.txt, line 2: .* ends in no BBC id'):
    xsum_files.read_topics(path)


@pytest.mark.parametrize('line', ['{"id": "1"', '[1]', '{"id": "1", "document": "x"}',
                                  '{"id": 1, "document": "x", "summary": "y"}'])
def test_a_bad_jsonl_line_is_named(tmp_path, line):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"id": "1", "document": "x", "summary": "y", "url": "http://www.bbc.co.uk/sport/1"}\n' + line)
  rows = xsum_files.read_jsonl(path)
  assert next(rows) == ('1', 'x', 'y', 'sport')
  with pytest.raises(ValueError, match=r'x\.jsonl, line 2: expected an object with "id", "document" and "summary"'):
    next(rows)


def test_a_split_without_a_part(tmp_path):
  (tmp_path / 'split.json').write_text('{"train": []}')
  with pytest.raises(ValueError, match=r'split\.json: expected lists of ids called train, validation and test'):
    xsum_files.read_split(tmp_path / 'split.json')
