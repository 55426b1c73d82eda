#!/usr/bin/env bash
# All figures of a GPU: the GPU tests, then on_gpu.py. Under eight minutes on an H200.
#   bash benchmarks/on_gpu.sh [--device cpu] [more arguments of on_gpu.py]
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python}
case " $* " in
    *" --device cpu "*) echo "GPU tests: left out on the CPU" ;;
    *) timeout 150 "$python" -m pytest -q -m gpu -p no:cacheprovider tests || echo "GPU tests failed: status $?" ;;
esac
timeout 330 "$python" benchmarks/on_gpu.py "$@"
