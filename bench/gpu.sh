#!/usr/bin/env bash
# Everything worth knowing about a GPU, in under nine minutes: bash bench/gpu.sh OUTPUT_FOLDER
#
# Needs torch (2.11 or newer), transformers, pytorch-lightning, tokenizers, jsonargparse and their dependencies in the Python
# that PYTHON names. TINY=1 runs the same on small sizes, in a minute, on a CPU, too: a test does. Each part writes JSON and
# its table to the folder; one that fails or runs out of its time says so, and the next one goes on.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?usage: bash bench/gpu.sh OUTPUT_FOLDER}
PYTHON=${PYTHON:-python3}
TINY=${TINY:-}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false

part() { # part NAME SECONDS COMMAND...
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    echo "== $name: $*"
    if timeout -k 5 "$limit" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.log"; then
        sed -n '/^|/p' "$OUT/$name.txt"
        echo "== $name: done in $((SECONDS - begin)) s"
    else
        echo "== $name: FAILED ($?) after $((SECONDS - begin)) s"
        tail -n 5 "$OUT/$name.log"
    fi
}

step() { # step NAME SECONDS ARGUMENTS...
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$PYTHON" bench/train_step.py --output "$OUT/$name.json" "$@"
}

$PYTHON - >"$OUT/machine.txt" <<'END'
import torch, transformers, pytorch_lightning
print(torch.__version__, transformers.__version__, pytorch_lightning.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
END
cat "$OUT/machine.txt"

PEER=()
[ -n "${NANOGPT:-}" ] && PEER=(--nanogpt "$NANOGPT")
if [ -n "$TINY" ]; then
    few=(--rounds 1 --steps 2 --block 32 --batch 2)
    step small 100 --shapes shakespeare "${few[@]}" --ways ours_eager bare
    part attention 60 "$PYTHON" bench/attention.py --blocks 64 --turns 1 --tokens 128 --output "$OUT/attention.json"
    part head 60 "$PYTHON" bench/head.py --sizes 64,32,100 --turns 1 --output "$OUT/head.json"
    part muon 60 "$PYTHON" bench/muon.py --shapes 2,32 --turns 1 --output "$OUT/muon.json"
    part generate 60 "$PYTHON" bench/generate.py --shape 2 2 32 64 100 --tokens 8 --repeats 1 --batches 1 --output "$OUT/generate.json"
    part overhead 60 "$PYTHON" bench/overhead.py --steps 20 --rounds 1 --output "$OUT/overhead.json"
    exit 0
fi
best=(bare_compiled)
[ -n "${NANOGPT:-}" ] && best=(nanogpt_best)
few=(--rounds 1 --steps 20 "${PEER[@]}")
step small 150 --shapes small "${few[@]}" --batch 32 --ways ours ours_adamw ours_fp16 ours_eager "${best[@]}"
step small_large_batch 60 --shapes small "${few[@]}" --batch 96 --ways ours
step medium 100 --shapes medium "${few[@]}" --batch 16 --ways ours "${best[@]}"
step tiny_model 60 --shapes shakespeare "${few[@]}" --ways ours ours_eager "${best[@]}"
part attention 40 "$PYTHON" bench/attention.py --blocks 256 1024 --head_sizes 64 --tokens 32768 --width 768 --output "$OUT/attention.json"
part head 60 "$PYTHON" bench/head.py --sizes 32768,768,50257 --output "$OUT/head.json"
part overhead 40 "$PYTHON" bench/overhead.py --rounds 1 --output "$OUT/overhead.json"
part muon 40 "$PYTHON" bench/muon.py --shapes 12,768 24,1024 --output "$OUT/muon.json"
part generate 60 "$PYTHON" bench/generate.py --shape 12 12 768 1024 50257 --repeats 2 --output "$OUT/generate.json"
if [ -n "${TRAIN:-}" ]; then # a character corpus: TRAIN=train.txt VALID=valid.txt
    race=(--train_files "$TRAIN" --valid_files "$VALID" --document "${DOCUMENT:-line}" --shape 12 12 384 --block 128 --batch 64)
    part time_to_loss 120 "$PYTHON" bench/time_to_loss.py "${race[@]}" --steps 600 --ours 600 200 --seeds 1 --validations 4 --output_dir "$OUT/race"
fi
step whole_model 100 --shapes small "${few[@]}" --batch 32 --ways ours_model ours
