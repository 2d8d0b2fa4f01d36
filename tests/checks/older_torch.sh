# The wheel built against the pinned torch runs under an older one: torch's stable ABI.
OLDER_TORCH="${OLDER_TORCH:-2.13.0}"
file="$(wheel)"
bare_venv "$WORK/older"
# The pins of everything but torch and what only it requires.
grep -vE '^(torch|triton|nvidia|cuda|setuptools)' "$CHECKOUT/constraints.txt" >"$WORK/older_constraints.txt"
# setuptools: torch.compile of torch 2.10 imports it, but torch does not require it for Python < 3.12.
pip_install "$WORK/older" -c "$WORK/older_constraints.txt" "torch==$OLDER_TORCH" numpy einops safetensors setuptools
pip_install "$WORK/older" --no-deps "$file"
smoke="$("$WORK/older/bin/python" "$HERE/smoke.py" "$WORK/older")"
proved "built against torch $("$PYTHON" -c 'import torch; print(torch.__version__)'), run on: $smoke"
