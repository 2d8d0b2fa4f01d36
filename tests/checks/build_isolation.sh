# `pip install .` with build isolation: pip makes an environment for the build, torch included.
source_copy "$WORK/isolated_source"
bare_venv "$WORK/isolated"
# Newer versions of pip read only the second name for it.
PIP_CONSTRAINT="$CHECKOUT/constraints.txt" PIP_BUILD_CONSTRAINT="$CHECKOUT/constraints.txt" \
  MASKED_SWIN_NATIVE=1 timeout 1800 "$WORK/isolated/bin/python" -m pip install --quiet --no-deps "$WORK/isolated_source"
installed=$SECONDS
borrow "$WORK/isolated"
smoke="$("$WORK/isolated/bin/python" "$HERE/smoke.py" "$WORK/isolated")"
proved "pip install . with build isolation took $installed s; $smoke"
