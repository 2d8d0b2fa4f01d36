# One wheel: its only top-level name is masked_swin, its tag serves CPython from 3.10 on, it runs outside the checkout.
file="$(wheel)"
borrowing_venv "$WORK/wheel"
pip_install "$WORK/wheel" --no-deps "$file"
contents="$("$PYTHON" "$HERE/wheel_contents.py" "$file")"
smoke="$("$WORK/wheel/bin/python" "$HERE/smoke.py" "$WORK/wheel")"
"$WORK/wheel/bin/masked-swin" doctor
proved "$contents"
proved "$smoke"
