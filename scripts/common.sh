# shellcheck shell=bash
# Shared by the scripts of this folder: an environment with this package in it. Source it from the repository's root.

# Prints one line and stops the script.
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 2
}

# Sets PYTHON to the interpreter of the active environment, or of .venv, which is made where no environment is active.
use_environment() {
    if [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
        PYTHON="$VIRTUAL_ENV/bin/python"
    elif [ -n "${CONDA_PREFIX:-}" ] && [ -x "$CONDA_PREFIX/bin/python" ]; then
        PYTHON="$CONDA_PREFIX/bin/python"
    else
        if ! .venv/bin/python -c '' 2>/dev/null; then
            local base
            base=$(find_python) || fail "needs Python 3.10 or later; none of python3.12, python3.11, python3.10, python3 is"
            echo "Making the environment .venv with $("$base" --version) ..."
            "$base" -m venv --clear .venv ||
                fail "could not make .venv; on Debian and Ubuntu: apt-get install python3-venv"
        fi
        PYTHON="$PWD/.venv/bin/python"
    fi
    # The console commands of the environment come first, also for the processes that these commands start.
    PATH="$(dirname "$PYTHON"):$PATH"
    export PYTHON PATH
}

# Prints the first interpreter that is recent enough.
find_python() {
    local candidate
    for candidate in python3 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# Installs this checkout, editable, with the extras given ("test" or nothing). A stamp in the environment makes the
# second run start at once; it holds what decides the requirements.
install_package() {
    local extras=$1 stamp wanted
    stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.nnunet_dhc_installed_${extras:-plain}"
    wanted="$PWD $(cat setup.py pyproject.toml nnunet_dhc/__init__.py | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$PYTHON" -c 'import nnunet_dhc, nnunetv2' 2>/dev/null; then
        return
    fi
    echo "Installing nnunet_dhc${extras:+ with the extra \"$extras\"} (the first time, torch and nnU-Net are fetched: minutes) ..."
    "$PYTHON" -m pip install -qq --disable-pip-version-check -e ".${extras:+[$extras]}" ||
        fail "pip could not install the package, see above"
    echo "$wanted" 2>/dev/null > "$stamp" || true
}

# "125" -> "2 min 5 s"
duration() {
    printf '%d min %d s' $(($1 / 60)) $(($1 % 60))
}
