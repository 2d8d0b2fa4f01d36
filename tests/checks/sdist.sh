# The sdist holds all that a wheel needs.
source_copy "$WORK/sdist_source"
borrowing_venv "$WORK/sdist"
(cd "$WORK/sdist_source" && "$WORK/sdist/bin/python" -m build --no-isolation --skip-dependency-check --sdist \
  --outdir "$WORK/sdist_dist" . >/dev/null)
MASKED_SWIN_NATIVE=1 pip_install "$WORK/sdist" --no-deps --no-build-isolation "$WORK"/sdist_dist/*.tar.gz
smoke="$("$WORK/sdist/bin/python" "$HERE/smoke.py" "$WORK/sdist")"
tar -tzf "$WORK"/sdist_dist/*.tar.gz | grep -E '\.(so|pyc)$' && exit 1
proved "$(basename "$WORK"/sdist_dist/*.tar.gz) -> wheel; $smoke"
