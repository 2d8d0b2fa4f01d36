# A corrupt or foreign file in place of the kernel library breaks nothing: doctor names it.
file="$(wheel)"
borrowing_venv "$WORK/foreign"
pip_install "$WORK/foreign" --no-deps "$file"
library="$(echo "$WORK"/foreign/lib/python*/site-packages/masked_swin/kernels/cpu/_cpu.abi3.so)"
mkdir "$WORK/foreign_files"
"$WORK/foreign/bin/python" "$HERE/foreign_libraries.py" "$library" "$WORK/foreign_files"
kinds=()
for broken in "$WORK"/foreign_files/*; do
  cp --remove-destination "$broken" "$library"
  "$WORK/foreign/bin/python" "$HERE/without_kernels.py" "$WORK/foreign" "_cpu.abi3.so" | grep "C++ kernels"
  kinds+=("$(basename "$broken")")
done
proved "import, doctor and the reference work beside a library that is: ${kinds[*]}"
