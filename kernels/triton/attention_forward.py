"""Window attention in Triton, forward: a program attends one head of some windows. Formulas: kernels/README.md."""

import triton
import triton.language as tl

from .attention_pairs import (
    NO_KEY,
    add_window_tables,
    load_bias,
    load_head,
    load_masked,
    load_queries,
    masked_scores,
    query_rows,
    store_head,
    take_windows,
)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, masked_ptr, masked_bias_ptr,
    offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr,
    windows, region_windows, mask_windows, scale,
    out_ptr, stats_ptr, out_rows, windows_each,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPACT_Q: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, OUT_HEAD_STRIDE: tl.constexpr, LANES: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`stats` (heads, 3, rows of out), if wanted: of each query the largest score, 1 / softmax denominator, and the
    masked key's share before that division.

    The first two are apart because the logarithm of both would lose digits where scores are large.
    """
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and masked_ptr is None
    PACKED: tl.constexpr = ONLY_VISIBLE and mask_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and masked_ptr is None
    ONE_TILE: tl.constexpr = offsets_ptr is None and KEYS <= BLOCK_S and QUERIES <= BLOCK_T
    head = tl.program_id(0)
    column = head * HEAD_STRIDE
    head_rows = head.to(tl.int64) * out_rows
    head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
    if masked_ptr is not None:
        k_masked = load_masked(masked_ptr, 1, head, HEADS, BLOCK_D)
        v_masked = load_masked(masked_ptr, 2, head, HEADS, BLOCK_D)
    if ONE_TILE:  # then the bias stays in registers
        key, query = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_T)
        bias = load_bias(head_bias_ptr, query, query < QUERIES, key, key < KEYS, QUERIES)

    first_window = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * windows_each
    steps = tl.minimum(windows_each, windows - first_window)
    step = 0
    while step < steps:
        window = first_window + step
        taken, key_first, key_count, out_first, out_count = take_windows(
            window, steps - step, offsets_ptr, regions_ptr, region_windows, BLOCK_T, QUERIES, KEYS, PACKED, ONLY_VISIBLE
        )
        q_first = key_first if COMPACT_Q else out_first
        pack_ptr = offsets_ptr + window if PACKED else None
        window_rows_ptr = None if rows_ptr is None else rows_ptr + window.to(tl.int64) * KEYS
        region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
        window_mask_ptr = None
        if mask_ptr is not None:
            window_mask_ptr = mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)
        for start in range(0, out_count, BLOCK_T):
            out_row, q_row, place, valid = query_rows(
                start, out_count, None if position_ptr is None else position_ptr + key_first, window_rows_ptr,
                QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T,
            )  # fmt: skip
            q = load_queries(
                q_ptr + q_first * Q_STRIDE + column, q_row, valid, masked_ptr, head, Q_STRIDE, PADDED, LANES, BLOCK_D
            )
            highest = tl.full((BLOCK_T,), NO_KEY, tl.float32)
            total = tl.zeros((BLOCK_T,), tl.float32)
            out = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
            if masked_ptr is not None:
                masked_score = masked_scores(
                    q, k_masked, masked_bias_ptr + head_rows + out_first, out_row, valid, scale
                )
                highest = tl.maximum(masked_score, NO_KEY)
                total = tl.exp2(masked_score - highest)
                out = total[:, None] * v_masked[None, :]
            for key_start in range(0, key_count, BLOCK_S):
                key_row = key_start + tl.arange(0, BLOCK_S)
                key_valid = key_row < key_count
                key_place = key_row
                if position_ptr is not None:
                    key_place = tl.load(position_ptr + key_first + key_row, mask=key_valid, other=0)
                if not ONE_TILE:
                    bias = load_bias(head_bias_ptr, place, valid, key_place, key_valid, QUERIES)
                added = add_window_tables(
                    bias, window_mask_ptr, region_ptr, place, valid, key_place, key_valid, QUERIES, KEYS, EXCLUDE,
                    out_row, key_row, pack_ptr, taken,
                )  # fmt: skip
                k = load_head(k_ptr + key_first * K_STRIDE + column, key_row, key_valid, K_STRIDE, LANES, BLOCK_D)
                v = load_head(v_ptr + key_first * V_STRIDE + column, key_row, key_valid, V_STRIDE, LANES, BLOCK_D)
                score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + tl.trans(added)
                raised = tl.maximum(highest, tl.max(score, 1))
                shrink = tl.exp2(highest - raised)
                highest = raised
                p = tl.exp2(score - highest[:, None])
                total = total * shrink + tl.sum(p, 1)
                out = out * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            share = tl.where(total == 0.0, 0.0, 1.0 / total)  # a query without any key gets 0
            out = out * share[:, None]
            store_head(
                out_ptr + out_first * OUT_STRIDE + head * OUT_HEAD_STRIDE, out_row, valid, out,
                OUT_STRIDE, LANES, BLOCK_D,
            )  # fmt: skip
            if stats_ptr is not None:
                row_ptr = stats_ptr + 3 * head_rows + out_first + out_row
                tl.store(row_ptr, highest, mask=valid)
                tl.store(row_ptr + out_rows, share, mask=valid)
                if masked_ptr is not None:
                    tl.store(row_ptr + 2 * out_rows, tl.exp2(masked_score - highest), mask=valid)
        step += taken
