# The kernels under ThreadSanitizer, for every instruction set that this machine has; a planted race must be found.
source_copy "$WORK/threads_source"
(cd "$WORK/threads_source" && MASKED_SWIN_NATIVE=1 MASKED_SWIN_CXXFLAGS="-fsanitize=thread -O1 -g1" \
  MASKED_SWIN_LDFLAGS="-fsanitize=thread" "$PYTHON" setup.py --quiet build_ext --build-temp objects --build-lib library)
# The sanitizer of older compilers does not know the address layout of newer kernels.
fixed_layout=()
setarch -R true 2>/dev/null && fixed_layout=(setarch -R)
sets=()
for folder in "$WORK"/threads_source/objects/*/csrc/cpu; do
  isa="$(basename "${folder%/csrc/cpu}")"
  program="$WORK/threads_$isa"
  "${CXX:-g++}" -std=c++20 -O1 -g1 -fsanitize=thread -pthread -I"$WORK/threads_source/csrc" -DMASKED_SWIN_ISA="$isa" \
    "$HERE/threads.cpp" "$folder"/*.o -o "$program"
  status=0
  "${fixed_layout[@]}" "$program" || status=$?
  [ "$status" != 2 ] || continue
  [ "$status" = 0 ]
  if "${fixed_layout[@]}" "$program" --plant-race >"$WORK/threads_planted" 2>&1 ||
    ! grep -q "WARNING: ThreadSanitizer: data race" "$WORK/threads_planted"; then
    echo "ThreadSanitizer does not find the planted race" >&2
    exit 1
  fi
  sets+=("$isa")
done
[ "${#sets[@]}" -gt 0 ]
proved "no race under ThreadSanitizer, results independent of the number of threads, a planted race found: ${sets[*]}"
