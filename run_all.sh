#!/usr/bin/env bash
# Run the comparison; finished runs are skipped.
#   bash run_all.sh                    the assignment on one seed, into results/
#   bash run_all.sh --limit 14000      the same on so many images of each data set: an evening
#   bash run_all.sh --full             all that is behind results/reference/: more seeds and epochs
#   bash run_all.sh --quick            every stage on the embedded digits, into results/quick/
#   bash run_all.sh --results-dir DIR  into another folder
#   bash run_all.sh --dry-run          list the runs that are left and estimate their time
# Ctrl-C stops it, and the same command goes on. Exit code 1: a run failed; the others were made.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
fail() { echo "error: $1" >&2 && exit 2; }

plan=assignment dry='' results='' flags=() failed=''
while [ $# -gt 0 ]; do
    case "$1" in
        --help) sed -n '2,/^set /s/^# \{0,1\}//p' run_all.sh && exit ;;
        --full | --quick) plan=${1#--} && shift && continue ;;
        --dry-run) dry=yes && flags+=("$1") && shift && continue ;;
        --results-dir) [ -n "${2:-}" ] && results=$2 && shift 2 && continue ;;
        --limit) [[ "${2:-}" =~ ^[1-9][0-9]{2,}$ ]] && flags+=("$1" "$2") && shift 2 && continue ;;
    esac
    fail "run_all.sh does not take '$*' here (see bash run_all.sh --help)"
done
[ $plan != quick ] || { results=${results:-results/quick} && flags+=(--dataset digits --force); }
flags+=(--results-dir "${results:=results}")

has_packages='import re, sys # pip may be absent, or refuse to work outside an environment
from importlib.metadata import version
numbers = lambda text: [int(number) for number in re.findall(r"\d+", text)[:2]]
needs = [line.split(">=") for line in open("requirements.txt")]
sys.exit(sys.version_info < (3, 11) or any(numbers(version(a)) < numbers(b) for a, b in needs))'
python=.venv/bin/python
$python -c "$has_packages" 2>/dev/null || python=python3
if ! $python -c "$has_packages" 2>/dev/null; then
    [ -z $dry ] || fail "packages are missing; bash run_all.sh --quick installs them"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "put Python 3.11 on PATH"
    echo "installing the packages of requirements.txt in .venv: minutes, about 6 GB with CUDA" >&2
    [ -e .venv ] || python3 -m venv .venv || { rm -rf .venv && fail "python3 cannot make .venv"; }
    python=.venv/bin/python
    PIP_USER=0 $python -m pip install -qr requirements.txt || fail "mend .venv, or remove it"
fi

# Two processes of a thread do 1.4 times the work of one of two; bound, both would be on one core.
unset OMP_PROC_BIND OMP_PLACES GOMP_CPU_AFFINITY KMP_AFFINITY MKL_NUM_THREADS
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # nproc reads it
export OMP_NUM_THREADS=$((${OMP_NUM_THREADS:=1} < cores ? OMP_NUM_THREADS : cores))
memory=$(awk '/MemAvailable/ {print int($2 / 3e6) + 1}' /proc/meminfo 2>/dev/null) || true
processes=$((cores / OMP_NUM_THREADS))
processes=$((${memory:=$processes} < processes ? memory : processes)) # each takes up to 3 GB

# Each GPU is tried in a process of its own, where a broken one does not spoil the others.
ask() { $python -c "import common, torch; print($1)"; }
gpus=() all=${CUDA_VISIBLE_DEVICES-$(ask '*range(max(1, torch.cuda.device_count()))')}
for gpu in ${all//,/ }; do
    problem=$(CUDA_VISIBLE_DEVICES=$gpu ask "common.gpu_problem() or ''") || problem="it crashed"
    if [ -z "$problem" ]; then gpus+=("$gpu"); else echo "GPU $gpu is not used: $problem"; fi
done
export CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]-}")
[ ${#gpus[@]} -gt 0 ] && device=cuda trainers=${#gpus[@]} || device=cpu trainers=$processes
echo "$processes processes for SVMs, $trainers for networks ($device); threads: $OMP_NUM_THREADS"

stop() { echo "stopped: finished rows are kept; the same command goes on" >&2 && exit "$1"; }
trap 'stop 130' INT && trap 'stop 143' TERM && trap 'stop 129' HUP
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT # in the background they do not hear Ctrl-C

run() { # so many processes of a script; one that fails or is killed does not end the plan
    local rank pid pids=()
    [ -z $dry ] || { echo "processes: $1" && set -- 1 "${@:2}"; }
    for ((rank = 0; rank < $1; rank++)); do LOCAL_RANK=$rank $python "${@:2}" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || failed+=" $? "; done
    [[ ! "$failed" =~ \ (2|130)\  ]] || exit "${BASH_REMATCH[1]}" # bad input, full disk; Ctrl-C
}
svm() { run $processes train_svm.py --dataset mnist fashion "$@" "${flags[@]}"; }
resnet() { run $trainers train_resnet.py --device $device "$@" "${flags[@]}"; }
devices() { # a GPU is set against the whole CPU, in one process
    [ $device = cpu ] || local processes=1 OMP_NUM_THREADS=$cores
    run $processes compare_devices.py --device ${gpus:+cuda} cpu "$@" "${flags[@]}"
}

grid="--dataset mnist fashion --arch resnet18 resnet50 --opt sgd adam --lr 1e-3 1e-4 --bs 16 32"
ten="--seed 0 1 2 3 4 5 6 7 8 9"
quick() { svm; resnet --arch resnet18 resnet50 --epochs 1 2; devices --arch resnet18; }
assignment() {
    svm
    svm --solver sklearn --kernel rbf --C 1 --gamma scale
    resnet $grid --epochs 3 5 --pin-memory yes no
    devices
}
full() {
    assignment
    svm --seed 0 1 2 --C 0.1 1 10
    # The grid of rbf goes on until the best one has neighbours on all sides.
    svm --seed 0 1 2 --kernel rbf --C 1 10 30 100 --gamma scale 0.01 0.02 0.05
    svm $ten --kernel rbf --C 10 --gamma scale 0.02
    svm $ten --kernel poly --C 0.1 --gamma 0.1 --degree 2
    svm --solver sklearn --kernel rbf --C 10 --gamma scale 0.02
    svm --solver sklearn --kernel poly --C 1 --gamma scale --degree 3
    resnet $ten --dataset fashion --opt adam --lr 1e-3 --bs 16 --epochs 3 5 10 20
    resnet $ten --dataset mnist --opt sgd --lr 1e-3 --bs 32 --epochs 3 5 10 20
    for more in "$ten --epochs 3 5" "--seed 0 1 2 --epochs 10 20"; do
        resnet $more --dataset mnist --opt sgd --lr 1e-3 --bs 16 --arch resnet18 resnet50
        resnet $more --dataset fashion --opt sgd --lr 1e-3 --bs 32 --arch resnet50
        resnet $more --dataset fashion --opt adam --lr 1e-4 --bs 16
    done
    resnet $grid --epochs 3 5 --seed 1 2
    resnet --dataset fashion --opt adam --lr 1e-4 --bs 16 --arch resnet50 --epochs 3 5 --seed 3 4
}

[ -z $dry ] || { $plan | awk '/^processes: / { processes = $2; next } { print }
    match($0, /\([0-9]+ s\) of one/) { sum += substr($0, RSTART + 1) / processes }
    END { printf "about %d h %d min\n", sum / 3600, sum % 3600 / 60 }'; exit; }
$plan
run 1 make_tables.py --results-dir "$results"
[ -z "$failed" ] || { echo "some runs failed: see above and the rows in $results" >&2 && exit 1; }
