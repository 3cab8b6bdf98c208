#!/usr/bin/env bash
# Run the whole comparison; what is in results/ already is not run again.
#   bash run_all.sh              the assignment, then the tables into README.md (hours on a CPU)
#   bash run_all.sh --dry-run    list its runs and about how long they take
#   bash run_all.sh --quick      every stage on the embedded digits into results/quick/, in minutes
#   bash run_all.sh --python     print the Python that is used, set up in .venv if need be
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case "${1:-}" in
    "" | --dry-run | --quick | --python) [ $# -le 1 ] ;;
    *) false ;;
esac || { echo "error: run_all.sh takes one of --dry-run, --quick and --python, not: $*" >&2; exit 2; }

has_packages() { "$1" -c 'import torch, torchvision, sklearn, numpy, tqdm' 2>/dev/null; }
python=.venv/bin/python
if ! has_packages "$python"; then
    if has_packages python3; then
        python=python3
    else
        echo "setting up .venv with the packages of requirements.txt" >&2
        python3 -m venv .venv
        "$python" -m pip install --quiet --requirement requirements.txt >&2
    fi
fi

case "${1:-}" in
    --python) echo "$python" ;;
    --quick)
        results=results/quick
        rm -rf "$results"
        common=(--dataset digits --results-dir "$results")
        "$python" train_resnet.py "${common[@]}" --arch resnet18 resnet50 --opt sgd adam --epochs 1 2
        "$python" train_svm.py "${common[@]}"
        "$python" compare_devices.py "${common[@]}" --arch resnet18 --epochs 1 --repeats 3
        "$python" make_tables.py --results-dir "$results"
        ;;
    *)
        "$python" train_svm.py --dataset mnist fashion "$@"
        "$python" train_resnet.py --dataset mnist fashion --arch resnet18 resnet50 --opt sgd adam \
            --lr 1e-3 1e-4 --bs 16 32 --epochs 3 5 --pin-memory true false "$@"
        "$python" compare_devices.py "$@"
        [ $# -gt 0 ] || "$python" make_tables.py --readme README.md
        ;;
esac
