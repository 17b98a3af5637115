"""`sst2_sample`: SST-2's whole dev set and 6,000 of its training phrases, bundled in `data/`. No download.

Where the rows come from and how they were chosen: `data/README.md`. Text and metrics are those of
`taskless_glue_sst2_*`; the validation split has the same 872 rows in another order, so scores on it compare.
"""

import pathlib

from prompt_tuning.tasks import local, text_to_text

_DATA = pathlib.Path(__file__).parent / 'data'

local.local_task(
    'sst2_sample',
    {'train': _DATA / 'sst2_sample_train.tsv', 'validation': _DATA / 'sst2_dev.tsv'},
    text_to_text.FORMATS['sst2'])
