#!/bin/sh
# All of it on a GPU machine that reaches no package registry: join and install carried wheels, test, measure.
#
#   WHEELS=.whl sh evaluation/gpu/all.sh
#
# WHEELS   folder of wheels for this Python; one that had to be cut lies there as NAME.whl.part-00, -01, ...; unset: none
# SITE     folder to install them into (default: build/gpu/site)
# PYTHON   the machine's own Python (default: python3)
# OUT      folder that gets all results in one gpu-results.tar.gz (default: build/gpu)
# TEST     steps of `make gpu-test`, separated by commas; `none` leaves it out, unset runs all of them
# BENCH    steps of `make gpu-bench`, likewise
# BUDGET   seconds for the tests, and again for the measurements (default: 270)
# GPU_ARGS further options of evaluation/gpu/steps.py
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
SITE=${SITE:-build/gpu/site}
OUT=${OUT:-build/gpu}
BUDGET=${BUDGET:-270}
mkdir -p "$OUT" build/gpu

if [ -n "${WHEELS:-}" ]; then
    joined=build/gpu/wheels
    rm -rf "$joined" && mkdir -p "$joined" || exit 1
    for first in "$WHEELS"/*.whl.part-00; do
        [ -e "$first" ] || continue
        whole=$(basename "${first%.part-00}")
        # The shell sorts the parts by name, which is their order.
        cat "${first%00}"* > "$joined/$whole" || exit 1
    done
    for wheel in "$WHEELS"/*.whl; do
        [ -e "$wheel" ] && ln -sf "$(realpath "$wheel")" "$joined/"
    done
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$SITE" "$joined"/*.whl || exit 1
fi
PYTHONPATH=$(realpath -m "$SITE")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

# The folders under their import name, as `make types` lays them; neither make nor an installation is needed.
rm -rf .types && mkdir -p .types/centernet_trt
ln -sfn "$PWD"/package/*.py .types/centernet_trt/
for init in */__init__.py; do
    [ -e "$init" ] || continue
    room=${init%/*}
    [ "$room" = package ] || ln -sfn "$PWD/$room" ".types/centernet_trt/$room"
done
PYTHONPATH=$PWD/.types:$PYTHONPATH

failed=0
run() { # test or bench, steps
    [ "$2" = none ] && return
    # shellcheck disable=SC2086 # several options
    "$PYTHON" -m centernet_trt.evaluation.gpu.steps "$1" ${2:+--steps "$2"} --budget "$BUDGET" ${GPU_ARGS:-} || failed=1
}
run test "${TEST:-}"
run bench "${BENCH:-}"
tar -czf "$OUT/gpu-results.tar.gz" --exclude=site --exclude=wheels --exclude=bundles --exclude='*.tar.gz' \
    build/gpu $(ls -d evaluation/results/gpu-* 2>/dev/null)
echo "results: $OUT/gpu-results.tar.gz"
exit $failed
