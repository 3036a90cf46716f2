#!/usr/bin/env bash
# The demo with all set-up:  bash scripts/demo.sh [options of nnunet_dhc demo]
# Makes the environment .venv where none is active, installs the package once, then runs `nnunet_dhc demo`.
# Relative paths are those of the folder it is called from; without -o, everything goes to .demo of the repository.
set -eu
caller=$PWD
cd "$(dirname "$0")/.."
. scripts/common.sh

case " $* " in
    *" -h "* | *" --help "*)
        echo "usage: bash scripts/demo.sh [-o DIR] [--data DIR] [--equal-time] [--control] [-device cpu|cuda|mps] ..."
        echo "Trains stock nnU-Net and DHC on a small phantom of an abdomen (or on DIR, a dataset in nnU-Net's raw"
        echo "format) and compares them. Options are those of: nnunet_dhc demo -h"
        echo "Without -o, everything goes to .demo in the folder of this repository."
        exit 0
        ;;
esac

use_environment
install_package ""
folder=$PWD/.demo
cd "$caller"
exec nnunet_dhc demo -o "$folder" "$@"
