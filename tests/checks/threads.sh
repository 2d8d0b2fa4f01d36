# The kernels under ThreadSanitizer, for every instruction set that this machine has; a planted race must be found.
source_copy "$WORK/threads_source"
(cd "$WORK/threads_source" && MASKED_SWIN_NATIVE=1 MASKED_SWIN_CXXFLAGS="-fsanitize=thread -O1 -g1" \
  MASKED_SWIN_LDFLAGS="-fsanitize=thread" "$PYTHON" setup.py --quiet build_ext --build-temp objects --build-lib library)
"${CXX:-g++}" -std=c++20 -O1 -g1 -fsanitize=thread -pthread -I"$WORK/threads_source/csrc" "$HERE/threads.cpp" \
  "$WORK"/threads_source/objects/{base/csrc/cpu/instruction_set,*/csrc/cpu/kernels/*}.o -o "$WORK/threads"
# The sanitizer of older compilers does not know the address layout of newer kernels.
command=("$WORK/threads")
setarch -R true 2>/dev/null && command=(setarch -R "$WORK/threads")
sets=()
for folder in "$WORK"/threads_source/objects/*/csrc/cpu/kernels; do
  isa="$(basename "${folder%/csrc/cpu/kernels}")"
  export MASKED_SWIN_CPU_ISA="$isa"
  "${command[@]}" | tee "$WORK/threads_output"
  grep -q "^$isa:" "$WORK/threads_output" || continue  # this machine has a lesser one
  if "${command[@]}" --plant-race >"$WORK/threads_planted" 2>&1 ||
    ! grep -q "WARNING: ThreadSanitizer: data race" "$WORK/threads_planted"; then
    echo "ThreadSanitizer does not find the planted race" >&2
    exit 1
  fi
  sets+=("$isa")
done
unset MASKED_SWIN_CPU_ISA
[ "${#sets[@]}" -gt 0 ]
proved "no race under ThreadSanitizer, results independent of the number of threads, a planted race found: ${sets[*]}"
