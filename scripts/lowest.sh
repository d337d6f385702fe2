#!/usr/bin/env bash
# The lowest versions that pyproject.toml allows: a new environment with constraints-lowest.txt, in which a small model
# is trained, evaluated and asked, and some quick tests pass. Ends with another status than 0 where one of them fails.
#
#     scripts/lowest.sh             all of it
#     scripts/lowest.sh --list      write constraints-lowest.txt anew (needs uv), after a bound was changed
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

if [ "${1:-}" = --list ]; then
    {
        echo "# The lowest versions that cbm allows, found by: scripts/lowest.sh --list (Python 3.11, Linux)."
        echo "# Used as: uv pip install '.[test]' -c constraints-lowest.txt; scripts/lowest.sh trains and tests with them."
        uv pip compile pyproject.toml --resolution lowest-direct --all-extras --python-version 3.11 \
            --python-platform x86_64-unknown-linux-gnu --no-header --no-annotate --no-emit-index-url --quiet
    } >constraints-lowest.new
    mv constraints-lowest.new constraints-lowest.txt
    exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if command -v uv >/dev/null; then
    uv venv --quiet --python "${PYTHON:-python3}" "$work/venv"
    uv pip install --quiet --python "$work/venv/bin/python" '.[test]' -c constraints-lowest.txt
else
    "${PYTHON:-python3}" -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet '.[test]' -c constraints-lowest.txt
fi

# from another folder: what is installed is what runs
cd "$work"
"$work/venv/bin/python" -m cbm train shots=2 report=false controls=false run_dir=run
"$work/venv/bin/python" -m cbm eval run=run split=val
images=$(dirname "$(find "$work/datasets" -name "*.png" -path "*test*" -print -quit)")
"$work/venv/bin/python" -m cbm predict run "$images" --out found.csv
[ "$(wc -l <found.csv)" -gt 2 ]
cd "$root"
"$work/venv/bin/python" -m pytest -n 2 tests/files tests/encoders/test_factory.py tests/layers tests/losses \
    tests/concepts/test_readers.py tests/data/test_tables.py tests/trained/test_export.py tests/trained/test_estimator.py
