"""Window attention in Triton, backward (kernels/README.md has the formulas): five products for a tile of keys.

A program goes through a chunk of windows with one head. Scores are (keys, queries) here: what they give to keys then
stays in the registers it is in. Where the queries of a window are one tile, a program makes all gradients; else one
launch makes those of q and of the masked q, k, v, and another those of k, v and the bias.
"""

import triton
import triton.language as tl

from .triton_pairs import (
    load_head,
    load_masked,
    load_queries,
    masked_scores,
    pair_bias,
    query_rows,
    softmax_term,
    store_head,
    window_rows,
    window_tables,
)


@triton.jit
def backward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, masked_ptr, masked_bias_ptr,
    offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr,
    windows, region_windows, mask_windows, scale,
    grad_ptr, out_ptr, stats_ptr, dq_ptr, dk_ptr, dv_ptr, d_masked_ptr, masked_ds_ptr, d_bias_ptr,
    out_rows, windows_each,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPACT_Q: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    DQ_STRIDE: tl.constexpr, DK_STRIDE: tl.constexpr, DV_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, OUT_HEAD_STRIDE: tl.constexpr, LANES: tl.constexpr, OUT_LANES: tl.constexpr,
    FOR_QUERIES: tl.constexpr, FOR_KEYS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`stats` as the forward kernel wrote it; `masked_ds` (heads, rows of out), gradient of the masked key's scores.

    `d_bias` is (chunks, heads, keys, queries), `d_masked` (chunks, 3, heads, BLOCK_D), both float32.
    """
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and masked_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and masked_ptr is None
    ONE_TILE: tl.constexpr = offsets_ptr is None and KEYS <= BLOCK_S and QUERIES <= BLOCK_T
    head, chunk = tl.program_id(0), tl.program_id(1)
    column, out_column = head * HEAD_STRIDE, head * OUT_HEAD_STRIDE
    head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
    d_bias_ptr += (chunk * HEADS + head).to(tl.int64) * (KEYS * QUERIES)
    stats_ptr += head * (2 * out_rows)
    if ONE_TILE:
        d_bias = tl.zeros((BLOCK_S, BLOCK_T), tl.float32)
    if FOR_QUERIES and masked_ptr is not None:
        k_masked = load_masked(masked_ptr, 1, head, HEADS, BLOCK_D)
        v_masked = load_masked(masked_ptr, 2, head, HEADS, BLOCK_D)
        dq_masked = tl.zeros((16, BLOCK_D), tl.float32)
        dk_masked = tl.zeros((16, BLOCK_D), tl.float32)
        dv_masked = tl.zeros((16, BLOCK_D), tl.float32)

    first_window = chunk * windows_each
    for step in range(0, tl.minimum(windows_each, windows - first_window)):
        window = first_window + step
        key_first, key_count = window_rows(window, offsets_ptr, KEYS)
        out_first, out_count = window_rows(window, offsets_ptr if ONLY_VISIBLE else None, QUERIES)
        q_first = key_first if COMPACT_Q else out_first
        window_rows_ptr, region_ptr, window_mask_ptr = window_tables(
            window, rows_ptr, regions_ptr, mask_ptr, region_windows, mask_windows, QUERIES, KEYS
        )
        window_position_ptr = None if position_ptr is None else position_ptr + key_first
        window_q_ptr = q_ptr + q_first * Q_STRIDE + column
        window_grad_ptr = grad_ptr + out_first * OUT_STRIDE + out_column
        window_out_ptr = out_ptr + out_first * OUT_STRIDE + out_column
        if FOR_QUERIES:
            out_row, q_row, place, valid = query_rows(
                tl.program_id(2) * BLOCK_T, out_count, window_position_ptr, window_rows_ptr,
                QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T,
            )  # fmt: skip
            q = load_queries(window_q_ptr, q_row, valid, masked_ptr, head, Q_STRIDE, HEADS, LANES, BLOCK_D)
            grad, highest, share, delta = load_gradients(
                window_grad_ptr,
                window_out_ptr,
                stats_ptr + out_first,
                out_rows,
                out_row,
                valid,
                OUT_STRIDE,
                OUT_LANES,
                BLOCK_D,
            )
            dq = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
            if masked_ptr is not None:
                head_rows = head * out_rows + out_first
                score = masked_scores(q, k_masked, masked_bias_ptr + head_rows, out_row, valid, scale)
                masked_p = softmax_term(score, highest) * share
                wide_grad = grad.to(tl.float32)
                masked_ds = masked_p * (tl.sum(wide_grad * v_masked[None, :], 1) - delta)
                tl.store(masked_ds_ptr + head_rows + out_row, masked_ds, mask=valid)
                dk_masked += folded(masked_ds[:, None] * q.to(tl.float32))
                dv_masked += folded(masked_p[:, None] * wide_grad)
                dq = masked_ds[:, None] * k_masked[None, :]
        for key_start in range(0 if FOR_QUERIES else tl.program_id(2) * BLOCK_S, key_count,
                               BLOCK_S if FOR_QUERIES else BLOCK_S * tl.num_programs(2)):  # fmt: skip
            key_row = key_start + tl.arange(0, BLOCK_S)
            key_valid = key_row < key_count
            key_place = key_row
            if position_ptr is not None:
                key_place = tl.load(window_position_ptr + key_row, mask=key_valid, other=0)
            k = load_head(k_ptr + key_first * K_STRIDE + column, key_row, key_valid, K_STRIDE, LANES, BLOCK_D)
            v = load_head(v_ptr + key_first * V_STRIDE + column, key_row, key_valid, V_STRIDE, LANES, BLOCK_D)
            if FOR_QUERIES:
                added = pair_bias(
                    head_bias_ptr, window_mask_ptr, region_ptr, place, valid, key_place, key_valid,
                    QUERIES, KEYS, EXCLUDE,
                )  # fmt: skip
                p, ds = pair_gradients(q, k, v, grad, added, highest, share, delta, scale, PRECISION)
                small_ds = ds.to(q.dtype)
                dq += tl.dot(tl.trans(small_ds), k, input_precision=PRECISION)
                if FOR_KEYS:
                    dk = tl.dot(small_ds, q, input_precision=PRECISION)
                    dv = tl.dot(p.to(q.dtype), grad, input_precision=PRECISION)
                    if ONE_TILE:
                        d_bias += ds
                    else:
                        add_to_rows(d_bias_ptr, ds, key_place, key_valid, place, valid, QUERIES)
            else:
                dk = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
                dv = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
                for start in range(0, out_count, BLOCK_T):
                    out_row, q_row, place, valid = query_rows(
                        start, out_count, window_position_ptr, window_rows_ptr,
                        QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T,
                    )  # fmt: skip
                    q = load_queries(window_q_ptr, q_row, valid, masked_ptr, head, Q_STRIDE, HEADS, LANES, BLOCK_D)
                    grad, highest, share, delta = load_gradients(
                        window_grad_ptr, window_out_ptr, stats_ptr + out_first, out_rows, out_row, valid,
                        OUT_STRIDE, OUT_LANES, BLOCK_D,
                    )  # fmt: skip
                    added = pair_bias(
                        head_bias_ptr, window_mask_ptr, region_ptr, place, valid, key_place, key_valid,
                        QUERIES, KEYS, EXCLUDE,
                    )  # fmt: skip
                    p, ds = pair_gradients(q, k, v, grad, added, highest, share, delta, scale, PRECISION)
                    dk += tl.dot(ds.to(q.dtype), q, input_precision=PRECISION)
                    dv += tl.dot(p.to(q.dtype), grad, input_precision=PRECISION)
                    add_to_rows(d_bias_ptr, ds, key_place, key_valid, place, valid, QUERIES)
            if FOR_KEYS:
                store_head(
                    dk_ptr + key_first * DK_STRIDE + column, key_row, key_valid, dk * scale, DK_STRIDE, LANES, BLOCK_D
                )
                store_head(dv_ptr + key_first * DV_STRIDE + column, key_row, key_valid, dv, DV_STRIDE, LANES, BLOCK_D)
        if FOR_QUERIES:
            dq = dq * scale
            store_head(
                dq_ptr + q_first * DQ_STRIDE + column, q_row, valid & (q_row >= 0), dq, DQ_STRIDE, LANES, BLOCK_D
            )
            if masked_ptr is not None:
                dq_masked += folded(tl.where((valid & (q_row < 0))[:, None], dq, 0.0))

    if FOR_QUERIES and masked_ptr is not None:
        program = (chunk * tl.num_programs(2) + tl.program_id(2)) * (3 * HEADS) + head
        d_masked_ptr += program * BLOCK_D + tl.arange(0, BLOCK_D)
        tl.store(d_masked_ptr, tl.sum(dq_masked, 0))
        tl.store(d_masked_ptr + HEADS * BLOCK_D, tl.sum(dk_masked, 0) * scale)
        tl.store(d_masked_ptr + 2 * HEADS * BLOCK_D, tl.sum(dv_masked, 0))
    if ONE_TILE:
        key, query = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_T)
        pair = key[:, None] * QUERIES + query[None, :]
        tl.store(d_bias_ptr + pair, d_bias, mask=(key < KEYS)[:, None] & (query < QUERIES)[None, :])


@triton.jit
def load_gradients(
    grad_ptr, out_ptr, stats_ptr, out_rows, row, valid, STRIDE: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The gradient of the output, largest scores and 1 / denominators, and delta = sum p dp = grad . out."""
    grad = load_head(grad_ptr, row, valid, STRIDE, LANES, BLOCK_D)
    out = load_head(out_ptr, row, valid, STRIDE, LANES, BLOCK_D)
    highest = tl.load(stats_ptr + row, mask=valid, other=0.0)
    share = tl.load(stats_ptr + out_rows + row, mask=valid, other=0.0)
    return grad, highest, share, tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)


@triton.jit
def pair_gradients(q, k, v, grad, added, highest, share, delta, scale, PRECISION: tl.constexpr):
    """p and the gradient of the scores, (keys, queries)."""
    score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale + added
    p = softmax_term(score, highest[None, :]) * share[None, :]
    return p, p * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :])


@triton.jit
def add_to_rows(d_bias_ptr, ds, key_place, key_valid, place, valid, QUERIES: tl.constexpr):
    """Add ds to the rows of its keys, which this program alone owns, in memory that stays in the caches."""
    pair = d_bias_ptr + key_place[:, None] * QUERIES + place[None, :]
    mask = key_valid[:, None] & valid[None, :]
    tl.debug_barrier()  # another thread may have written here for the window before
    tl.store(pair, tl.load(pair, mask=mask, other=0.0) + ds, mask=mask)


@triton.jit
def folded(tile):
    """Sums over groups of rows, 16 left: each thread adds up what it holds."""
    return tl.sum(tl.reshape(tile, (tile.shape[0] // 16, 16, tile.shape[1])), 0)
