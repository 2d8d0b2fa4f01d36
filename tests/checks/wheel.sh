# One wheel: its only top-level name is masked_swin, its tag serves CPython from 3.10 on (and on x86-64 Linux, glibc from
# 2.28 on), it runs outside the checkout, and its kernels where there is no compiler. DIST=DIR: leaves the wheel there.
file="$(wheel)"
borrowing_venv "$WORK/wheel"
pip_install "$WORK/wheel" --no-deps "$file"
contents="$("$PYTHON" "$HERE/wheel_contents.py" "$file")"
smoke="$("$WORK/wheel/bin/python" "$HERE/smoke.py" "$WORK/wheel")"
env -u CC -u CXX PATH="$WORK/wheel/bin" masked-swin doctor | tee "$WORK/doctor"
grep "C++ kernels *loaded" "$WORK/doctor" >/dev/null
[ -z "${DIST:-}" ] || { mkdir -p "$DIST" && cp "$file" "$DIST" && echo "$DIST/${file##*/}"; }
proved "$contents"
proved "$smoke"
