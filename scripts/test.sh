#!/usr/bin/env bash
# Lint, type check and tests, with all set-up:  bash scripts/test.sh [--quick] [arguments of pytest]
# Makes the environment .venv where none is active and installs the package into it once.
set -u
cd "$(dirname "$0")/.." || exit 2
. scripts/common.sh

pytest_arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help)
            echo "usage: bash scripts/test.sh [--quick] [arguments of pytest]"
            echo "  --quick   leave out the tests marked slow (they train, or start nnU-Net's commands)"
            exit 0
            ;;
        --quick) pytest_arguments+=(-m "not slow") ;;
        *) pytest_arguments+=("$argument") ;;
    esac
done

started=$SECONDS
use_environment
install_package test

failed=()
check() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}
check ruff "$PYTHON" -m ruff check .
check mypy "$PYTHON" -m mypy
"$PYTHON" -c "import matplotlib.font_manager"  # makes its font cache, or it says so in an output that a test reads
check pytest "$PYTHON" -m pytest -n auto --maxprocesses 8 --timeout 1200 ${pytest_arguments[@]+"${pytest_arguments[@]}"}

took=$(duration $((SECONDS - started)))
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]} ($took)"
    exit 1
fi
echo "ALL PASSED: ruff, mypy, pytest ($took)"
