"""Tables as one line of text, as Li & Liang 2021 give them to a language model. Plain Python: no TensorFlow.

| corpus | text |
|---|---|
| E2E | `name : Blue Spice \\| Type : coffee shop \\| area : city centre`, three keys renamed |
| WebNLG | ` \\| s : p : o` for every triple: a bar leads, the first one included |
| DART | `s : relation : o` joined by ` \\| `, relations in lower case, no leading bar |

The authors' WebNLG decoding script drops the leading bar of the first table of a file and keeps it elsewhere; here
it is always there. Underscores, quotes and units of DBpedia names stay, as in their files.
"""

from collections.abc import Iterable
import re

Triple = tuple[str, str, str]  # subject, relation, object

E2E_KEYS = {  # the challenge's -> the authors' (seen in their example sources), all there are
    'name': 'name', 'eatType': 'Type', 'food': 'food', 'priceRange': 'price', 'customer rating': 'customer rating',
    'area': 'area', 'familyFriendly': 'family friendly', 'near': 'near',
}
_FIELD = re.compile(r'([^\[\],]+)\[([^\[\]]+)\]')


def linearize_e2e(mr: str) -> str:
  """`name[X], eatType[Y]` -> `name : X | Type : Y`, fields in their order.

  Raises:
    ValueError: `mr` is no list of `key[value]`, or has an unknown key.
  """
  fields = _FIELD.findall(mr)
  if not fields or re.sub(r'\s', '', mr) != re.sub(r'\s', '', ','.join(f'{k}[{v}]' for k, v in fields)):
    raise ValueError(f'{mr!r} is no meaning representation; expected fields such as "name[Blue Spice], '
                     'area[riverside]".')
  fields = [(key.strip(), value.strip()) for key, value in fields]
  if unknown := [key for key, _ in fields if key not in E2E_KEYS]:
    raise ValueError(f'{mr!r} has the field {unknown[0]!r}; expected {", ".join(E2E_KEYS)}.')
  return ' | '.join(f'{E2E_KEYS[key]} : {value}' for key, value in fields)


def linearize_webnlg(triples: Iterable[Triple]) -> str:
  """Triples -> ` | s : p : o | s : p : o`, with the leading bar."""
  return ''.join(f' | {s} : {p} : {o}' for s, p, o in triples)


def linearize_dart(triples: Iterable[Triple]) -> str:
  """Triples -> `s : relation : o | s : relation : o`, relations in lower case."""
  return ' | '.join(f'{s} : {relation.lower()} : {o}' for s, relation, o in triples)
