#!/usr/bin/env bash
# The training runs behind the tables of quality. The runs of a stage share the GPUs of the machine; a stage takes minutes on two H100.
#
#     tools/study.sh STAGE       candidates | embedder | queries | shapes | mlm | glue
#
# TEACHER  all-MiniLM-L6-v2, as tools/get_model.py makes it        CORPUS  a .npz cache of the text's ids, as `train.py --cache` makes it
# DATA     folder with GLUE, as published                          RUNS    folder for the runs
set -euo pipefail
cd "$(dirname "$0")/.."
: "${TEACHER:=.models/minilm}" "${CORPUS:=corpus.npz}" "${DATA:=data}" "${RUNS:=runs}"
export PYTHONPATH=.
mkdir -p "$RUNS"
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
started=0

# apart COMMAND...: start the command in the background, on the next GPU
apart() {
    local gpu=$((gpus > 1 ? started % gpus : 0))
    started=$((started + 1))
    if ((gpus > 1)); then CUDA_VISIBLE_DEVICES=$gpu "$@" & else "$@" & fi
}

launch=python3

# distill NAME RECIPE FLAGS...: one run; its output goes to a log beside it
distill() {
    local name=$1 recipe=$2
    shift 2
    $launch tools/train.py distill "tools/configs/$recipe.toml" --teacher "$TEACHER" --cache "$CORPUS" --sts "$DATA" --out "$RUNS/$name" "$@" >"$RUNS/$name.log" 2>&1 ||
        { tail -5 "$RUNS/$name.log"; return 1; }
}

pretrain() {
    local name=$1
    shift
    python3 tools/train.py pretrain tools/configs/mlm.toml --tokenizer "$TEACHER/tokenizer.json" --cache "$CORPUS" --out "$RUNS/$name" "$@" >"$RUNS/$name.log" 2>&1 ||
        { tail -5 "$RUNS/$name.log"; return 1; }
}

# results NAME...: print the last line of the metrics of each run
results() {
    for run in "$@"; do echo "$run: $(tail -1 "$RUNS/$run/metrics.jsonl")"; done
}

case ${1:-} in
candidates) # shapes that use at most 5% of the neurons, for the same few steps; and one that starts from copied neurons
    names=()
    for shape in "1x11 + 192" "2x10 + 160" "4x9 + 96" "4x9 + 160" "16x7 + 64"; do
        name=candidate-${shape// + /-}
        names+=("$name")
        apart distill "$name" embedder --shape "$shape" --no-copy --steps 300 --warmup 60 --batch-tokens 49152 "${@:2}"
    done
    name=candidate-1x11-192-copied
    names+=("$name")
    apart distill "$name" embedder --steps 300 --warmup 60 --batch-tokens 49152 "${@:2}"
    wait
    results "${names[@]}"
    ;;
embedder)
    ((gpus > 1)) && launch="torchrun --nproc-per-node $gpus"
    distill embedder embedder "${@:2}"
    results embedder
    ;;
queries) # continue the embedder; CORPUS is the corpus that the recipe describes
    ((gpus > 1)) && launch="torchrun --nproc-per-node $gpus"
    distill embedder-queries embedder-queries --start "$RUNS/embedder/model" "${@:2}"
    results embedder-queries
    ;;
shapes) # all runs at once: they share the GPU, and their steps are equal
    names=()
    for shape in "dense 1536" 128x4 64x5 16x7 4x9 1x11; do
        name=shape-${shape// /-}
        names+=("$name")
        apart distill "$name" shapes --shape "$shape" "${@:2}"
    done
    wait
    results "${names[@]}"
    ;;
mlm)
    apart pretrain mlm-dense --shape "dense 1536" "${@:2}"
    apart pretrain mlm-64x5 --shape 64x5 "${@:2}"
    apart pretrain mlm-1x11 --shape 1x11 "${@:2}"
    apart pretrain mlm-1x11-balanced --shape 1x11 --balance 1 "${@:2}"
    wait
    results mlm-dense mlm-64x5 mlm-1x11 mlm-1x11-balanced
    ;;
glue) # on two GPUs, half of the shapes on each; the results.jsonl of both belong together
    for half in 0 1; do
        models=()
        for shape in dense-1536 128x4 64x5 16x7 4x9 1x11; do models+=("$RUNS/shape-$shape/model"); done
        ((gpus > 1)) && models=("${models[@]:half*3:3}")
        apart python3 tools/train.py finetune tools/configs/glue.toml --models "${models[@]}" --data "$DATA" --out "$RUNS/glue-$half" "${@:2}"
        ((gpus > 1)) || break
    done
    wait
    ;;
*)
    sed -n '2,8s/^# \?//p' "$0"
    exit 2
    ;;
esac
