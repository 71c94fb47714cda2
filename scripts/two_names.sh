#!/usr/bin/env bash
# Lightning goes by two package names. Makes one environment with both and one with `lightning` alone, and runs
# tests/callbacks/glue/test_compat.py in each:
#
#   scripts/two_names.sh [--reuse SITE_PACKAGES] [--into FOLDER]
#
# --reuse takes torch and the rest from an environment that is there (its site-packages folder), so that only Lightning is
# downloaded; --into keeps the environments (default: a temporary folder, removed at the end).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
reuse= into=
while [ $# -gt 0 ]; do
  case $1 in
    --reuse) reuse=$(cd "$2" && pwd); shift 2 ;;
    --into) into=$2; shift 2 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
if [ -z "$into" ]; then
  into=$(mktemp -d)
  trap 'rm -rf "$into"' EXIT
fi

make_environment() {  # name
  local env=$into/$1
  "${PYTHON:-python3}" -m venv "$env"
  if [ -n "$reuse" ]; then
    # Links to everything but Lightning itself: a plain .pth to the whole folder would bring the other name along.
    mkdir -p "$env/reused"
    find "$reuse" -mindepth 1 -maxdepth 1 ! -iname 'pytorch_lightning*' ! -iname 'lightning' ! -iname 'lightning-*' \
      ! -iname 'lightning_fabric*' ! -iname 'pip*' ! -iname 'groupcam*' ! -name '*.pth' -exec ln -sf -t "$env/reused" {} +
    echo "$env/reused" > "$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/reused.pth"
  else
    "$env/bin/pip" install --quiet torch torchvision torchmetrics pytest pytest-timeout
  fi
  "$env/bin/pip" install --quiet lightning
}

run_tests() {  # name, the package names it must have
  echo "== $1: $2"
  (cd "$root" && TWO_NAMES="$2" PYTHONPATH="$root" "$into/$1/bin/python" -m pytest -q tests/callbacks/glue/test_compat.py)
}

make_environment both
"$into/both/bin/pip" install --quiet pytorch-lightning
run_tests both "pytorch_lightning lightning.pytorch"

make_environment alone
"$into/alone/bin/pip" uninstall --quiet --yes pytorch-lightning 2>/dev/null || true  # `lightning` declares it, but runs without
run_tests alone "lightning.pytorch"
