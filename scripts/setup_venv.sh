# Sourced by the other scripts: makes .venv beside the README from requirements.lock (exact versions and hashes) once,
# installs this checkout into it and activates it. PYTHON=python3.12 chooses the interpreter.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $PYTHON is not Python 3.11 or newer; install it, or name one with PYTHON=..." >&2
  exit 1
fi
stamp=.venv/installed-$(cat requirements.lock setup.py | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  echo "installing into .venv (about two minutes) ..." >&2
  "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
  touch "$stamp"
fi
source .venv/bin/activate
# glibc gives large arrays back to the system after every step and faults them in again; tell it to keep them.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=268435456
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
