"""Window attention in Triton, backward (kernels/README.md has the formulas): five products for a tile of keys.

A program goes through a chunk of windows with one head. Scores are (keys, queries) here: what they give to keys then
stays in the registers it is in. Where the queries of a window are one tile, a program makes all gradients; else one
launch makes those of q and of the masked q, k, v, and another those of k, v and the bias.
"""

import triton
import triton.language as tl

from .attention_pairs import (
    add_window_tables,
    load_bias,
    load_head,
    load_masked,
    load_queries,
    query_rows,
    store_head,
    take_windows,
    window_of_rows,
    windows_to_skip,
)


@triton.jit
def backward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, masked_ptr, masked_bias_ptr,
    offsets_ptr, position_ptr, rows_ptr, regions_ptr, mask_ptr,
    windows, region_windows, mask_windows, scale,
    grad_ptr, out_ptr, stats_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, d_masked_ptr, masked_ds_ptr, d_bias_ptr,
    out_rows, windows_each, dot_scale,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPACT_Q: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    DQ_STRIDE: tl.constexpr, DK_STRIDE: tl.constexpr, DV_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, OUT_HEAD_STRIDE: tl.constexpr, D_HEAD_STRIDE: tl.constexpr, LANES: tl.constexpr,
    FOR_QUERIES: tl.constexpr, FOR_KEYS: tl.constexpr, QUERY_TILE: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`stats` as the forward kernel wrote them; `masked_ds` (heads, rows of out), gradient of the masked key's scores.

    `d_bias` is (chunks, heads, keys, queries), `d_masked` (chunks, query tiles, 3, heads, BLOCK_D), both float32.

    delta of a query, sum_j p_ij dp_ij, is gradient . out. In exact float32 it is that sum: made from the p and dp that
    it is subtracted from, it cancels where one key takes nearly all. Hence a pass over the keys before the gradients,
    where they are more than one tile. Of two launches the first leaves `delta` (heads, 2, rows of out), and 1 / softmax
    denominator, to the second.
    """
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and masked_ptr is None
    PACKED: tl.constexpr = ONLY_VISIBLE and mask_ptr is None and FOR_QUERIES
    EXCLUDE: tl.constexpr = offsets_ptr is not None and masked_ptr is None
    ALL_KEYS: tl.constexpr = offsets_ptr is None and KEYS <= BLOCK_S
    ONE_TILE: tl.constexpr = ALL_KEYS and FOR_QUERIES and FOR_KEYS
    EXACT: tl.constexpr = PRECISION == "ieee" and q_ptr.dtype.element_ty == tl.float32
    head, chunk = tl.program_id(0), tl.program_id(1)
    column, out_column, d_column = head * HEAD_STRIDE, head * OUT_HEAD_STRIDE, head * D_HEAD_STRIDE
    head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
    d_bias_ptr += (chunk * HEADS + head).to(tl.int64) * (KEYS * QUERIES)
    stats_ptr += head.to(tl.int64) * (3 * out_rows)
    if delta_ptr is not None:
        delta_ptr += head.to(tl.int64) * (2 * out_rows)
    if ONE_TILE:  # then the bias and its gradient stay in registers
        key, query = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_T)
        bias = load_bias(head_bias_ptr, query, query < QUERIES, key, key < KEYS, QUERIES)
        d_bias = tl.zeros((BLOCK_S, BLOCK_T), tl.float32)
    if FOR_QUERIES and masked_ptr is not None:
        k_masked = load_masked(masked_ptr, 1, head, HEADS, BLOCK_D)
        v_masked = load_masked(masked_ptr, 2, head, HEADS, BLOCK_D)
        dq_masked = tl.zeros((16, BLOCK_D), tl.float32)
        program = (chunk * tl.num_programs(2) + tl.program_id(2)) * (3 * HEADS) + head
        d_masked_ptr += program * (16 * BLOCK_D)

    first_window = chunk * windows_each
    steps = tl.minimum(windows_each, windows - first_window)
    least = 0  # queries of a window that this program has nothing to do for
    if ONLY_VISIBLE:
        least = tl.program_id(2) * BLOCK_T if FOR_QUERIES else QUERY_TILE
    step = windows_to_skip(offsets_ptr + first_window, steps, least) if ONLY_VISIBLE else 0
    while step < steps:
        window = first_window + step
        taken, key_first, key_count, out_first, out_count = take_windows(
            window,
            steps - step,
            offsets_ptr,
            regions_ptr,
            region_windows,
            QUERY_TILE,
            QUERIES,
            KEYS,
            PACKED,
            ONLY_VISIBLE,
        )
        q_first = key_first if COMPACT_Q else out_first
        pack_ptr = offsets_ptr + window if PACKED else None
        window_rows_ptr = None if rows_ptr is None else rows_ptr + window.to(tl.int64) * KEYS
        region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
        window_mask_ptr = None
        if mask_ptr is not None:
            window_mask_ptr = mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)
        computes_dkv = FOR_KEYS  # whether what queries give to keys is made here
        if ONLY_VISIBLE and FOR_QUERIES and FOR_KEYS:
            computes_dkv = out_count <= QUERY_TILE
        window_position_ptr = None if position_ptr is None else position_ptr + key_first
        window_q_ptr = q_ptr + q_first * Q_STRIDE + column
        window_k_ptr = k_ptr + key_first * K_STRIDE + column
        window_v_ptr = v_ptr + key_first * V_STRIDE + column
        window_grad_ptr = grad_ptr + out_first * OUT_STRIDE + out_column
        window_stats_ptr = stats_ptr + out_first
        window_delta_ptr = None if delta_ptr is None else delta_ptr + out_first
        if FOR_QUERIES:
            out_row, q_row, place, valid = query_rows(
                tl.program_id(2) * BLOCK_T, out_count, window_position_ptr, window_rows_ptr,
                QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T,
            )  # fmt: skip
            q = load_queries(window_q_ptr, q_row, valid, masked_ptr, head, Q_STRIDE, PADDED, LANES, BLOCK_D)
            grad = load_head(window_grad_ptr, out_row, valid, OUT_STRIDE, LANES, BLOCK_D)
            share = tl.zeros((BLOCK_T,), tl.float32)
            delta = tl.zeros((BLOCK_T,), tl.float32)
            if not EXACT:
                share = tl.load(window_stats_ptr + out_rows + out_row, mask=valid, other=0.0)
                out = load_head(
                    out_ptr + out_first * OUT_STRIDE + out_column, out_row, valid, OUT_STRIDE, LANES, BLOCK_D
                )
                grad = grad.to(tl.float32) * share[:, None]
                delta = tl.sum(grad * out.to(tl.float32), 1)
                grad = grad.to(out.dtype)
            if masked_ptr is not None:
                masked_p = tl.load(window_stats_ptr + 2 * out_rows + out_row, mask=valid, other=0.0)
                masked_dp = tl.sum(grad.to(tl.float32) * v_masked[None, :], 1)
            if EXACT and not ALL_KEYS:
                total = tl.zeros((BLOCK_T,), tl.float32)
                if masked_ptr is not None:
                    total = masked_p
                    delta = masked_p * masked_dp
                for start in range(0, key_count, BLOCK_S):
                    key_row, key_place, key_valid = key_rows(start, key_count, window_position_ptr, BLOCK_S)
                    k = load_head(window_k_ptr, key_row, key_valid, K_STRIDE, LANES, BLOCK_D)
                    v = load_head(window_v_ptr, key_row, key_valid, V_STRIDE, LANES, BLOCK_D)
                    bias = load_bias(head_bias_ptr, place, valid, key_place, key_valid, QUERIES)
                    added = add_window_tables(
                        bias, window_mask_ptr, region_ptr, place, valid, key_place, key_valid, QUERIES, KEYS, EXCLUDE,
                        out_row, key_row, pack_ptr, taken,
                    )  # fmt: skip
                    p, dp = pair_gradients(
                        k, v, q, grad, added, window_stats_ptr + out_row, valid, scale, PRECISION
                    )  # fmt: skip
                    total += tl.sum(p, 0)
                    delta += tl.sum(p * dp, 0)
                share = tl.where(total == 0.0, 0.0, 1.0 / total)
                delta *= share
                if masked_ptr is not None:
                    masked_p *= share
            dq = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
            if masked_ptr is not None:
                masked_ds = masked_p * (masked_dp - delta)
                tl.store(masked_ds_ptr + head.to(tl.int64) * out_rows + out_first + out_row, masked_ds, mask=valid)
                add_to_sums(d_masked_ptr + HEADS * 16 * BLOCK_D, masked_ds[:, None] * q.to(tl.float32))
                add_to_sums(d_masked_ptr + 2 * HEADS * 16 * BLOCK_D, masked_p[:, None] * grad.to(tl.float32))
                dq = masked_ds[:, None] * k_masked[None, :]
        key_start, key_step = 0, BLOCK_S
        if not FOR_QUERIES:
            key_start, key_step = tl.program_id(2) * BLOCK_S, tl.num_programs(2) * BLOCK_S
        for start in range(key_start, key_count, key_step):
            key_row, key_place, key_valid = key_rows(start, key_count, window_position_ptr, BLOCK_S)
            k = load_head(window_k_ptr, key_row, key_valid, K_STRIDE, LANES, BLOCK_D)
            v = load_head(window_v_ptr, key_row, key_valid, V_STRIDE, LANES, BLOCK_D)
            dk = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
            dv = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
            for query_start in range(0, 1 if FOR_QUERIES else out_count, BLOCK_T):
                if not FOR_QUERIES:
                    out_row, q_row, place, valid = query_rows(
                        query_start, out_count, window_position_ptr, window_rows_ptr,
                        QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T,
                    )  # fmt: skip
                    q = load_queries(window_q_ptr, q_row, valid, masked_ptr, head, Q_STRIDE, PADDED, LANES, BLOCK_D)
                    grad = load_head(window_grad_ptr, out_row, valid, OUT_STRIDE, LANES, BLOCK_D)
                    delta = tl.load(window_delta_ptr + out_row, mask=valid, other=0.0)
                    share = tl.load(window_delta_ptr + out_rows + out_row, mask=valid, other=0.0)
                    if not EXACT:
                        grad = (grad.to(tl.float32) * share[:, None]).to(q.dtype)
                if not ONE_TILE:
                    bias = load_bias(head_bias_ptr, place, valid, key_place, key_valid, QUERIES)
                added = add_window_tables(
                    bias, window_mask_ptr, region_ptr, place, valid, key_place, key_valid, QUERIES, KEYS, EXCLUDE,
                    out_row, key_row, pack_ptr, taken,
                )  # fmt: skip
                p, dp = pair_gradients(k, v, q, grad, added, window_stats_ptr + out_row, valid, scale, PRECISION)
                if EXACT:
                    if ALL_KEYS and FOR_QUERIES:
                        total = tl.sum(p, 0)
                        share = tl.where(total == 0.0, 0.0, 1.0 / total)
                        delta = tl.sum(p * dp, 0) * share
                    p *= share[None, :]
                ds = p * (dp - delta[None, :])
                if computes_dkv:
                    dv = tl.dot(p.to(q.dtype), grad, dv, input_precision=PRECISION)
                small_ds = ds.to(q.dtype)
                if ONE_TILE:
                    d_bias += ds
                elif PACKED:
                    if computes_dkv:
                        key_window = window_of_rows(key_row, pack_ptr, taken)
                        query_window = window_of_rows(out_row, pack_ptr, taken)
                        for i in range(0, taken):  # one after the other: they meet at the same places
                            add_to_rows(
                                d_bias_ptr, small_ds, key_place, key_valid & (key_window == i), place,
                                valid & (query_window == i), QUERIES,
                            )  # fmt: skip
                elif computes_dkv:
                    add_to_rows(d_bias_ptr, small_ds, key_place, key_valid, place, valid, QUERIES)
                if FOR_QUERIES:
                    dq = tl.dot(tl.trans(small_ds), k, dq, input_precision=PRECISION)
                if computes_dkv:
                    dk = tl.dot(small_ds, q, dk, input_precision=PRECISION)
            if computes_dkv:
                store_head(dv_ptr + key_first * DV_STRIDE + d_column, key_row, key_valid, dv, DV_STRIDE, LANES, BLOCK_D)
                dk *= dot_scale
                store_head(dk_ptr + key_first * DK_STRIDE + d_column, key_row, key_valid, dk, DK_STRIDE, LANES, BLOCK_D)
        if FOR_QUERIES:
            dq = dq * dot_scale
            store_head(
                dq_ptr + q_first * DQ_STRIDE + d_column, q_row, valid & (q_row >= 0), dq, DQ_STRIDE, LANES, BLOCK_D
            )
            if window_delta_ptr is not None:
                tl.store(window_delta_ptr + out_row, delta, mask=valid)
                tl.store(window_delta_ptr + out_rows + out_row, share, mask=valid)
            if masked_ptr is not None:
                dq_masked += folded(tl.where((valid & (q_row < 0))[:, None], dq, 0.0))
        step += taken
        if ONLY_VISIBLE:
            step += windows_to_skip(offsets_ptr + first_window + step, steps - step, least)

    if FOR_QUERIES and masked_ptr is not None:
        row, dim = tl.arange(0, 16), tl.arange(0, BLOCK_D)
        tl.store(d_masked_ptr + row[:, None] * BLOCK_D + dim[None, :], dq_masked)
    if ONE_TILE:
        pair = key[:, None] * QUERIES + query[None, :]
        tl.store(d_bias_ptr + pair, d_bias, mask=(key < KEYS)[:, None] & (query < QUERIES)[None, :])


@triton.jit
def key_rows(start, count, position_ptr, BLOCK_S: tl.constexpr):
    """Keys from row `start` of a window: their rows, places, and which exist."""
    row = start + tl.arange(0, BLOCK_S)
    valid = row < count
    place = row
    if position_ptr is not None:
        place = tl.load(position_ptr + row, mask=valid, other=0)
    return row, place, valid


@triton.jit
def pair_gradients(k, v, q, grad, added, highest_ptr, valid, scale, PRECISION: tl.constexpr):
    """(keys, queries): p before the division by the softmax denominator, and the gradient of p."""
    score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale + added
    p = tl.exp2(score - tl.load(highest_ptr, mask=valid, other=0.0)[None, :])
    return p, tl.dot(v, tl.trans(grad), input_precision=PRECISION)


@triton.jit
def add_to_rows(d_bias_ptr, ds, key_place, key_valid, place, valid, QUERIES: tl.constexpr):
    """Add ds to the rows of its keys, which this program alone owns, in memory that stays in the caches."""
    pair = d_bias_ptr + key_place[:, None] * QUERIES + place[None, :]
    mask = key_valid[:, None] & valid[None, :]
    tl.debug_barrier()  # another thread may have written here before
    tl.store(pair, tl.load(pair, mask=mask, other=0.0) + ds.to(tl.float32), mask=mask)


@triton.jit
def folded(tile):
    """Sums over groups of rows, 16 left: each thread adds up what it holds."""
    return tl.sum(tl.reshape(tile, (tile.shape[0] // 16, 16, tile.shape[1])), 0)


@triton.jit
def add_to_sums(sums_ptr, tile):
    """Add a tile, folded, to sums that this program alone owns: in memory, as registers are scarce."""
    row, dim = tl.arange(0, 16), tl.arange(0, tile.shape[1])
    sums_ptr += row[:, None] * tile.shape[1] + dim[None, :]
    tl.debug_barrier()  # as above
    tl.store(sums_ptr, tl.load(sums_ptr) + folded(tile))
