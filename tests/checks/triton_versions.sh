# The Triton kernels compile and compute the same with the Triton of every supported PyTorch: 2.10 and 2.11 bring 3.6.0,
# 2.12 3.7.1; 3.9.0 is newer than the pinned one. ptxsim executes what each version compiles.
VERSIONS="${TRITON_VERSIONS:-3.6.0 3.7.1 3.9.0}"
for version in $VERSIONS; do
  pip_install "$CHECKOUT/.venv" --no-deps --target "$WORK/triton_$version" "triton==$version"
  found="$(PYTHONPATH="$WORK/triton_$version" "$PYTHON" -c 'import triton; print(triton.__version__)')"
  [ "$found" = "$version" ] || { echo "imported Triton $found instead of $version" >&2; exit 1; }
  # 3.9 warns where this is not set, and warnings are errors in the tests. 1 is what older versions did.
  (cd "$CHECKOUT" && PYTHONPATH="$WORK/triton_$version" TRITON_CACHE_DIR="$WORK/triton_cache_$version" \
    TRITON_DEFAULT_FP_FUSION=1 "$PYTHON" -m pytest -p no:cacheprovider -m "not slow and not gpu" \
    -k "compiled and not graph and not autocast or published_shape or padded_heads or rectangle_in or masked_keys_in" \
    tests/kernels/triton/test_window_attention.py tests/kernels/triton/test_swin_block.py \
    tests/kernels/triton/test_mlp.py tests/kernels/triton/test_token_mask.py)
done
proved "the kernels that ptxsim executes, compiled by Triton $VERSIONS"
