"""Window attention in Triton, forward: a program computes some heads of a window. Formulas: kernels/README.md."""

import triton
import triton.language as tl

from .triton_pairs import (
    NO_KEY,
    load_keys,
    load_masked,
    load_queries,
    load_region,
    masked_keys,
    raise_maximum,
    scores,
    store_head,
    window_rows,
    window_tables,
)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, exp_bias_ptr, top_ptr, masked_ptr,
    offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr, out_ptr,
    region_windows, mask_windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, COMPACT_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    HEADS_EACH: tl.constexpr,
):  # fmt: skip
    window = tl.program_id(0)
    first_head = tl.program_id(1) * HEADS_EACH
    key_first, key_count = window_rows(window, offsets_ptr, KEYS)
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and masked_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and masked_ptr is None
    out_first, out_count = window_rows(window, offsets_ptr if ONLY_VISIBLE else None, QUERIES)
    q_first = key_first if COMPACT_Q else out_first
    position_ptr, rows_ptr, region_ptr, mask_ptr = window_tables(
        window, position_ptr, rows_ptr, regions_ptr, mask_ptr, region_windows, mask_windows, key_first, QUERIES, KEYS
    )

    for start in range(0, out_count, BLOCK_T):
        out_row = start + tl.arange(0, BLOCK_T)
        valid = out_row < out_count
        place = out_row
        if ONLY_VISIBLE:
            place = tl.load(position_ptr + out_row, mask=valid, other=0)
        q_row = out_row
        if COMPACT_Q and not ONLY_VISIBLE:
            q_row = tl.load(rows_ptr + out_row, mask=valid, other=0)
        region = load_region(region_ptr, place, valid)

        for head in range(first_head, first_head + HEADS_EACH):
            column = head * HEAD_DIM
            head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
            q = load_queries(
                q_ptr + q_first * Q_STRIDE + column, q_row, valid, masked_ptr, head, Q_STRIDE, HEADS, HEAD_DIM, BLOCK_D
            )
            highest = tl.full((BLOCK_T,), NO_KEY, tl.float32)
            total = tl.zeros((BLOCK_T,), tl.float32)
            out = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
            if masked_ptr is not None:
                k_masked = load_masked(masked_ptr, 1, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)
                v_masked = load_masked(masked_ptr, 2, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)
                top, total = masked_keys(
                    head_bias_ptr,
                    None if exp_bias_ptr is None else exp_bias_ptr + head * (KEYS * QUERIES),
                    None if exp_bias_ptr is None else top_ptr + head * QUERIES,
                    mask_ptr, region_ptr, rows_ptr, place, region, valid, QUERIES, KEYS, BLOCK_N,
                )  # fmt: skip
                highest = tl.sum(q.to(tl.float32) * k_masked[None, :], 1) * scale + top
                out = total[:, None] * v_masked[None, :]
            for key_start in range(0, key_count, BLOCK_S):
                k, v, _, added = load_keys(
                    k_ptr + key_first * K_STRIDE + column, v_ptr + key_first * V_STRIDE + column, position_ptr,
                    key_start + tl.arange(0, BLOCK_S), key_count,
                    head_bias_ptr, mask_ptr, region_ptr, place, region, valid,
                    K_STRIDE, V_STRIDE, HEAD_DIM, BLOCK_D, QUERIES, EXCLUDE,
                )  # fmt: skip
                score = scores(q, k, added, scale, PRECISION)
                highest, shrink = raise_maximum(highest, score)
                p = tl.exp(score - highest[:, None])
                total = total * shrink + tl.sum(p, 1)
                out = out * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            out = out / tl.where(total == 0.0, 1.0, total)[:, None]  # a query without any key gets 0
            store_head(
                out_ptr + (out_first * HEADS + head) * HEAD_DIM, out_row, valid, out,
                HEADS * HEAD_DIM, HEAD_DIM, BLOCK_D,
            )  # fmt: skip
