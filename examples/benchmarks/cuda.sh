#!/usr/bin/env bash
# What is to be known of one CUDA card, in about ten minutes: the training step beside its compiled opponents, as a table
# for the README, and the tests that need a card, among them that a step does not wait for it.
#
#   examples/benchmarks/cuda.sh                         where `python3 -m tracecompile` is this checkout
#   VENV=.venv examples/benchmarks/cuda.sh              makes that virtual environment first, if it is not there
#   DEVICE=cpu QUICK=1 examples/benchmarks/cuda.sh      the script itself, without a card
#
# DEVICE, STEPS (256), REPEATS (5), NETWORKS (dense,recurrent,convolutional), OUTPUT (tracecompile-cuda), PYTHON.
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${DEVICE:-cuda} output=${OUTPUT:-tracecompile-cuda} python=${PYTHON:-python3}
rows=inference-compiled,bptt,bptt-compiled,inductor-4

if [ -n "${VENV:-}" ]; then
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    python=$VENV/bin/python
    "$python" -m pip install -q -e '.[test]'
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'import sys, torch; torch.zeros(1, device=sys.argv[1])' "$device" # fails here where there is no such device

quick=() steps=${STEPS:-256} repeats=${REPEATS:-5}
if [ -n "${QUICK:-}" ]; then quick=(--quick) steps=${STEPS:-32} repeats=${REPEATS:-1}; fi
"$python" -m tracecompile bench --device "$device" --network "${NETWORKS:-dense,recurrent,convolutional}" \
    --rows "$rows" --steps "$steps" --repeats "$repeats" --no-picture --output "$output" "${quick[@]}"
"$python" examples/benchmarks/table.py "$output.json"

# The same tests run on both devices, and are named after them.
"$python" -m pytest -n0 -q -p no:cacheprovider tests/test_devices.py tests/test_waiting.py -k "${device%%:*}"
