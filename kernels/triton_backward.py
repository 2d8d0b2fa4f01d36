"""Window attention in Triton, backward (kernels/README.md has the formulas).

`inputs_kernel` computes the gradients of q, k, v and of the masked q, k, v, a program some heads of a window. It leaves
the softmax statistics of each query to `bias_kernel`, which adds up the gradient of the bias over the windows of a
chunk, a program one head and some key places; the chunks' sums are added up outside, in order.
"""

import triton
import triton.language as tl

from .triton_pairs import (
    NO_KEY,
    load_head,
    load_keys,
    load_masked,
    load_queries,
    load_region,
    masked_keys,
    pair_bias,
    raise_maximum,
    scores,
    store_head,
    window_rows,
    window_tables,
)


@triton.jit
def inputs_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, exp_bias_ptr, top_ptr, masked_ptr,
    offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr,
    dq_ptr, dk_ptr, dv_ptr, d_masked_ptr, stats_ptr,
    region_windows, mask_windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, COMPACT_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    HEADS_EACH: tl.constexpr,
):  # fmt: skip
    """BLOCK_T spans all queries: dk and dv are reduced in one program.

    `stats` is (output rows, heads, 3): the largest score, 1 / softmax denominator, delta = sum p dp. The first two are
    apart because the logarithm of their sum would lose digits where scores are large.
    """
    STRIDE: tl.constexpr = HEADS * HEAD_DIM
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

    out_row = tl.arange(0, BLOCK_T)
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
        head_k_ptr = k_ptr + key_first * K_STRIDE + column
        head_v_ptr = v_ptr + key_first * V_STRIDE + column
        head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
        q = load_queries(
            q_ptr + q_first * Q_STRIDE + column, q_row, valid, masked_ptr, head, Q_STRIDE, HEADS, HEAD_DIM, BLOCK_D
        )
        grad = load_head(grad_ptr + out_first * STRIDE + column, out_row, valid, STRIDE, HEAD_DIM, BLOCK_D)
        highest = tl.full((BLOCK_T,), NO_KEY, tl.float32)
        total = tl.zeros((BLOCK_T,), tl.float32)
        delta = tl.zeros((BLOCK_T,), tl.float32)
        if masked_ptr is not None:
            k_masked = load_masked(masked_ptr, 1, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)
            v_masked = load_masked(masked_ptr, 2, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)
            top, mass = masked_keys(
                head_bias_ptr,
                None if exp_bias_ptr is None else exp_bias_ptr + head * (KEYS * QUERIES),
                None if exp_bias_ptr is None else top_ptr + head * QUERIES,
                mask_ptr, region_ptr, rows_ptr, place, region, valid, QUERIES, KEYS, BLOCK_N,
            )  # fmt: skip
            masked_score = tl.sum(q.to(tl.float32) * k_masked[None, :], 1) * scale + top
            masked_dp = tl.sum(grad.to(tl.float32) * v_masked[None, :], 1)
            highest, total, delta = masked_score, mass, mass * masked_dp

        # First the statistics: the softmax denominator, and delta = sum p dp.
        for key_start in range(0, key_count, BLOCK_S):
            key_row = key_start + tl.arange(0, BLOCK_S)
            k, v, _, added = load_keys(
                head_k_ptr, head_v_ptr, position_ptr, key_row, key_count,
                head_bias_ptr, mask_ptr, region_ptr, place, region, valid,
                K_STRIDE, V_STRIDE, HEAD_DIM, BLOCK_D, QUERIES, EXCLUDE,
            )  # fmt: skip
            score = scores(q, k, added, scale, PRECISION)
            highest, shrink = raise_maximum(highest, score)
            p = tl.exp(score - highest[:, None])
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            total = total * shrink + tl.sum(p, 1)
            delta = delta * shrink + tl.sum(p * dp, 1)
        none = total == 0.0  # a query without any key has no p
        share = tl.where(none, 0.0, 1.0 / tl.where(none, 1.0, total))
        delta = delta * share
        stats_row_ptr = stats_ptr + ((out_first + out_row) * HEADS + head) * 3
        tl.store(stats_row_ptr, highest, mask=valid)
        tl.store(stats_row_ptr + 1, share, mask=valid)
        tl.store(stats_row_ptr + 2, delta, mask=valid)

        dq = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
        if masked_ptr is not None:
            masked_p = mass * tl.exp(masked_score - highest) * share
            masked_ds = tl.where(valid, masked_p * (masked_dp - delta), 0.0)
            dq = masked_ds[:, None] * k_masked[None, :]
        for key_start in range(0, key_count, BLOCK_S):
            key_row = key_start + tl.arange(0, BLOCK_S)
            k, v, _, added = load_keys(
                head_k_ptr, head_v_ptr, position_ptr, key_row, key_count,
                head_bias_ptr, mask_ptr, region_ptr, place, region, valid,
                K_STRIDE, V_STRIDE, HEAD_DIM, BLOCK_D, QUERIES, EXCLUDE,
            )  # fmt: skip
            p = tl.exp(scores(q, k, added, scale, PRECISION) - highest[:, None]) * share[:, None]
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            ds = (p * (dp - delta[:, None])).to(q.dtype)
            dq += tl.dot(ds, k, input_precision=PRECISION)
            dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION) * scale
            dv = tl.dot(tl.trans(p.to(q.dtype)), grad, input_precision=PRECISION)
            row_ptr = key_first * STRIDE + column
            store_head(dk_ptr + row_ptr, key_row, key_row < key_count, dk, STRIDE, HEAD_DIM, BLOCK_D)
            store_head(dv_ptr + row_ptr, key_row, key_row < key_count, dv, STRIDE, HEAD_DIM, BLOCK_D)
        dq = dq * scale
        store_head(dq_ptr + q_first * STRIDE + column, q_row, valid & (q_row >= 0), dq, STRIDE, HEAD_DIM, BLOCK_D)

        if masked_ptr is not None:
            dim = tl.arange(0, BLOCK_D)
            in_head = dim < HEAD_DIM
            d_masked_row_ptr = d_masked_ptr + window.to(tl.int64) * (3 * STRIDE) + column + dim
            of_masked = (valid & (q_row < 0))[:, None]
            tl.store(d_masked_row_ptr, tl.sum(tl.where(of_masked, dq, 0.0), 0), mask=in_head)
            dk_masked = tl.sum(masked_ds[:, None] * q.to(tl.float32), 0) * scale
            tl.store(d_masked_row_ptr + STRIDE, dk_masked, mask=in_head)
            dv_masked = tl.sum(tl.where(valid, masked_p, 0.0)[:, None] * grad.to(tl.float32), 0)
            tl.store(d_masked_row_ptr + 2 * STRIDE, dv_masked, mask=in_head)


@triton.jit
def bias_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, exp_bias_ptr, top_ptr, masked_ptr,
    offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr,
    stats_ptr, d_bias_ptr,
    windows, chunk, region_windows, mask_windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, COMPACT_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """d_bias (chunks, heads, keys, queries), float32: what the windows of each chunk give to it."""
    STRIDE: tl.constexpr = HEADS * HEAD_DIM
    head = tl.program_id(1)
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and masked_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and masked_ptr is None
    column = head * HEAD_DIM
    head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
    place = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)  # of the keys whose columns this program adds up
    query = tl.arange(0, BLOCK_T)
    if masked_ptr is not None:
        k_masked = load_masked(masked_ptr, 1, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)
        v_masked = load_masked(masked_ptr, 2, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)

    first_window = tl.program_id(0) * chunk
    d_bias = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for step in range(0, tl.minimum(chunk, windows - first_window)):
        window = first_window + step
        key_first, key_count = window_rows(window, offsets_ptr, KEYS)
        out_first, _ = window_rows(window, offsets_ptr if ONLY_VISIBLE else None, QUERIES)
        q_first = key_first if COMPACT_Q else out_first
        positions, rows, region_ptr, window_mask_ptr = window_tables(
            window, position_ptr, rows_ptr, regions_ptr, mask_ptr, region_windows, mask_windows, key_first,
            QUERIES, KEYS,
        )  # fmt: skip

        valid = query < QUERIES
        q_row = query
        if COMPACT_Q:
            q_row = tl.load(rows + query, mask=valid, other=0)
        out_row = query
        if ONLY_VISIBLE:
            valid = valid & (q_row >= 0)
            out_row = q_row
        region = load_region(region_ptr, query, valid)
        q = load_queries(
            q_ptr + q_first * Q_STRIDE + column, q_row, valid, masked_ptr, head, Q_STRIDE, HEADS, HEAD_DIM, BLOCK_D
        )
        grad = load_head(grad_ptr + out_first * STRIDE + column, out_row, valid, STRIDE, HEAD_DIM, BLOCK_D)
        stats_row_ptr = stats_ptr + ((out_first + out_row) * HEADS + head) * 3
        highest = tl.load(stats_row_ptr, mask=valid, other=0.0)
        share = tl.load(stats_row_ptr + 1, mask=valid, other=0.0)
        delta = tl.load(stats_row_ptr + 2, mask=valid, other=0.0)

        if masked_ptr is not None:
            masked = tl.load(rows + place, mask=place < KEYS, other=0) < 0
            masked_bias = pair_bias(
                head_bias_ptr, window_mask_ptr, region_ptr, query, region, valid, place, masked, QUERIES, False
            )
            masked_score = tl.sum(q.to(tl.float32) * k_masked[None, :], 1) * scale
            masked_dp = tl.sum(grad.to(tl.float32) * v_masked[None, :], 1)
            p = tl.exp(masked_bias + (masked_score - highest)[:, None]) * share[:, None]
            d_bias += p * (masked_dp - delta)[:, None]
        # Keys of a windowed tensor are read where they are wanted; visible ones are moved to their places.
        for key_start in range(0, 1 if offsets_ptr is None else key_count, BLOCK_S):
            k, v, key_place, added = load_keys(
                k_ptr + key_first * K_STRIDE + column, v_ptr + key_first * V_STRIDE + column, positions,
                place if offsets_ptr is None else key_start + tl.arange(0, BLOCK_S), key_count,
                head_bias_ptr, window_mask_ptr, region_ptr, query, region, valid,
                K_STRIDE, V_STRIDE, HEAD_DIM, BLOCK_D, QUERIES, EXCLUDE,
            )  # fmt: skip
            key_p = tl.exp(scores(q, k, added, scale, PRECISION) - highest[:, None]) * share[:, None]
            ds = key_p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            if offsets_ptr is None:
                d_bias += ds
            else:
                d_bias += to_places(ds, key_place, place, q.dtype, PRECISION)
    d_bias_row_ptr = d_bias_ptr + (tl.program_id(0).to(tl.int64) * HEADS + head) * (KEYS * QUERIES)
    pair = place[None, :] * QUERIES + query[:, None]
    tl.store(d_bias_row_ptr + pair, d_bias, mask=(query < QUERIES)[:, None] & (place < KEYS)[None, :])


@triton.jit
def to_places(ds, key_place, place, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Columns of visible keys to the columns of their places: a product with a 0/1 matrix, exact in two halves."""
    chosen = (key_place[:, None] == place[None, :]).to(dtype)
    high = ds.to(dtype)
    moved = tl.dot(high, chosen, input_precision=PRECISION)
    if dtype != tl.float32:
        moved = tl.dot((ds - high.to(tl.float32)).to(dtype), chosen, moved, input_precision=PRECISION)
    return moved
