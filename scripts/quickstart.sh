#!/usr/bin/env bash
# Tunes a 20-token prompt on a frozen T5 1.1 small for SST-2, from nothing: installs, converts the model, evaluates,
# trains, evaluates again, predicts. About ten minutes on two cores. Arguments go to the training job.
set -euo pipefail
export QUICKSTART_BEGAN=$(date +%s)
source "$(dirname "$0")/setup_venv.sh"
export MALLOC_ARENA_MAX=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1  # memory in one pool for all threads, in large pages

python scripts/convert_quickstart_model.py --to=models/quickstart_t5
prompt-tuning train --gin_file=quickstart.gin "$@"

cat > runs/quickstart/sentences.txt <<'EOF'
sentence: a gorgeous , witty , seductive movie .
sentence: the plot is nothing but boilerplate cliches from start to finish .
sentence: I laughed, I cried, and I would watch it again tomorrow.
EOF
prompt-tuning infer --gin_file=models/t5.gin --gin_file=runs/infer.gin \
  --gin.INITIAL_CHECKPOINT_PATH=models/quickstart_t5 --gin.CHECKPOINT_PATH=runs/quickstart \
  --gin.INPUT_FILE=runs/quickstart/sentences.txt --gin.INFER_OUTPUT_DIR=runs/quickstart/infer

python scripts/quickstart_report.py runs/quickstart models/quickstart_t5
