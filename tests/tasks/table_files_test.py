"""Reading the original table-to-text files, whole and broken."""

import pathlib

import pytest

from prompt_tuning.tasks import linearize, table_files

DATA = pathlib.Path(__file__).parents[1] / 'goldens' / 'data'
ENTRY = ('<benchmark><entries><entry category="Food" eid="Id1"><modifiedtripleset><mtriple>{}</mtriple>'
         '</modifiedtripleset><lex comment="good">{}</lex></entry></entries></benchmark>')


def test_e2e_groups_references_by_meaning_representation():
  rows = table_files.read_e2e(DATA / 'e2e' / 'testset_w_refs.csv')
  assert [len(row.references) for row in rows] == [2, 2, 3, 3, 1, 2]
  assert rows[0] == table_files.Row('name : Blue Spice | Type : coffee shop | area : city centre', (
      'A coffee shop in the city centre area called Blue Spice.', 'Blue Spice is a coffee shop in city centre.'))
  assert [len(pair.references) for pair in table_files.pairs(rows)] == [1] * 13


def test_webnlg_training_takes_good_references_alone():
  path = DATA / 'webnlg/train/1triples/1triple_allSolutions_Airport_train_challenge.xml'
  rows = table_files.read_xml(path, linearize.linearize_webnlg)
  assert [(row.source, len(row.references), row.group) for row in rows] == [
      (' | Fen_Field : cityServed : "Lower Marsh"', 3, 'Airport'), (' | Fen_Field : elevation : 12.0', 1, 'Airport')]
  good = table_files.read_xml(path, linearize.linearize_webnlg, only_good=True)
  assert [row.references for row in good] == [
      ('Fen Field serves Lower Marsh.', 'The airport of Lower Marsh is Fen Field.')]


def test_dart_from_json_and_xml():
  rows = table_files.read_dart_json(DATA / 'dart/dart-v1.1.1-full-train.json')
  assert rows[0].source == 'Fen Rovers : coach : B. Adder | Fen Rovers : home ground : Reed Park'
  assert [len(row.references) for row in rows] == [2, 1]
  rows = table_files.read_xml(DATA / 'dart/dart-v1.1.1-full-test.xml', linearize.linearize_dart)
  # Entries are not merged, empty references are dropped.
  assert [(row.source, row.references) for row in rows] == [
      ('Skerry : height : 31 m', ('Skerry is 31 m high.',)), ('Skerry : height : 31 m', ('At 31 m stands Skerry.',))]


@pytest.mark.parametrize(('text', 'message'), [
    ('', r'line 0: the header is \[\]; expected mr,ref'),
    ('MR\nname[Zizzi]\n', r"line 1: the header is \['MR'\]; expected mr,ref .testset_w_refs"),
    ('mr,ref\nname[Zizzi],Zizzi.\nname[Zizzi]\n', 'line 3: 1 columns; expected two'),
    ('mr,ref\nname[Zizzi],Zizzi.\nZizzi,Zizzi.\n', "line 3: 'Zizzi' is no meaning representation"),
    ('mr,ref\n,Zizzi.\n', "line 2: '' is no meaning representation"),
    ('mr,ref\nname[Zizzi],\n', 'line 2: the reference is empty'),
    ('mr,ref\nname[Zizzi],"Zizzi\n', 'line 2: unexpected end of data'),
    ('\xff', 'not UTF-8 text'),
])
def test_a_bad_csv_line_is_named(tmp_path, text, message):
  (tmp_path / 'bad.csv').write_bytes(text.encode('latin-1'))
  with pytest.raises(ValueError, match=rf'bad\.csv[,:] {message}'):
    table_files.read_e2e(tmp_path / 'bad.csv')


@pytest.mark.parametrize(('text', 'message'), [
    ('<benchmark><entries>', 'malformed XML, no element found: line 1'),
    ('<benchmark/>', 'no <entry> in <entries>'),
    (ENTRY.format('a | b', 'x'), r"entry 1 \(eid Id1\): \['a', 'b'\] is no triple"),
    (ENTRY.format('a | b | c', ''), r'entry 1 \(eid Id1\): no reference text'),
    (ENTRY.replace('<mtriple>{}</mtriple>', '{}').format('', 'x'), r'entry 1 \(eid Id1\): the table is empty'),
])
def test_a_bad_xml_entry_is_named(tmp_path, text, message):
  (tmp_path / 'bad.xml').write_text(text)
  with pytest.raises(ValueError, match=rf'bad\.xml[,:] {message}'):
    table_files.read_xml(tmp_path / 'bad.xml', linearize.linearize_dart)


@pytest.mark.parametrize(('text', 'message'), [
    ('[{]', 'malformed JSON, Expecting property name'),
    ('{}', 'expected a list of tables'),
    ('[{"tripleset": []}]', 'element 1: expected "tripleset"'),
    ('[{"tripleset": [], "annotations": [{"text": "x"}]}]', 'element 1: the table is empty'),
    ('[{"tripleset": [["a", "b", "c"]], "annotations": []}]', 'element 1: no reference text'),
    ('[{"tripleset": [["a", "b", 3]], "annotations": [{"text": "x"}]}]', r"element 1: \['a', 'b', 3\] is no triple"),
])
def test_a_bad_json_element_is_named(tmp_path, text, message):
  (tmp_path / 'bad.json').write_text(text)
  with pytest.raises(ValueError, match=rf'bad\.json[,:] {message}'):
    table_files.read_dart_json(tmp_path / 'bad.json')
