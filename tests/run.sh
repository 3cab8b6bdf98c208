#!/usr/bin/env bash
# Lint, format check and tests; arguments go to pytest (bash tests/run.sh -m slow).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash run_all.sh --python)
if ! "$python" -c 'import pytest, ruff, xdist' 2>/dev/null; then
    [ "$python" = .venv/bin/python ] || {
        echo "error: the tests need: $python -m pip install -r tests/requirements.txt" >&2
        exit 2
    }
    "$python" -m pip install --quiet --requirement tests/requirements.txt
fi
"$python" -m ruff check --config tests/ruff.toml .
"$python" -m ruff format --check --config tests/ruff.toml .
export OMP_NUM_THREADS=1 # see run_all.sh
"$python" -m pytest -c tests/pytest.ini tests --numprocesses auto --dist worksteal "$@"
