#!/usr/bin/env bash
# benchmarks/on_gpu.sh OUT: tests on the card, then the suites, on a CUDA machine from a plain checkout: no network, no
# installation. Results, log and plot go into OUT; a short table comes last. Everything stays within nine minutes.
# benchmarks/on_gpu.sh OUT SUITE...: only these suites, for example bench_masked_blocks, on their whole grids and beside
# compiled baselines. What the time does not suffice for is left out; PYTEST_ADDOPTS="-k 'float16 and bwd'" picks a part.
# FASTVAE_SANITIZER=memcheck|racecheck|initcheck benchmarks/on_gpu.sh OUT: only the persistent kernels and the masked
# convolutions, under that tool of compute-sanitizer, which comes with the CUDA toolkit.
set -uo pipefail
out=$(realpath -m "${1:?usage: benchmarks/on_gpu.sh OUT [SUITE...]}")
shift
cd "$(dirname "$0")/.."
mkdir -p "$out"
python=${PYTHON:-python3}
suites=("$@")
for suite in "$@"; do
  [[ -f benchmarks/$suite.py ]] || { echo "no suite benchmarks/$suite.py" >&2; exit 2; }
done
if (($#)); then
  export FASTVAE_BENCH=${FASTVAE_BENCH:-full} FASTVAE_BENCH_COMPILE=${FASTVAE_BENCH_COMPILE:-1}
else
  for suite in benchmarks/bench_*.py; do suites+=("$(basename "$suite" .py)"); done
fi
export PYTHONPATH=.:kernels MPLBACKEND=Agg
log=$out/log.txt
: >"$log"
failed=0
end=$((SECONDS + 525))

# part NAME SECONDS COMMAND...: logs everything, shows the last lines, never takes longer than it may
part() {
  local name=$1 seconds=$2 left=$((end - SECONDS)) status
  shift 2
  ((left < 5)) && { echo "== $name: left out, no time" | tee -a "$log"; failed=1; return; }
  ((seconds > left)) && seconds=$left
  echo "== $name (at most $seconds s): $*" | tee -a "$log"
  timeout -s INT -k 10 "$seconds" "$@" >"$out/part.txt" 2>&1
  status=$?
  cat "$out/part.txt" >>"$log"
  tail -n 4 "$out/part.txt"
  if ((status != 0)); then
    echo "== $name: exit status $status" | tee -a "$log"
    failed=1
  fi
}

"$python" -c "import pytest" 2>/dev/null || { echo "$python has no pytest: nothing can run" | tee -a "$log"; exit 1; }
part machine 60 "$python" -c "
import json
from benchmarks.environment import environment
print(json.dumps(environment(), indent=1))
for name in ('pytest', 'pytest_benchmark', 'hypothesis', 'matplotlib', 'zuko'):
    try: __import__(name)
    except ImportError: print('not installed:', name)
"
if [[ ${FASTVAE_BENCH:-} != tiny ]] && ! "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then
  echo "no CUDA device: nothing to measure (FASTVAE_BENCH=tiny rehearses this script on a CPU)" | tee -a "$log"
  exit 1
fi
quiet=(-q -p no:cacheprovider -o addopts="--import-mode=importlib -ra")
if [[ -n ${FASTVAE_SANITIZER:-} ]]; then
  sanitizer=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer) \
    || { echo "no compute-sanitizer in PATH or CUDA_HOME/bin" | tee -a "$log"; exit 1; }
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # else one tensor may read its neighbour unnoticed
  check=("$sanitizer" --tool "$FASTVAE_SANITIZER" --target-processes all --error-exitcode 9)
  part "persistent kernels" 260 "${check[@]}" "$python" -m pytest tests/gpu/test_sampling_backends_gpu.py -m gpu \
    "${quiet[@]}" -k "triton and repeat"
  part "masked convolutions" 260 "${check[@]}" "$python" -m pytest tests/gpu -m gpu "${quiet[@]}" \
    -k "conv2d and small_shapes or unaligned or spoils"
  exit "$failed"
fi
(($#)) || part tests 160 "$python" -m pytest tests/gpu -m gpu "${quiet[@]}"
results=()
left_over=${#suites[@]}
for name in "${suites[@]}"; do
  seconds=$(((end - SECONDS) / left_over)) # what one does not need is there for the others
  left_over=$((left_over - 1))
  # stopped by the time, it still writes what it has measured
  part "$name" "$seconds" "$python" -m pytest "benchmarks/$name.py" -q -p no:cacheprovider \
    -o addopts=--import-mode=importlib --benchmark-json="$out/$name.json"
  [[ -s $out/$name.json ]] && results+=("$out/$name.json")
done
rm -f "$out/part.txt"
if ((${#results[@]})); then
  "$python" -m benchmarks.report "${results[@]}" --plot "$out/benchmarks.png" >"$out/report.md"
  "$python" -m benchmarks.report --short "${results[@]}" --plot "$out/benchmarks.png" | tee -a "$log"
fi
echo "== done in $SECONDS s, $( ((failed)) && echo 'with failures: see' || echo 'log:') $log"
exit "$failed"
