#!/usr/bin/env bash
# Lint, format check and tests; arguments go to pytest (bash tests/run.sh -m slow).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python # as run_all.sh makes it
[ -e $python ] || python=python3
if ! $python -c 'import pytest, ruff, xdist' 2>/dev/null; then
    [ $python != python3 ] && $python -m pip install --quiet --requirement tests/requirements.txt || {
        echo "error: $python -m pip install -r requirements.txt -r tests/requirements.txt" >&2
        exit 2
    }
fi
$python -m ruff check --config tests/ruff.toml .
$python -m ruff format --check --config tests/ruff.toml .
export OMP_NUM_THREADS=1 # see run_all.sh
$python -m pytest -c tests/pytest.ini tests --numprocesses auto --dist worksteal "$@"
