#!/usr/bin/env bash
# Resolve locks/cpu.txt and locks/gpu.txt again from pyproject.toml (needs uv). Run it after a
# change of a dependency; the packages that are left out are CUDA builds that nothing here imports.
set -euo pipefail
cd "$(dirname "$0")/.."
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
never='python_version < "3"'

compile() { # extra, output
  uv pip compile pyproject.toml --extra "$1" --extra dev --override "$overrides" --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --no-annotate --no-header --no-emit-index-url \
    ${UV_LOCK_ARGS:-} --output-file "$2" --quiet
  sed -i 's/+cpu$//' "$2"
}

printf '%s\n' 'torch==2.13.0' 'setuptools==78.1.1' "webrtcvad ; $never" "typing ; $never" > "$overrides"
compile gpu locks/gpu.txt
printf '%s\n' "torchvision ; $never" "torchaudio ; $never" "torchcodec ; $never" "triton ; $never" \
  >> "$overrides"
compile cpu locks/cpu.txt
sed -i -E '/^(nvidia|cuda)-/d' locks/cpu.txt # torch's CPU build needs none of them
