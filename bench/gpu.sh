#!/usr/bin/env bash
# Measure training and generation on a GPU, in about ten minutes: bash bench/gpu.sh OUTPUT_FOLDER
#
# PARTS names the parts to run, such as PARTS="checks variants"; default: all, but the race only with TRAIN.
# PYTHON names a Python with gpt2kit's dependencies (torch 2.11 or newer); default: python3. NANOGPT names a copy of
# nanoGPT to compare with; TRAIN and VALID name a text of characters for the comparison of losses.
# Each part writes its table and its figures as JSON to the folder. A part that fails or exceeds its time is reported, and
# the next one starts. TINY=1 runs small sizes, on a CPU too; the test suite does this.
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
    [[ -z "${PARTS:-}" || " $PARTS " == *" $name "* ]] || return 0
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

if [ -n "$TINY" ]; then # the time limits are for a machine that is busy with other work
    step small 500 --shapes shakespeare --rounds 1 --steps 2 --block 32 --batch 2 --ways gpt2kit_eager
    part attention 500 "$PYTHON" bench/attention.py --blocks 64 --head_sizes 32 --turns 1 --tokens 128 --output "$OUT/attention.json"
    part muon 500 "$PYTHON" bench/muon.py --shapes 2,2,32 --turns 1 --output "$OUT/muon.json"
    part generate 500 "$PYTHON" bench/generate.py --shape 2 2 32 64 100 --tokens 8 --repeats 1 --batches 1 --ways gpt2kit transformers no_cache --output "$OUT/generate.json"
    part overhead 500 "$PYTHON" bench/overhead.py --steps 4 --rounds 1 --output "$OUT/overhead.json"
    part checks 500 "$PYTHON" bench/gpu_checks.py --checks waits --shape shakespeare --batch 2 --output "$OUT/checks.json"
    exit 0
fi
PEER=()
best=plain_compiled
if [ -n "${NANOGPT:-}" ]; then
    PEER=(--nanogpt "$NANOGPT")
    best=nanogpt_compiled
fi
few=(--rounds 1 --steps 20 "${PEER[@]}")
step small 120 --shapes small "${few[@]}" --batch 32 --ways gpt2kit gpt2kit_adamw gpt2kit_eager "$best"
part checks 60 "$PYTHON" bench/gpu_checks.py --output "$OUT/checks.json"
step tiny_model 80 --shapes shakespeare "${few[@]}" --ways gpt2kit gpt2kit_graphs "$best"
for variant in bf16_stream compiled_muon fa3 linear_ce auto_chunker; do # a part each: the last three need packages
    step "$variant" 40 --shapes small "${few[@]}" --batch 32 --ways "gpt2kit_$variant"
done
step medium 80 --shapes medium "${few[@]}" --batch 16 --ways gpt2kit "$best"
part memory 60 "$PYTHON" bench/memory.py --shapes mini small --attention sdpa --output "$OUT/memory.json"
part attention 30 "$PYTHON" bench/attention.py --blocks 256 1024 --head_sizes 64 --tokens 32768 --width 768 --output "$OUT/attention.json"
part documents 30 "$PYTHON" bench/attention.py --documents 8 --blocks 1024 --head_sizes 64 --tokens 32768 --width 768 --output "$OUT/documents.json"
part generate 50 "$PYTHON" bench/generate.py --shape 12 12 768 1024 50257 --tokens 128 --repeats 2 --ways gpt2kit gpt2kit_bf16 transformers transformers_bf16 --output "$OUT/generate.json"
part muon 30 "$PYTHON" bench/muon.py --shapes 12,12,768 24,16,1024 --output "$OUT/muon.json"
part overhead 30 "$PYTHON" bench/overhead.py --rounds 1 --output "$OUT/overhead.json"
step small_large_batch 40 --shapes small "${few[@]}" --batch 96 --ways gpt2kit
if [ -n "${TRAIN:-}" ]; then
    race=(--train_files "$TRAIN" --valid_files "$VALID" --document "${DOCUMENT:-line}" --shape 12 12 384 --block 128 --batch 64)
    part time_to_loss 120 "$PYTHON" bench/time_to_loss.py "${race[@]}" --steps 600 --gpt2kit_steps 600 200 --seeds 1 --validations 4 --output_dir "$OUT/race"
fi
