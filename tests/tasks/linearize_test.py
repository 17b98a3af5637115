"""Tables as text: the papers' formats, and that no TensorFlow is needed for them."""

import subprocess
import sys

import pytest

from prompt_tuning.tasks import linearize


def test_e2e_renames_three_keys_and_keeps_the_order():
  mr = ('name[Café Sicilia], eatType[pub], food[Fast food], priceRange[less than £20], customer rating[5 out of 5], '
        'area[city centre], familyFriendly[yes], near[The Six Bells]')
  assert linearize.linearize_e2e(mr) == (
      'name : Café Sicilia | Type : pub | food : Fast food | price : less than £20 | customer rating : 5 out of 5 | '
      'area : city centre | family friendly : yes | near : The Six Bells')
  assert linearize.linearize_e2e('area[riverside],  name[Zizzi]') == 'area : riverside | name : Zizzi'


@pytest.mark.parametrize('mr', ['', 'name', 'name[Zizzi', 'name[Zizzi] area[riverside]', 'name[Zizzi], ', 'name[]'])
def test_a_malformed_meaning_representation_is_shown(mr):
  with pytest.raises(ValueError, match='is no meaning representation; expected fields such as "name'):
    linearize.linearize_e2e(mr)


def test_an_unknown_field_is_named():
  with pytest.raises(ValueError, match="the field 'colour'; expected name, eatType"):
    linearize.linearize_e2e('name[Zizzi], colour[red]')


def test_triples():
  triples = [('Fen_Field', 'cityServed', 'Marsh'), ('Marsh', 'isPartOf', 'Fen')]
  assert linearize.linearize_webnlg(triples) == ' | Fen_Field : cityServed : Marsh | Marsh : isPartOf : Fen'
  assert linearize.linearize_dart(triples) == 'Fen_Field : cityserved : Marsh | Marsh : ispartof : Fen'


def test_files_are_read_without_tensorflow():
  code = ('import sys; from prompt_tuning.tasks import linearize, table_files, xsum_files; '
          'print([m for m in ("tensorflow", "seqio", "tensorflow_datasets") if m in sys.modules])')
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
