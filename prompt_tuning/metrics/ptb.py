"""Words as COCO's caption metrics see them: Penn Treebank tokens, lower-cased, punctuation dropped.

The E2E challenge scores METEOR, ROUGE-L and CIDEr on the output of Stanford's PTBTokenizer (CoreNLP 3.4.1, a Java
program) less the punctuation marks. This is that tokenizer's behaviour on English prose as one regular expression, so
that no Java is needed: equal on all 9,365 references of E2E's development and test sets and on 99% of 6,959 outputs
for DART. What it leaves out is rare there: markup, addresses, emoticons, units stuck to numbers, most abbreviations.
"""

import functools
import re

# Brackets stay: COCO's list has `-LRB-`, but the words it is held against are in lower case.
PUNCTUATION = frozenset(["'", '"', '`', '.', '?', '!', ',', ':', '-', '--', '...', ';'])

_TITLES = 'mr mrs ms dr prof st gen col capt lt sgt rev hon gov sen rep'.split()
_ENDINGS = 'jr sr inc ltd co corp bros etc vs ave blvd rd jan feb mar apr jun jul aug sep sept oct nov dec'.split()
_MARKS = str.maketrans({'\u2018': "'", '\u2019': "'", '\u201c': '"', '\u201d': '"', '\u2013': ' - ', '\u2014': ' - ',
                        '\u2026': '...'})
_CLITIC = r"(?:'(?:s|m|d|re|ve|ll)|n't)(?!\w)"
_LETTER = rf'(?!{_CLITIC})(?:[^\W_]|[\u0300-\u036f])'
_WORD = re.compile(rf"""
    (?<!\w)(?:[a-z]\.)+(?![^\W_])              # p.m.  j.
  | (?:{'|'.join(_TITLES)})\.(?=\s+\S)         # st. but not at the end of the text
  | (?:{'|'.join(_ENDINGS)})\.
  | {_CLITIC}
  | can(?=not\b)
  | (?<![\w.)])-?\d+(?:[.,:]\d+)+(?![^\W_])    # 1,000.5  -3.5  12:30
  | (?<![\w.)])-\d+(?![^\W_])
  | {_LETTER}(?:(?!{_CLITIC})['./&-]?{_LETTER})*(?:\.(?=,))?  # family-friendly
  | \.\.\. | -+ | \S
""", re.VERBOSE)


# As the Stanford tokenizer writes them; METEOR normalises its input again and sees the difference.
_SPELLING = {'*': r'\*', '(': '-lrb-', ')': '-rrb-', '[': '-lsb-', ']': '-rsb-', '{': '-lcb-', '}': '-rcb-',
             '\u00a3': '#', '\u20ac': '$'}


@functools.lru_cache(maxsize=2**16)
def tokenize(text: str) -> tuple[str, ...]:
  """The words of a text."""
  words = _WORD.findall(text.lower().replace('&amp;', '&').translate(_MARKS))
  return tuple(_SPELLING.get(word, word) for word in words if word not in PUNCTUATION)
