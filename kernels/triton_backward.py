"""Window attention in Triton, backward (kernels/README.md has the formulas).

`inputs_kernel` computes the gradients of q, k, v and of the masked q, k, v, a program some heads of a window, and leaves
the softmax statistics of each query. `bias_kernel` adds up the gradient of the bias over the windows of a chunk, a
program one head and some key places; the chunks' sums are added up outside, in order.
"""

import triton
import triton.language as tl

from .triton_pairs import (
    NO_KEY,
    load_head,
    load_masked,
    load_region,
    masked_keys,
    pair_bias,
    raise_maximum,
    scores,
    store_head,
    window_rows,
)


@triton.jit
def inputs_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, masked_ptr, offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr,
    dq_ptr, dk_ptr, dv_ptr, d_masked_ptr, stats_ptr,
    region_windows, mask_windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, COMPACT_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    HEADS_EACH: tl.constexpr,
):  # fmt: skip
    """BLOCK_T spans all queries: dk and dv are reduced in one program. `stats` is (output rows, heads, 2)."""
    STRIDE: tl.constexpr = HEADS * HEAD_DIM
    window = tl.program_id(0)
    first_head = tl.program_id(1) * HEADS_EACH
    key_first, key_count = window_rows(window, offsets_ptr, KEYS)
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and masked_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and masked_ptr is None
    out_first, out_count = window_rows(window, offsets_ptr if ONLY_VISIBLE else None, QUERIES)
    q_first = key_first if COMPACT_Q else out_first
    region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
    window_mask_ptr = None if mask_ptr is None else mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)

    out_row = tl.arange(0, BLOCK_T)
    valid = out_row < out_count
    place = out_row
    if ONLY_VISIBLE:
        place = tl.load(position_ptr + key_first + out_row, mask=valid, other=0)
    q_row = out_row
    if COMPACT_Q and not ONLY_VISIBLE:
        q_row = tl.load(rows_ptr + window * KEYS + out_row, mask=valid, other=0)
    region = load_region(region_ptr, place, valid)

    for head in range(first_head, tl.minimum(first_head + HEADS_EACH, HEADS)):
        column = head * HEAD_DIM
        head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
        q = load_head(q_ptr + q_first * Q_STRIDE + column, q_row, valid & (q_row >= 0), Q_STRIDE, HEAD_DIM, BLOCK_D)
        grad = load_head(grad_ptr + out_first * STRIDE + column, out_row, valid, STRIDE, HEAD_DIM, BLOCK_D)
        highest = tl.full((BLOCK_T,), NO_KEY, tl.float32)
        total = tl.zeros((BLOCK_T,), tl.float32)
        delta = tl.zeros((BLOCK_T,), tl.float32)
        if masked_ptr is not None:
            q = tl.where((q_row >= 0)[:, None], q, load_masked(masked_ptr, 0, head, HEADS, HEAD_DIM, BLOCK_D)[None, :])
            k_masked = load_masked(masked_ptr, 1, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)
            v_masked = load_masked(masked_ptr, 2, head, HEADS, HEAD_DIM, BLOCK_D).to(tl.float32)
            top, mass = masked_keys(
                head_bias_ptr, window_mask_ptr, region_ptr, rows_ptr + window * KEYS, place, region, valid,
                QUERIES, KEYS, BLOCK_N,
            )  # fmt: skip
            masked_score = tl.sum(q.to(tl.float32) * k_masked[None, :], 1) * scale + top
            masked_dp = tl.sum(grad.to(tl.float32) * v_masked[None, :], 1)
            highest, total, delta = masked_score, mass, mass * masked_dp

        # First the statistics: the softmax denominator, and delta = sum p dp.
        for key_start in range(0, key_count, BLOCK_S):
            key_row = key_start + tl.arange(0, BLOCK_S)
            key_valid = key_row < key_count
            key_place = key_row
            if offsets_ptr is not None:
                key_place = tl.load(position_ptr + key_first + key_row, mask=key_valid, other=0)
            k = load_head(k_ptr + key_first * K_STRIDE + column, key_row, key_valid, K_STRIDE, HEAD_DIM, BLOCK_D)
            v = load_head(v_ptr + key_first * V_STRIDE + column, key_row, key_valid, V_STRIDE, HEAD_DIM, BLOCK_D)
            added = pair_bias(
                head_bias_ptr, window_mask_ptr, region_ptr, place, region, valid, key_place, key_valid,
                QUERIES, EXCLUDE,
            )  # fmt: skip
            score = scores(q, k, added, scale, PRECISION)
            highest, shrink = raise_maximum(highest, score)
            p = tl.exp(score - highest[:, None])
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            total = total * shrink + tl.sum(p, 1)
            delta = delta * shrink + tl.sum(p * dp, 1)
        none = total == 0.0  # no key: every p is 0
        delta = delta / tl.where(none, 1.0, total)
        log_total = tl.where(none, float("inf"), highest + tl.log(tl.where(none, 1.0, total)))
        stats_row_ptr = stats_ptr + ((out_first + out_row) * HEADS + head) * 2
        tl.store(stats_row_ptr, log_total, mask=valid)
        tl.store(stats_row_ptr + 1, delta, mask=valid)

        dq = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
        if masked_ptr is not None:
            masked_p = mass * tl.exp(masked_score - log_total)
            masked_ds = tl.where(valid, masked_p * (masked_dp - delta), 0.0)
            dq = masked_ds[:, None] * k_masked[None, :]
        for key_start in range(0, key_count, BLOCK_S):
            key_row = key_start + tl.arange(0, BLOCK_S)
            key_valid = key_row < key_count
            key_place = key_row
            if offsets_ptr is not None:
                key_place = tl.load(position_ptr + key_first + key_row, mask=key_valid, other=0)
            k = load_head(k_ptr + key_first * K_STRIDE + column, key_row, key_valid, K_STRIDE, HEAD_DIM, BLOCK_D)
            v = load_head(v_ptr + key_first * V_STRIDE + column, key_row, key_valid, V_STRIDE, HEAD_DIM, BLOCK_D)
            added = pair_bias(
                head_bias_ptr, window_mask_ptr, region_ptr, place, region, valid, key_place, key_valid,
                QUERIES, EXCLUDE,
            )  # fmt: skip
            p = tl.exp(scores(q, k, added, scale, PRECISION) - log_total[:, None])
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            ds = (p * (dp - delta[:, None])).to(q.dtype)
            dq += tl.dot(ds, k, input_precision=PRECISION)
            dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION) * scale
            dv = tl.dot(tl.trans(p.to(q.dtype)), grad, input_precision=PRECISION)
            row_ptr = key_first * STRIDE + column
            store_head(dk_ptr + row_ptr, key_row, key_valid, dk, STRIDE, HEAD_DIM, BLOCK_D)
            store_head(dv_ptr + row_ptr, key_row, key_valid, dv, STRIDE, HEAD_DIM, BLOCK_D)
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
    grad_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, masked_ptr, offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr,
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
        region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
        window_mask_ptr = None if mask_ptr is None else mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)

        valid = query < QUERIES
        q_row = query
        if COMPACT_Q:
            q_row = tl.load(rows_ptr + window * KEYS + query, mask=valid, other=0)
        out_row = query
        if ONLY_VISIBLE:
            valid = valid & (q_row >= 0)
            out_row = q_row
        region = load_region(region_ptr, query, valid)
        q = load_head(q_ptr + q_first * Q_STRIDE + column, q_row, valid & (q_row >= 0), Q_STRIDE, HEAD_DIM, BLOCK_D)
        grad = load_head(grad_ptr + out_first * STRIDE + column, out_row, valid, STRIDE, HEAD_DIM, BLOCK_D)
        stats_row_ptr = stats_ptr + ((out_first + out_row) * HEADS + head) * 2
        log_total = tl.load(stats_row_ptr, mask=valid, other=float("inf"))
        delta = tl.load(stats_row_ptr + 1, mask=valid, other=0.0)

        if masked_ptr is not None:
            q = tl.where((q_row >= 0)[:, None], q, load_masked(masked_ptr, 0, head, HEADS, HEAD_DIM, BLOCK_D)[None, :])
            masked = tl.load(rows_ptr + window * KEYS + place, mask=place < KEYS, other=0) < 0
            masked_bias = pair_bias(
                head_bias_ptr, window_mask_ptr, region_ptr, query, region, valid, place, masked, QUERIES, False
            )
            masked_score = tl.sum(q.to(tl.float32) * k_masked[None, :], 1) * scale
            masked_dp = tl.sum(grad.to(tl.float32) * v_masked[None, :], 1)
            d_bias += tl.exp(masked_bias + (masked_score - log_total)[:, None]) * (masked_dp - delta)[:, None]
        if offsets_ptr is None:
            key_valid = place < KEYS
            k = load_head(k_ptr + key_first * K_STRIDE + column, place, key_valid, K_STRIDE, HEAD_DIM, BLOCK_D)
            v = load_head(v_ptr + key_first * V_STRIDE + column, place, key_valid, V_STRIDE, HEAD_DIM, BLOCK_D)
            added = pair_bias(
                head_bias_ptr, window_mask_ptr, region_ptr, query, region, valid, place, key_valid, QUERIES, EXCLUDE
            )
            p = tl.exp(scores(q, k, added, scale, PRECISION) - log_total[:, None])
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            d_bias += p * (dp - delta[:, None])
        else:
            for key_start in range(0, key_count, BLOCK_S):
                key_row = key_start + tl.arange(0, BLOCK_S)
                key_valid = key_row < key_count
                key_place = tl.load(position_ptr + key_first + key_row, mask=key_valid, other=0)
                k = load_head(k_ptr + key_first * K_STRIDE + column, key_row, key_valid, K_STRIDE, HEAD_DIM, BLOCK_D)
                v = load_head(v_ptr + key_first * V_STRIDE + column, key_row, key_valid, V_STRIDE, HEAD_DIM, BLOCK_D)
                added = pair_bias(
                    head_bias_ptr, window_mask_ptr, region_ptr, query, region, valid, key_place, key_valid,
                    QUERIES, EXCLUDE,
                )  # fmt: skip
                p = tl.exp(scores(q, k, added, scale, PRECISION) - log_total[:, None])
                dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
                d_bias += to_places(p * (dp - delta[:, None]), key_place, place, q.dtype, PRECISION)
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
