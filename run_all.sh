#!/usr/bin/env bash
# Run the whole comparison; what is there already is not run again.
#   bash run_all.sh [--results-dir DIR]    everything, then the tables into README.md (of another DIR
#                                          they are printed); stop it when you like and run it again
#   bash run_all.sh --dry-run              list its runs and about how long they take
#   bash run_all.sh --quick                every stage on the embedded digits, in results/quick/
#   bash run_all.sh --python               print the Python that is used, set up in .venv if need be
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

results=results
case "${1:-}" in
    "" | --dry-run | --quick | --python) [ $# -le 1 ] ;;
    --results-dir) [ $# -eq 2 ] && results=$2 ;;
    *) false ;;
esac || {
    echo "error: run_all.sh takes --results-dir DIR, --dry-run, --quick or --python, not: $*" >&2
    exit 2
}

has_packages() {
    "$1" -c 'import sys, torch, torchvision, sklearn, numpy, tqdm
assert sys.version_info >= (3, 11) and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
' 2>/dev/null
}
python=.venv/bin/python
if ! has_packages "$python"; then
    if has_packages python3; then
        python=python3
    else
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: python3 is missing or older than 3.11; put a newer one on PATH" >&2
            exit 2
        }
        echo "setting up .venv with the packages of requirements.txt" >&2
        python3 -m venv .venv
        "$python" -m pip install --quiet --requirement requirements.txt >&2
    fi
fi

# Waiting threads that spin take the core from another process, and every step 10 times as long.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"

failed=0
run() { # exit code 1 says that a run failed, and has become a row: the others still go on
    "$python" "$@" || { [ $? -eq 1 ] && failed=1; }
}

case "${1:-}" in
    --python) echo "$python" ;;
    --quick)
        results=results/quick
        rm -rf "$results"
        flags=(--dataset digits --results-dir "$results")
        run train_resnet.py "${flags[@]}" --arch resnet18 resnet50 --opt sgd adam --epochs 1 2
        run train_svm.py "${flags[@]}"
        run compare_devices.py "${flags[@]}" --arch resnet18 --epochs 1 --repeats 3
        run make_tables.py --results-dir "$results"
        ;;
    *)
        flags=(--results-dir "$results")
        [ "${1:-}" != --dry-run ] || flags+=(--dry-run)
        run train_svm.py --dataset mnist fashion --C 0.1 1 10 "${flags[@]}"
        run train_resnet.py --dataset mnist fashion --arch resnet18 resnet50 --opt sgd adam \
            --lr 1e-3 1e-4 --bs 16 32 --epochs 3 5 --pin-memory true false "${flags[@]}"
        run compare_devices.py "${flags[@]}"
        if [ "${1:-}" = --results-dir ]; then
            run make_tables.py --results-dir "$results"
        elif [ $# -eq 0 ]; then
            run make_tables.py --readme README.md
        fi
        ;;
esac
exit "$failed"
