#!/usr/bin/env bash
# Makes the environment (.venv beside pyproject.toml) if it is not there, then runs.
#
#   launch/run.sh [FLAGS]             train: python -m cerebra_jax.main --config=configs/wikitext.py FLAGS
#   launch/run.sh COMMAND [FLAGS]     any other command: eval, cost ...
#   launch/run.sh test [PYTEST ARGS]  the tests (pytest runs in the project's folder)
#
# Works from any folder: paths you give (--workdir, data_dir) are yours, relative to where you stand; only configs/... is
# also looked up in the project. PYTHON=python3.12 picks the interpreter, VENV=DIR the environment, EXTRA=gpu more extras.
# LOCK=.ci/lock.txt installs the versions of that file, each checked by its sha256, instead of the newest.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
extras=tb${EXTRA:+,$EXTRA}
what=run
if [ "${1:-}" = test ]; then what=test extras=test,$extras; shift; fi

refuse() { echo "error: $1; $2" >&2; exit 2; }

find_python() {  # the first Python >= 3.11; a name may be on PATH and still not run (pyenv shims)
  local py
  for py in ${PYTHON:-python3 python3.13 python3.12 python3.14 python3.11 python}; do
    if "$py" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$py"; return; fi
  done
  return 1
}

install() {  # uv where the machine already has it (several times faster), pip everywhere else
  if uv --version >/dev/null 2>&1; then
    if uv pip install -q --python "$venv/bin/python" "$@"; then return; fi
    echo "uv could not install; trying pip" >&2
  fi
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
}

mark=$venv/.made-by-run.sh  # holds the project's folder once the environment is complete: a moved one is made again
if [ "$(cat "$mark" 2>/dev/null)" != "$root" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  [ ! -e "$venv" ] || [ -e "$mark" ] || refuse "$venv exists and this script did not make it" "use another: VENV=DIR $0"
  py=$(find_python) || refuse "no Python 3.11 or newer (${PYTHON:-python3}: $("${PYTHON:-python3}" -V 2>&1 | head -1))" \
    "install one, or name it: PYTHON=python3.12 $0"
  "$py" -c 'import venv, ensurepip' 2>/dev/null ||
    refuse "$py cannot make environments" "on Debian and Ubuntu: sudo apt install python3-venv"
  echo "making $venv with $("$py" -V) (once, about half a minute)" >&2
  rm -rf "$venv"; mkdir -p "$venv"; touch "$mark"
  "$py" -m venv "$venv"
  echo "$root" >"$mark"
fi
lock=${LOCK:+$(cat "$LOCK")}
stamp=$venv/.installed-$(cat "$root/pyproject.toml" "$root/setup.py" - <<<"${EXTRA:-} $lock" | cksum | tr ' ' -)
if [ ! -e "$stamp-$what" ]; then
  [ -z "$lock" ] || install --require-hashes -r "$LOCK"
  install -e "$root[$extras]"
  touch "$stamp-run" "$stamp-$what"
fi

if [ "$what" = test ]; then
  cd "$root"
  exec "$venv/bin/python" -m pytest -q -n 2 --dist worksteal "$@"  # most of a test is one core compiling
fi

args=() given=
for arg in "$@"; do
  path=${arg#--config=}
  case $arg in --config | --config=*) given=yes ;; esac
  case $path in configs/*) [ -e "${path%%:*}" ] || arg=${arg%"$path"}$root/$path ;; esac
  args+=("$arg")
done
case ${1:-} in '' | -*) [ "$given" ] || args=(--config="$root/configs/wikitext.py" ${args[@]+"${args[@]}"}) ;; esac
# large pages for malloc (glibc >= 2.35, Linux): fewer page faults in a CPU step, see benchmarks/README.md
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec "$venv/bin/python" -m cerebra_jax.main ${args[@]+"${args[@]}"}
