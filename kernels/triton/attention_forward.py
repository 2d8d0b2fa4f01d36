"""Window attention in Triton, forward: a program attends one head of some windows. Formulas: kernels/README.md."""

import triton
import triton.language as tl

from .attention_pairs import (
    NO_KEY,
    add_window_tables,
    load_bias,
    load_head,
    load_queries,
    load_shared,
    query_rows,
    shared_scores,
    store_head,
    take_windows,
)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, shared_qkv_ptr, shared_bias_ptr,
    offsets_ptr, position_ptr, compact_index_ptr, regions_ptr, mask_ptr,
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
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and shared_qkv_ptr is None
    PACKED: tl.constexpr = ONLY_VISIBLE and mask_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and shared_qkv_ptr is None
    ONE_TILE: tl.constexpr = offsets_ptr is None and KEYS <= BLOCK_S and QUERIES <= BLOCK_T
    head = tl.program_id(0)
    column = head * HEAD_STRIDE
    head_rows = head.to(tl.int64) * out_rows
    head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
    if shared_qkv_ptr is not None:
        k_shared = load_shared(shared_qkv_ptr, 1, head, HEADS, BLOCK_D)
        v_shared = load_shared(shared_qkv_ptr, 2, head, HEADS, BLOCK_D)
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
        window_index_ptr = None if compact_index_ptr is None else compact_index_ptr + window.to(tl.int64) * KEYS
        region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
        window_mask_ptr = None
        if mask_ptr is not None:
            window_mask_ptr = mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)
        for start in range(0, out_count, BLOCK_T):
            out_row, q_row, position, valid = query_rows(
                start, out_count, None if position_ptr is None else position_ptr + key_first, window_index_ptr,
                QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T,
            )  # fmt: skip
            q = load_queries(
                q_ptr + q_first * Q_STRIDE + column,
                q_row,
                valid,
                shared_qkv_ptr,
                head,
                Q_STRIDE,
                PADDED,
                LANES,
                BLOCK_D,
            )
            highest = tl.full((BLOCK_T,), NO_KEY, tl.float32)
            total = tl.zeros((BLOCK_T,), tl.float32)
            out = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
            if shared_qkv_ptr is not None:
                shared_score = shared_scores(
                    q, k_shared, shared_bias_ptr + head_rows + out_first, out_row, valid, scale
                )
                highest = tl.maximum(shared_score, NO_KEY)
                total = tl.exp2(shared_score - highest)
                out = total[:, None] * v_shared[None, :]
            for key_start in range(0, key_count, BLOCK_S):
                key_row = key_start + tl.arange(0, BLOCK_S)
                key_valid = key_row < key_count
                key_position = key_row
                if position_ptr is not None:
                    key_position = tl.load(position_ptr + key_first + key_row, mask=key_valid, other=0)
                if not ONE_TILE:
                    bias = load_bias(head_bias_ptr, position, valid, key_position, key_valid, QUERIES)
                added = add_window_tables(
                    bias, window_mask_ptr, region_ptr, position, valid, key_position, key_valid, QUERIES, KEYS, EXCLUDE,
                    out_row, key_row, pack_ptr, taken,
                )  # fmt: skip
                k = load_head(k_ptr + key_first * K_STRIDE + column, key_row, key_valid, K_STRIDE, LANES, BLOCK_D)
                v = load_head(v_ptr + key_first * V_STRIDE + column, key_row, key_valid, V_STRIDE, LANES, BLOCK_D)
                score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + tl.trans(added)
                new_highest = tl.maximum(highest, tl.max(score, 1))
                shrink = tl.exp2(highest - new_highest)
                highest = new_highest
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
                if shared_qkv_ptr is not None:
                    tl.store(row_ptr + 2 * out_rows, tl.exp2(shared_score - highest), mask=valid)
        step += taken
