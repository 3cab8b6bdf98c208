#!/usr/bin/env bash
# Run the whole comparison; finished runs are skipped.
#   bash run_all.sh                    everything in results/, then the tables into README.md
#   bash run_all.sh --results-dir DIR  the same in another folder, tables included
#   bash run_all.sh --dry-run          list the runs that are left and estimate their time
#   bash run_all.sh --quick            every stage on the embedded digits, in results/quick/
#   bash run_all.sh --processes N      so many at once (default: one for each core, each of one
#                                      thread; ResNets on GPUs: one for each GPU)
#   bash run_all.sh --python           print the Python that is used, set up in .venv if need be
# Ctrl-C stops it, and the same command goes on. Exit code 1: a run failed, and its row says why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

mode=all results=results processes=
while [ $# -gt 0 ]; do
    case "$1" in
        --help) sed -n '2,/^set /s/^# \{0,1\}//p' run_all.sh && exit ;;
        --dry-run | --quick | --python) [ "$mode" = all ] && mode=${1#--} && shift && continue ;;
        --results-dir) [ -n "${2:-}" ] && results=$2 && shift 2 && continue ;;
        --processes) [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] && processes=$2 && shift 2 && continue ;;
    esac
    echo "error: run_all.sh does not take '$*' here (see bash run_all.sh --help)" >&2
    exit 2
done

has_packages() {
    "$1" -c 'import sys
from importlib.metadata import version
found = {name: version(name) for name in ("torch", "torchvision", "scikit-learn", "numpy", "tqdm")}
numbers = {name: tuple(map(int, found[name].split(".")[:2])) for name in ("torch", "scikit-learn")}
assert sys.version_info >= (3, 11)
assert numbers["torch"] >= (2, 11) and numbers["scikit-learn"] >= (1, 6)
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
        python3 -m venv .venv >&2 || {
            echo "error: python3 cannot make .venv; install its venv module (python3-venv)" >&2
            exit 2
        }
        "$python" -m pip install --requirement requirements.txt >&2
    fi
fi
[ "$mode" != python ] || { echo "$python" && exit; }

# --- processes -----------------------------------------------------------------------------------

# One thread each: waiting threads spin and take the core from another process, and two processes of
# one thread do 1.4 times the work of one process of two.
threads=${OMP_NUM_THREADS:-}
export OMP_NUM_THREADS="${threads:-1}"
all=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # nproc obeys it
cores=$all
memory=$(awk '/MemAvailable/ {print int($2 / 2^21)}' /proc/meminfo 2>/dev/null || true) # 2 GiB each
[ "${memory:-$cores}" -ge "$cores" ] || cores=$((memory > 1 ? memory : 1))
gpus=0
if command -v nvidia-smi >/dev/null; then # those that PyTorch may use
    gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
fi

# torchrun, without its report of what the scripts have said already.
torchrun='import sys
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
try:
    main()
except SignalException as error:
    sys.exit(128 + error.sigval)
except ChildFailedError as error:
    sys.exit(error.get_first_failure()[1].exitcode)'

set -m # a process group for each child, so that a signal reaches it once, from here
child= failed=
pass_on() { # a signal and its number
    trap '' INT TERM HUP
    [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
    wait || true
    exit $((128 + $2))
}
trap 'pass_on INT 2' INT
trap 'pass_on TERM 15' TERM
trap 'pass_on TERM 1' HUP

run() { # so many processes of a script; exit code 1, as of a failed run, does not stop the others
    local count=$1 code=0
    shift
    [ "$mode" != dry-run ] || echo "processes: $count"
    if [ "$count" -gt 1 ] && [ "$mode" != dry-run ]; then
        "$python" -c "$torchrun" --standalone --nproc-per-node "$count" "$@" &
    else
        "$python" "$@" &
    fi
    child=$!
    wait "$child" || code=$?
    child=
    [ "$code" -le 1 ] || exit "$code"
    [ "$code" -eq 0 ] || failed=1
}

svm() { run "${processes:-$cores}" train_svm.py "$@" "${flags[@]}"; }
resnet() { run "${processes:-$((gpus ? gpus : cores))}" train_resnet.py "$@" "${flags[@]}"; }
devices() {
    local count=${processes:-$cores}
    if [ "$gpus" -gt 0 ]; then # a GPU is set against the whole CPU, in one process
        local OMP_NUM_THREADS=${threads:-$all}
        count=1
    fi
    run "$count" compare_devices.py "$@" "${flags[@]}"
}

# --- stages --------------------------------------------------------------------------------------

both=(--dataset mnist fashion)
grid=(--opt sgd adam --lr 1e-3 1e-4 --bs 16 32 --epochs 3 5)
mnist18=(--dataset mnist --arch resnet18 --opt sgd --lr 1e-3 --bs 16)
mnist50=(--dataset mnist --arch resnet50 --opt sgd --lr 1e-3 --bs 16)
fashion18=(--dataset fashion --arch resnet18 --opt adam --lr 1e-4 --bs 16)
fashion50=(--dataset fashion --arch resnet50 --opt sgd --lr 1e-3 --bs 32)

# The assignment's rows come first. results/ has a few more, of settings that led on fewer runs.
stages() {
    svm "${both[@]}" --seed 0 1 2 --C 0.1 1 10
    resnet "${both[@]}" --arch resnet18 resnet50 "${grid[@]}" --pin-memory true false
    devices --dataset fashion
    # The grid goes on until the best SVM has neighbours on all sides.
    svm "${both[@]}" --seed 0 1 2 --kernel rbf --C 1 10 30 100 --gamma scale 0.01 0.02 0.05
    # scikit-learn's solver at the best settings.
    svm "${both[@]}" --solver sklearn --kernel rbf --C 10 --gamma 0.02
    # Two more seeds of everything, then two more of the best settings.
    resnet "${both[@]}" --seed 1 2 --arch resnet18 resnet50 "${grid[@]}"
    svm "${both[@]}" --seed 3 4 --kernel rbf --C 10 --gamma 0.02
    resnet "${mnist18[@]}" --epochs 3 5 --seed 3 4
    resnet "${fashion18[@]}" --epochs 3 5 --seed 3 4
    resnet "${mnist50[@]}" --epochs 3 5 --seed 3 4
    resnet "${fashion50[@]}" --epochs 3 5 --seed 3 4
    # What more epochs buy.
    resnet "${mnist18[@]}" --epochs 10 20 --seed 0 1 2
    resnet "${fashion18[@]}" --epochs 10 20 --seed 0 1 2
    resnet "${mnist50[@]}" --epochs 10 20
    resnet "${fashion50[@]}" --epochs 10 20
}

flags=(--results-dir "$results")
case "$mode" in
    dry-run)
        flags+=(--dry-run)
        stages | awk '/^processes: / { count = $2; next }
            match($0, /\([0-9]+ s\)/) { sum += substr($0, RSTART + 1) / count }
            ! / 0 of |, precision / # nothing of a stage that is done
            END { printf "about %.1f hours\n", sum / 3600 }'
        exit
        ;;
    quick)
        [ "$results" != results ] || results=results/quick
        flags=(--dataset digits --results-dir "$results" --force)
        stages() {
            svm --kernel poly rbf
            resnet --arch resnet18 resnet50 --opt sgd adam --epochs 1 2
            devices --arch resnet18 --epochs 1 --repeats 3
        }
        ;;
esac
stages
if [ "$mode" = all ] && [ "$results" = results ]; then
    run 1 make_tables.py --readme README.md
else
    run 1 make_tables.py --results-dir "$results"
fi
if [ -n "$failed" ] || grep -qsE ',(diverged|out_of_memory),' "$results"/*.csv; then
    echo "some runs failed: their rows in $results, or a message above, say why" >&2
    exit 1
fi
