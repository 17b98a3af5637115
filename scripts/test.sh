#!/usr/bin/env bash
# Installs everything into .venv, then checks style and runs the tests in two processes. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup_venv.sh"
ruff check .
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
