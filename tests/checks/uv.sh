# `uv pip install` of the wheel and of the source. uv finds versions for all requirements, but installs none: torch is borrowed.
file="$(wheel)"
source_copy "$WORK/uv_source"
bare_venv "$WORK/uv_tool"
pip_install "$WORK/uv_tool" "uv${UV_VERSION:+==$UV_VERSION}"
uv_install() { "$WORK/uv_tool/bin/uv" pip install --quiet --python "$1/bin/python" "${@:2}"; }
for what in wheel source; do
  borrowing_venv "$WORK/uv_$what"
  uv_install "$WORK/uv_$what" --dry-run "masked-swin[train] @ file://$file"
  case $what in
    wheel) uv_install "$WORK/uv_$what" --no-deps "$file" ;;
    source) MASKED_SWIN_NATIVE=1 uv_install "$WORK/uv_$what" --no-deps --no-build-isolation "$WORK/uv_source" ;;
  esac
  smoke="$("$WORK/uv_$what/bin/python" "$HERE/smoke.py" "$WORK/uv_$what")"
  proved "$("$WORK/uv_tool/bin/uv" --version) pip install of the $what; $smoke"
done
