#!/usr/bin/env bash
# Lint, format check and tests; arguments go to pytest (bash tests/run.sh -m slow).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash run_all.sh --python)
"$python" -c 'import pytest, ruff' 2>/dev/null ||
    "$python" -m pip install --quiet --requirement tests/requirements.txt
"$python" -m ruff check --config tests/ruff.toml .
"$python" -m ruff format --check --config tests/ruff.toml .
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}" # see run_all.sh
"$python" -m pytest -c tests/pytest.ini tests "$@"
