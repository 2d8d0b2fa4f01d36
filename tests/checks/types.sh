# mypy accepts the installed wheel as its users' mypy sees it.
file="$(wheel)"
borrowing_venv "$WORK/types"
pip_install "$WORK/types" --no-deps "$file"
"$PYTHON" -m mypy --config-file "$CHECKOUT/pyproject.toml" --python-executable "$WORK/types/bin/python" \
  --cache-dir "$WORK/mypy_cache" -p masked_swin
proved "mypy --strict -p masked_swin on the installed wheel"
