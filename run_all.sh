#!/usr/bin/env bash
# Run the comparison; finished runs are skipped.
#   bash run_all.sh                    the assignment on one seed, into results/
#   bash run_all.sh --full             all that is behind results/reference/: more seeds and epochs
#   bash run_all.sh --quick            every stage on the embedded digits, into results/quick/
#   bash run_all.sh --results-dir DIR  into another folder
#   bash run_all.sh --dry-run          list the runs that are left and estimate their time
#   bash run_all.sh --processes N      so many at once (default: one for each core or GPU)
#   bash run_all.sh --python           print the Python that is used, set up in .venv if need be
# Ctrl-C stops it, and the same command goes on. Exit code 1: a run failed, and its row says why.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
fail() { echo "error: $1" >&2 && exit 2; }

mode=run plan=assignment results= processes= failed=
while [ $# -gt 0 ]; do
    case "$1" in
        --help) sed -n '2,/^set /s/^# \{0,1\}//p' run_all.sh && exit ;;
        --dry-run | --python) [ "$mode" = run ] && mode=${1#--} && shift && continue ;;
        --full | --quick) [ "$plan" = assignment ] && plan=${1#--} && shift && continue ;;
        --results-dir) [ -n "${2:-}" ] && results=$2 && shift 2 && continue ;;
        --processes) [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] && processes=$2 && shift 2 && continue ;;
    esac
    fail "run_all.sh does not take '$*' here (see bash run_all.sh --help)"
done

has_packages() { "$1" -m pip install --dry-run --no-index -qqr requirements.txt >/dev/null 2>&1; }
python=.venv/bin/python
if ! has_packages "$python" && ! { python=python3 && has_packages python3; }; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "python3 is missing or older than 3.11; put a newer one on PATH"
    echo "installing the packages of requirements.txt in .venv: minutes, about 6 GB with CUDA" >&2
    python3 -m venv .venv >&2 || fail "python3 cannot make .venv; install its venv module"
    python=.venv/bin/python
    "$python" -m pip install --quiet --requirement requirements.txt >&2 ||
        fail "the packages could not be installed; see above"
fi
[ "$mode" != python ] || { echo "$python" && exit; }

# One thread each: waiting threads spin and take the core from another process, and two processes of
# one thread do 1.4 times the work of one process of two.
threads=${OMP_NUM_THREADS:-}
export OMP_NUM_THREADS="${threads:-1}"
all=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # nproc answers it
memory=$(awk '/MemAvailable/ {print int($2 / 3e6) + 1}' /proc/meminfo 2>/dev/null) || true
cores=${processes:-$((${memory:=$all} < all ? memory : all))} # 3 GB each
gpus=$("$python" -c 'import common, torch
print(0 if common.gpu_problem() else torch.cuda.device_count())')
echo "$cores processes, $gpus GPUs; --processes N changes it"

stop() { # the processes, which do not hear Ctrl-C: a shell keeps it from those in the background
    trap '' INT TERM HUP
    kill $(jobs -p) 2>/dev/null || true
    wait
    echo "stopped: finished rows are kept; run the same command again to go on" >&2
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

run() { # so many processes of a script; exit code 1, as of a failed run, does not stop the others
    local count=$1 worst=0 rank pid pids=()
    shift
    [ "$mode" != dry-run ] || { echo "processes: $count" && count=1; }
    for ((rank = 0; rank < count; rank++)); do
        LOCAL_RANK=$rank "$python" "$@" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || worst=$(($? > worst ? $? : worst))
    done
    [ "$worst" -le 1 ] || exit "$worst"
    [ "$worst" -eq 0 ] || failed=1
}
svm() { run "$cores" train_svm.py "$@" "${flags[@]}"; }
resnet() { run "${processes:-$((gpus ? gpus : cores))}" train_resnet.py "$@" "${flags[@]}"; }
devices() { # a GPU is set against the whole CPU, in one process
    [ "$gpus" -eq 0 ] || local OMP_NUM_THREADS=${threads:-$all} cores=1
    run "$cores" compare_devices.py "$@" "${flags[@]}"
}

both=(--dataset mnist fashion)
grid=("${both[@]}" --arch resnet18 resnet50 --opt sgd adam --lr 1e-3 1e-4 --bs 16 32 --epochs 3 5)
mnist=(--dataset mnist --opt sgd --lr 1e-3)
fashion=(--dataset fashion --opt adam --arch resnet18 --bs 16)
fashion50=(--dataset fashion --opt sgd --lr 1e-3 --arch resnet50 --bs 32)
ten=(--seed 0 1 2 3 4 5 6 7 8 9)
quick() {
    svm --kernel poly rbf
    resnet --arch resnet18 resnet50 --opt sgd adam --epochs 1 2
    devices --arch resnet18 --epochs 1 --repeats 3
}
assignment() {
    svm "${both[@]}"
    resnet "${grid[@]}" --pin-memory yes no
    devices
}
full() {
    assignment
    svm "${both[@]}" --seed 0 1 2 --C 0.1 1 10
    # The grid of rbf goes on until the best one has neighbours on all sides.
    svm "${both[@]}" --seed 0 1 2 --kernel rbf --C 1 10 30 100 --gamma scale 0.01 0.02 0.05
    svm "${both[@]}" --solver sklearn --C 1 --gamma scale --degree 3
    svm "${both[@]}" --solver sklearn --kernel rbf --C 10 --gamma scale 0.02
    resnet "${grid[@]}" --seed 1 2
    # What more epochs buy, and the best settings on ten seeds.
    resnet "${mnist[@]}" --seed 0 1 2 --bs 16 --arch resnet18 resnet50 --epochs 3 5 10 20
    resnet "${fashion[@]}" --seed 0 1 2 --lr 1e-4 --epochs 3 5 10 20
    resnet "${fashion50[@]}" --seed 0 1 2 --epochs 3 5 10 20
    resnet "${mnist[@]}" "${ten[@]}" --bs 32 --epochs 3 5 10 20
    resnet "${fashion[@]}" "${ten[@]}" --lr 1e-3 --epochs 3 5 10 20
    resnet "${mnist[@]}" "${ten[@]}" --bs 16 --arch resnet18 resnet50 --epochs 3 5
    resnet "${fashion[@]}" "${ten[@]}" --lr 1e-4 --epochs 3 5
    resnet "${fashion50[@]}" "${ten[@]}" --epochs 3 5
    # This one led on three seeds.
    resnet --dataset fashion --arch resnet50 --opt adam --lr 1e-4 --bs 16 --epochs 3 5 --seed 3 4
    svm "${both[@]}" "${ten[@]}" --kernel rbf --C 10 --gamma scale 0.02
    svm "${both[@]}" "${ten[@]}" --kernel poly --C 0.1 --gamma 0.1 --degree 2
}

[ "$plan" != quick ] || results=${results:-results/quick}
flags=(--results-dir "${results:=results}")
[ "$plan" != quick ] || flags+=(--dataset digits --force)
if [ "$mode" = dry-run ]; then
    flags+=(--dry-run)
    "$plan" | awk '/^processes: / { count = $2; next }
        match($0, /\([0-9]+ s\) of one/) { sum += substr($0, RSTART + 1) / count }
        { print }
        END { printf "about %.1f hours\n", sum / 3600 }'
    exit
fi
"$plan"
run 1 make_tables.py --results-dir "$results"
if [ -n "$failed" ] || grep -qsE ',(diverged|out_of_memory),' "$results"/*.csv; then
    echo "some runs failed: their rows in $results, or a message above, say why" >&2
    exit 1
fi
