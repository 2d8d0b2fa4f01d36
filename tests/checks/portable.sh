# The library's sources compile for other processors and systems, here those of ARM under Linux and macOS, and the
# kernels compute the same there. Zig's clang brings the headers and libraries of both systems.
portable() {
  bare_venv "$WORK/zig"
  if ! pip_install "$WORK/zig" --no-deps "ziglang==${ZIG_VERSION:-0.17.1}"; then
    skipped "no cross compiler: 'pip install ziglang' failed"
    return 0
  fi
  export ZIG_GLOBAL_CACHE_DIR="$WORK/zig_cache" ZIG_LOCAL_CACHE_DIR="$WORK/zig_cache"
  local flags torch target source emulator
  read -ra flags <<<"$(cd "$CHECKOUT" && "$PYTHON" -B -c 'import setup; print(*setup.FLAGS)')"
  read -ra torch <<<"$(cd "$CHECKOUT" && "$PYTHON" -B -c '
import setup, torch
print(f"-isystem {torch.__path__[0]}/include -DTORCH_STABLE_ONLY -DTORCH_TARGET_VERSION={setup.TORCH_2_10}")')"
  flags+=(-I"$CHECKOUT/csrc")
  cross() {
    # `this` is captured for sizes that are members of one instantiation and constants of another.
    "$WORK/zig/bin/python" -m ziglang c++ -target "$1" "${flags[@]}" -Werror -Wno-unknown-warning-option \
      -Wno-unused-lambda-capture "${@:2}"
  }
  for target in aarch64-linux-gnu aarch64-macos; do
    for source in "$CHECKOUT"/csrc/cpu/*.cpp; do
      cross "$target" "${torch[@]}" -c "$source" -o "$WORK/operator.o"
    done
  done
  for target in aarch64-linux-musl aarch64-macos; do  # musl: the emulator needs a static program
    local objects=()
    for source in "$CHECKOUT"/csrc/cpu/kernels/*.cpp; do
      for set in portable neon_bf16; do
        objects+=("$WORK/$target.$set.$(basename "$source").o")
        # Zig names features of processors, not architectures.
        cross "$target" $([ $set = portable ] || echo -mcpu=generic+v8_2a+bf16) -DMASKED_SWIN_ISA=$set -c "$source" \
          -o "${objects[-1]}"
      done
    done
    cross "$target" -DMASKED_SWIN_ARM_BF16 "${objects[@]}" "$CHECKOUT/csrc/cpu/instruction_set.cpp" "$HERE/threads.cpp" \
      -o "$WORK/threads_$target"
  done
  proved "operators and kernels, also with bfloat16, compile for ARM under Linux and macOS"

  emulator="$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)"
  if [ -z "$emulator" ]; then
    skipped "run on ARM: no qemu-aarch64 (Debian: apt-get install qemu-user-static)"
    return 0
  fi
  "${CXX:-g++}" "${flags[@]}" -DMASKED_SWIN_ISA=portable -pthread "$CHECKOUT"/csrc/cpu/{instruction_set,kernels/*}.cpp "$HERE/threads.cpp" -o "$WORK/threads_here"
  "$WORK/threads_here" --save "$WORK/results"
  MASKED_SWIN_CPU_ISA=portable "$emulator" "$WORK/threads_aarch64-linux-musl" --compare "$WORK/results"
  proved "on ARM, emulated: the results of this machine's portable build, up to rounding"
  "$emulator" -cpu max "$WORK/threads_aarch64-linux-musl" --compare-narrow "$WORK/results" | tee "$WORK/narrow"
  grep "^neon_bf16" "$WORK/narrow" >/dev/null
  proved "on ARM with bfloat16, emulated: the same, up to the rounding of bfloat16 where products have it"
}
portable
