# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, for every instruction set that this machine has.
source_copy "$WORK/sanitized_source"
borrowing_venv "$WORK/sanitized"
MASKED_SWIN_NATIVE=1 MASKED_SWIN_LDFLAGS="-fsanitize=address,undefined" \
  MASKED_SWIN_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -fno-omit-frame-pointer -g1" \
  pip_install "$WORK/sanitized" --no-deps --no-build-isolation "$WORK/sanitized_source"
# The tests without the package beside them, which would hide the installed one.
mkdir "$WORK/sanitized_tests"
cp -r "$WORK/sanitized_source/tests" "$WORK/sanitized_source/pyproject.toml" "$WORK/sanitized_tests"

# Python itself is not instrumented: the runtime comes first, and libstdc++ for the exceptions that it intercepts.
runtime="$("${CXX:-g++}" -print-file-name=libasan.so) $("${CXX:-g++}" -print-file-name=libstdc++.so)"
sanitized() {
  LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 MASKED_SWIN_CPU_ISA=$isa \
    "$WORK/sanitized/bin/python" "$@"
}
sets=()
cd "$WORK/sanitized_tests"
for isa in portable avx2 avx512 avx512_bf16; do
  used="$(sanitized -c 'from masked_swin.kernels import CPU_LIBRARY; print(CPU_LIBRARY.instruction_set)')"
  [ "$used" = "$isa" ] || continue
  # Left out: tests that start a compiler, which would inherit the sanitizer, and those that try each instruction set.
  sanitized -m pytest \
    tests/kernels/cpu \
    tests/kernels/test_{window_attention,swin_block,convolution,token_mask,noise,backends,empty,ops}.py -m "not gpu" \
    -k "not compile and not export and not graph and not lesser_instruction_sets" \
    --capture=sys -p no:cacheprovider --timeout=1200
  sets+=("$isa")
done
cd "$WORK"
proved "kernel tests under ASan and UBSan: ${sets[*]}"
