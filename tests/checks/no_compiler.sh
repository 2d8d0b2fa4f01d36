# Without a C++ compiler the package installs as pure Python; MASKED_SWIN_NATIVE=1 makes that an error instead.
no_compiler() {
  local venv="$WORK/no_compiler_$1" source="$WORK/no_compiler_source_$1"
  source_copy "$source"
  borrowing_venv "$venv"
  (shift && env "$@" "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation "$source")
  "$venv/bin/python" "$HERE/without_kernels.py" "$venv" "built without its C++ kernels"
  "$venv/bin/masked-swin" doctor | grep "cpu .*cannot run: the package was built without its C++ kernels" >/dev/null
}
no_compiler failing CC=/bin/false CXX=/bin/false
no_compiler missing -u CC -u CXX PATH="$WORK/no_compiler_missing/bin"
if CXX=/bin/false CC=/bin/false MASKED_SWIN_NATIVE=1 pip_install "$WORK/no_compiler_failing" --no-deps \
  --no-build-isolation "$WORK/no_compiler_source_failing" >/dev/null 2>&1; then
  echo "MASKED_SWIN_NATIVE=1 did not fail without a compiler" >&2
  exit 1
fi
proved "with a failing and with no compiler: pure Python, doctor says why, the reference runs; NATIVE=1 fails"
