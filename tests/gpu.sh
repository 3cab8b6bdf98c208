#!/usr/bin/env bash
# All that only a GPU can show: its tests, step times against the plain loop, trainings at once, the
# devices' rows, the SVMs and the grid. It has not been run on a GPU yet.
#   bash tests/gpu.sh FOLDER [SECONDS [DATA]]
# Leaves log.txt and rows in FOLDER. Stops after SECONDS (600); run it again and the rows go on.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] || { echo "error: which folder? bash tests/gpu.sh FOLDER [SECONDS [DATA]]" >&2; exit 2; }
folder=$1 end=$((SECONDS + ${2:-600})) data=${3:-data}
python=$(bash run_all.sh --python)
"$python" -c 'import torch; torch.cuda.init()' 2>/dev/null || {
    echo "error: PyTorch sees no GPU here" >&2
    exit 2
}
mkdir -p "$folder"

stage() { # the most seconds it may take, and a command, which is stopped as Ctrl-C would stop it
    local left=$((end - SECONDS)) most=$1
    shift
    [ "$left" -gt 10 ] || { echo "no time left for: $*"; return; }
    echo && echo "\$ python $*"
    local start=$SECONDS
    timeout --signal INT --kill-after 20 "$((most < left ? most : left))" "$python" "$@"
    echo "exit code $?, $((SECONDS - start)) s"
}

run() {
    nvidia-smi
    stage 90 -m pytest -v -c tests/pytest.ini tests/test_graph.py -k on_a_gpu
    stage 120 tests/benchmark_resnet.py --device cuda --windows 3 --steps 100 --data-dir "$data"
    resnet=(train_resnet.py --device cuda --cuda-graph --data-dir "$data")
    cells=(--arch resnet18 resnet50 --bs 16 32)
    # Alone, for their times: an epoch of each cell, with and without pinned memory.
    stage 60 "${resnet[@]}" "${cells[@]}" --dataset fashion --pin-memory true false --epochs 1 \
        --results-dir "$folder/alone"
    # The same 16 trainings, so many at once.
    for count in 1 2 4 8 16; do
        stage 60 "${resnet[@]}" --dataset fashion --bs 16 --limit 20000 --epochs 1 --split-seed 0 \
            --seed {0..15} --concurrent "$count" --results-dir "$folder/at-once-$count"
    done
    stage 120 compare_devices.py --device cuda --cuda-graph --data-dir "$data" \
        --results-dir "$folder"
    stage 90 train_svm.py --device cuda --dataset mnist fashion --C 0.1 1 10 --data-dir "$data" \
        --results-dir "$folder"
    stage 600 "${resnet[@]}" "${cells[@]}" --dataset mnist fashion --opt sgd adam --lr 1e-3 1e-4 \
        --epochs 3 5 --pin-memory true false --concurrent 8 --results-dir "$folder"
}
run 2>&1 | tee -a "$folder/log.txt"
