"""Window attention in Triton, backward: five products for a tile of keys. Formulas: kernels/README.md.

A program goes through a chunk of windows with one head. `backward_kernel` makes all gradients of windows whose queries
are one tile. Larger windows take two kernels: `backward_queries_kernel` makes the gradients of q and of the shared q, k
and v, `backward_keys_kernel` those of k, v and the bias.

Arguments that the kernels share: `stats` is (heads, 3, rows of out), as the forward kernel wrote it. `shared_ds`
(heads, rows of out) is the gradient of the masked key's scores. `d_bias` is (chunks, heads, keys, queries) and
`d_shared` (chunks, query tiles, 3, heads, 16, BLOCK_D), both float32 and summed by the host. `delta` (heads, 2, rows of
out) holds delta and 1 / softmax denominator; the queries kernel leaves them to the keys kernel.
"""

import triton
import triton.language as tl

from .attention_gradients import (
    add_to_bias,
    add_to_rows,
    folded,
    key_rows,
    load_pairs,
    load_queries_and_gradient,
    pair_gradients,
    score_gradients,
)
from .attention_pairs import (
    add_window_tables,
    load_bias,
    load_head,
    load_queries,
    load_shared,
    query_rows,
    store_head,
    take_windows,
    windows_to_skip,
)


@triton.jit
def backward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, shared_qkv_ptr, offsets_ptr, position_ptr, compact_index_ptr, regions_ptr, mask_ptr,
    windows, region_windows, mask_windows, scale,
    grad_ptr, out_ptr, stats_ptr, dq_ptr, dk_ptr, dv_ptr, d_shared_ptr, shared_ds_ptr, d_bias_ptr,
    out_rows, windows_each, dot_scale,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPACT_Q: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    DQ_STRIDE: tl.constexpr, DK_STRIDE: tl.constexpr, DV_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, OUT_HEAD_STRIDE: tl.constexpr, D_HEAD_STRIDE: tl.constexpr, LANES: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All gradients of windows with at most BLOCK_T queries. Compact windows are packed; larger ones are left out."""
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and shared_qkv_ptr is None
    PACKED: tl.constexpr = ONLY_VISIBLE and mask_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and shared_qkv_ptr is None
    ALL_KEYS: tl.constexpr = offsets_ptr is None and KEYS <= BLOCK_S
    EXACT: tl.constexpr = PRECISION == "ieee" and q_ptr.dtype.element_ty == tl.float32
    head, chunk = tl.program_id(0), tl.program_id(1)
    column, out_column, d_column = head * HEAD_STRIDE, head * OUT_HEAD_STRIDE, head * D_HEAD_STRIDE
    bias_ptr += head * (KEYS * QUERIES)
    d_bias_ptr += (chunk * HEADS + head).to(tl.int64) * (KEYS * QUERIES)
    stats_ptr += head.to(tl.int64) * (3 * out_rows)
    bias = None
    if ALL_KEYS:  # then the bias and its gradient stay in registers
        key, query = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_T)
        bias = load_bias(bias_ptr, query, query < QUERIES, key, key < KEYS, QUERIES)
        d_bias = tl.zeros((BLOCK_S, BLOCK_T), tl.float32)
    k_shared = None
    v_shared = None
    if shared_qkv_ptr is not None:
        shared_ds_ptr += head.to(tl.int64) * out_rows
        k_shared = load_shared(shared_qkv_ptr, 1, head, HEADS, BLOCK_D)
        v_shared = load_shared(shared_qkv_ptr, 2, head, HEADS, BLOCK_D)
        dq_shared = tl.zeros((16, BLOCK_D), tl.float32)
        d_shared_ptr += (chunk * (3 * HEADS) + head) * (16 * BLOCK_D)

    first_window = chunk * windows_each
    steps = tl.minimum(windows_each, windows - first_window)
    step = windows_to_skip(offsets_ptr + first_window, steps, 0) if ONLY_VISIBLE else 0
    while step < steps:
        window = first_window + step
        taken, key_first, key_count, out_first, out_count = take_windows(
            window, steps - step, offsets_ptr, regions_ptr, region_windows, BLOCK_T, QUERIES, KEYS, PACKED, ONLY_VISIBLE
        )
        fits = True
        if ONLY_VISIBLE and QUERIES > BLOCK_T:
            fits = out_count <= BLOCK_T
        if fits:
            q_first = key_first if COMPACT_Q else out_first
            pack_ptr = offsets_ptr + window if PACKED else None
            index_ptr = None if compact_index_ptr is None else compact_index_ptr + window.to(tl.int64) * KEYS
            region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
            pair_mask_ptr = None
            if mask_ptr is not None:
                pair_mask_ptr = mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)
            key_position_ptr = None if position_ptr is None else position_ptr + key_first
            window_k_ptr, window_v_ptr = k_ptr + key_first * K_STRIDE + column, v_ptr + key_first * V_STRIDE + column
            window_ds_ptr = None if shared_ds_ptr is None else shared_ds_ptr + out_first
            out_row, q_row, position, valid, q, grad, share, delta, dq = load_queries_and_gradient(
                0, out_count, key_count, head, taken, q_ptr + q_first * Q_STRIDE + column, window_k_ptr, window_v_ptr,
                grad_ptr + out_first * OUT_STRIDE + out_column, out_ptr + out_first * OUT_STRIDE + out_column,
                stats_ptr + out_first, bias_ptr, shared_qkv_ptr, k_shared, v_shared, window_ds_ptr, d_shared_ptr,
                key_position_ptr, index_ptr, pair_mask_ptr, region_ptr, pack_ptr, out_rows, scale,
                HEADS, QUERIES, KEYS, COMPACT_Q, Q_STRIDE, K_STRIDE, V_STRIDE, OUT_STRIDE,
                ONLY_VISIBLE, EXCLUDE, ALL_KEYS, EXACT, LANES, PADDED, PRECISION, BLOCK_T, BLOCK_S, BLOCK_D,
            )  # fmt: skip
            for start in range(0, key_count, BLOCK_S):
                key_row, key_position, key_valid, k, p, dp = load_pairs(
                    start, key_count, window_k_ptr, window_v_ptr, key_position_ptr, bias_ptr, bias, pair_mask_ptr,
                    region_ptr, stats_ptr + out_first, q, grad, out_row, position, valid,
                    pack_ptr, taken, scale, QUERIES, KEYS, K_STRIDE, V_STRIDE, EXCLUDE, LANES, PRECISION,
                    BLOCK_S, BLOCK_D,
                )  # fmt: skip
                p, ds, share, delta = score_gradients(p, dp, share, delta, EXACT, ALL_KEYS)
                small_ds = ds.to(q.dtype)
                if ALL_KEYS:
                    d_bias += ds
                else:
                    add_to_bias(
                        d_bias_ptr, small_ds, key_row, key_position, key_valid, out_row, position, valid,
                        pack_ptr, taken, QUERIES,
                    )  # fmt: skip
                dq = tl.dot(tl.trans(small_ds), k, dq, input_precision=PRECISION)
                dk = tl.dot(small_ds, q, input_precision=PRECISION) * dot_scale
                dv = tl.dot(p.to(q.dtype), grad, input_precision=PRECISION)
                store_head(dv_ptr + key_first * DV_STRIDE + d_column, key_row, key_valid, dv, DV_STRIDE, LANES, BLOCK_D)
                store_head(dk_ptr + key_first * DK_STRIDE + d_column, key_row, key_valid, dk, DK_STRIDE, LANES, BLOCK_D)
            dq = dq * dot_scale
            dq_valid = valid & (q_row >= 0)
            store_head(dq_ptr + q_first * DQ_STRIDE + d_column, q_row, dq_valid, dq, DQ_STRIDE, LANES, BLOCK_D)
            if shared_qkv_ptr is not None:
                dq_shared += folded(tl.where((valid & (q_row < 0))[:, None], dq, 0.0))
        step += taken
        if ONLY_VISIBLE:
            step += windows_to_skip(offsets_ptr + first_window + step, steps - step, 0)

    if shared_qkv_ptr is not None:
        row, dim = tl.arange(0, 16), tl.arange(0, BLOCK_D)
        tl.store(d_shared_ptr + row[:, None] * BLOCK_D + dim[None, :], dq_shared)
    if ALL_KEYS:
        pair = key[:, None] * QUERIES + query[None, :]
        tl.store(d_bias_ptr + pair, d_bias, mask=(key < KEYS)[:, None] & (query < QUERIES)[None, :])


@triton.jit
def backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, shared_qkv_ptr, offsets_ptr, position_ptr, compact_index_ptr, regions_ptr, mask_ptr,
    windows, region_windows, mask_windows, scale,
    grad_ptr, out_ptr, stats_ptr, delta_ptr, dq_ptr, d_shared_ptr, shared_ds_ptr, out_rows, windows_each, dot_scale,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPACT_Q: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    DQ_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, OUT_HEAD_STRIDE: tl.constexpr, D_HEAD_STRIDE: tl.constexpr, LANES: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of queries of each window, and what the keys kernel needs of them."""
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and shared_qkv_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and shared_qkv_ptr is None
    ALL_KEYS: tl.constexpr = offsets_ptr is None and KEYS <= BLOCK_S
    EXACT: tl.constexpr = PRECISION == "ieee" and q_ptr.dtype.element_ty == tl.float32
    head, chunk, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column, out_column, d_column = head * HEAD_STRIDE, head * OUT_HEAD_STRIDE, head * D_HEAD_STRIDE
    bias_ptr += head * (KEYS * QUERIES)
    stats_ptr += head.to(tl.int64) * (3 * out_rows)
    delta_ptr += head.to(tl.int64) * (2 * out_rows)
    k_shared = None
    v_shared = None
    if shared_qkv_ptr is not None:
        shared_ds_ptr += head.to(tl.int64) * out_rows
        k_shared = load_shared(shared_qkv_ptr, 1, head, HEADS, BLOCK_D)
        v_shared = load_shared(shared_qkv_ptr, 2, head, HEADS, BLOCK_D)
        dq_shared = tl.zeros((16, BLOCK_D), tl.float32)
        program = (chunk * tl.num_programs(2) + tile) * (3 * HEADS) + head
        d_shared_ptr += program * (16 * BLOCK_D)

    first_window = chunk * windows_each
    steps = tl.minimum(windows_each, windows - first_window)
    min_rows = tl.maximum(tile, 1) * BLOCK_T  # visible windows of one tile are those of `backward_kernel`
    step = windows_to_skip(offsets_ptr + first_window, steps, min_rows) if ONLY_VISIBLE else 0
    while step < steps:
        window = first_window + step
        taken, key_first, key_count, out_first, out_count = take_windows(
            window, steps - step, offsets_ptr, regions_ptr, region_windows, BLOCK_T, QUERIES, KEYS, False, ONLY_VISIBLE
        )
        q_first = key_first if COMPACT_Q else out_first
        index_ptr = None if compact_index_ptr is None else compact_index_ptr + window.to(tl.int64) * KEYS
        region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
        pair_mask_ptr = None
        if mask_ptr is not None:
            pair_mask_ptr = mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)
        key_position_ptr = None if position_ptr is None else position_ptr + key_first
        window_k_ptr, window_v_ptr = k_ptr + key_first * K_STRIDE + column, v_ptr + key_first * V_STRIDE + column
        window_ds_ptr = None if shared_ds_ptr is None else shared_ds_ptr + out_first
        out_row, q_row, position, valid, q, grad, share, delta, dq = load_queries_and_gradient(
            tile * BLOCK_T, out_count, key_count, head, 1, q_ptr + q_first * Q_STRIDE + column,
            window_k_ptr, window_v_ptr,
            grad_ptr + out_first * OUT_STRIDE + out_column, out_ptr + out_first * OUT_STRIDE + out_column,
            stats_ptr + out_first, bias_ptr, shared_qkv_ptr, k_shared, v_shared, window_ds_ptr, d_shared_ptr,
            key_position_ptr, index_ptr, pair_mask_ptr, region_ptr, None, out_rows, scale,
            HEADS, QUERIES, KEYS, COMPACT_Q, Q_STRIDE, K_STRIDE, V_STRIDE, OUT_STRIDE,
            ONLY_VISIBLE, EXCLUDE, ALL_KEYS, EXACT, LANES, PADDED, PRECISION, BLOCK_T, BLOCK_S, BLOCK_D,
        )  # fmt: skip
        for start in range(0, key_count, BLOCK_S):
            key_row, key_position, key_valid, k, p, dp = load_pairs(  # noqa: RUF059 (`_` would be a variable, too)
                start, key_count, window_k_ptr, window_v_ptr, key_position_ptr, bias_ptr, None, pair_mask_ptr,
                region_ptr, stats_ptr + out_first, q, grad, out_row, position, valid, None, 1, scale,
                QUERIES, KEYS, K_STRIDE, V_STRIDE, EXCLUDE, LANES, PRECISION, BLOCK_S, BLOCK_D,
            )  # fmt: skip
            p, ds, share, delta = score_gradients(p, dp, share, delta, EXACT, ALL_KEYS)
            dq = tl.dot(tl.trans(ds.to(q.dtype)), k, dq, input_precision=PRECISION)
        dq = dq * dot_scale
        dq_valid = valid & (q_row >= 0)
        store_head(dq_ptr + q_first * DQ_STRIDE + d_column, q_row, dq_valid, dq, DQ_STRIDE, LANES, BLOCK_D)
        tl.store(delta_ptr + out_first + out_row, delta, mask=valid)
        tl.store(delta_ptr + out_rows + out_first + out_row, share, mask=valid)
        if shared_qkv_ptr is not None:
            dq_shared += folded(tl.where((valid & (q_row < 0))[:, None], dq, 0.0))
        step += taken
        if ONLY_VISIBLE:
            step += windows_to_skip(offsets_ptr + first_window + step, steps - step, min_rows)

    if shared_qkv_ptr is not None:
        row, dim = tl.arange(0, 16), tl.arange(0, BLOCK_D)
        tl.store(d_shared_ptr + row[:, None] * BLOCK_D + dim[None, :], dq_shared)


@triton.jit
def backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, shared_qkv_ptr, offsets_ptr, position_ptr, compact_index_ptr, regions_ptr, mask_ptr,
    windows, region_windows, mask_windows, scale,
    grad_ptr, stats_ptr, delta_ptr, dk_ptr, dv_ptr, d_bias_ptr, out_rows, windows_each, dot_scale,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPACT_Q: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    DK_STRIDE: tl.constexpr, DV_STRIDE: tl.constexpr, QUERY_TILE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, OUT_HEAD_STRIDE: tl.constexpr, D_HEAD_STRIDE: tl.constexpr, LANES: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of tiles of keys and of the bias, after the queries kernel.

    QUERY_TILE: visible windows of so many queries are those of `backward_kernel`.
    """
    ONLY_VISIBLE: tl.constexpr = COMPACT_Q and shared_qkv_ptr is None
    EXCLUDE: tl.constexpr = offsets_ptr is not None and shared_qkv_ptr is None
    EXACT: tl.constexpr = PRECISION == "ieee" and q_ptr.dtype.element_ty == tl.float32
    head, chunk = tl.program_id(0), tl.program_id(1)
    column, out_column, d_column = head * HEAD_STRIDE, head * OUT_HEAD_STRIDE, head * D_HEAD_STRIDE
    bias_ptr += head * (KEYS * QUERIES)
    d_bias_ptr += (chunk * HEADS + head).to(tl.int64) * (KEYS * QUERIES)
    stats_ptr += head.to(tl.int64) * (3 * out_rows)
    delta_ptr += head.to(tl.int64) * (2 * out_rows)
    key_start, key_step = tl.program_id(2) * BLOCK_S, tl.num_programs(2) * BLOCK_S

    first_window = chunk * windows_each
    steps = tl.minimum(windows_each, windows - first_window)
    step = windows_to_skip(offsets_ptr + first_window, steps, QUERY_TILE) if ONLY_VISIBLE else 0
    while step < steps:
        window = first_window + step
        taken, key_first, key_count, out_first, out_count = take_windows(
            window, steps - step, offsets_ptr, regions_ptr, region_windows, BLOCK_T, QUERIES, KEYS, False, ONLY_VISIBLE
        )
        q_first = key_first if COMPACT_Q else out_first
        index_ptr = None if compact_index_ptr is None else compact_index_ptr + window.to(tl.int64) * KEYS
        region_ptr = None if regions_ptr is None else regions_ptr + (window % region_windows) * KEYS
        pair_mask_ptr = None
        if mask_ptr is not None:
            pair_mask_ptr = mask_ptr + (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)
        key_position_ptr = None if position_ptr is None else position_ptr + key_first
        for start in range(key_start, key_count, key_step):
            key_row, key_position, key_valid = key_rows(start, key_count, key_position_ptr, BLOCK_S)
            k = load_head(k_ptr + key_first * K_STRIDE + column, key_row, key_valid, K_STRIDE, LANES, BLOCK_D)
            v = load_head(v_ptr + key_first * V_STRIDE + column, key_row, key_valid, V_STRIDE, LANES, BLOCK_D)
            dk = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
            dv = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
            for query_start in range(0, out_count, BLOCK_T):
                out_row, q_row, position, valid = query_rows(
                    query_start, out_count, key_position_ptr, index_ptr, QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T
                )
                q = load_queries(
                    q_ptr + q_first * Q_STRIDE + column, q_row, valid, shared_qkv_ptr, head,
                    Q_STRIDE, PADDED, LANES, BLOCK_D,
                )  # fmt: skip
                grad = load_head(
                    grad_ptr + out_first * OUT_STRIDE + out_column, out_row, valid, OUT_STRIDE, LANES, BLOCK_D
                )
                delta = tl.load(delta_ptr + out_first + out_row, mask=valid, other=0.0)
                share = tl.load(delta_ptr + out_first + out_rows + out_row, mask=valid, other=0.0)
                if not EXACT:
                    grad = (grad.to(tl.float32) * share[:, None]).to(q.dtype)
                bias = load_bias(bias_ptr, position, valid, key_position, key_valid, QUERIES)
                added = add_window_tables(
                    bias, pair_mask_ptr, region_ptr, position, valid, key_position, key_valid, QUERIES, KEYS, EXCLUDE,
                    out_row, key_row, None, 1,
                )  # fmt: skip
                p, dp = pair_gradients(k, v, q, grad, added, stats_ptr + out_first + out_row, valid, scale, PRECISION)
                p, ds, share, delta = score_gradients(p, dp, share, delta, EXACT, False)
                dv = tl.dot(p.to(q.dtype), grad, dv, input_precision=PRECISION)
                small_ds = ds.to(q.dtype)
                add_to_rows(d_bias_ptr, small_ds, key_position, key_valid, position, valid, QUERIES)
                dk = tl.dot(small_ds, q, dk, input_precision=PRECISION)
            store_head(dv_ptr + key_first * DV_STRIDE + d_column, key_row, key_valid, dv, DV_STRIDE, LANES, BLOCK_D)
            dk *= dot_scale
            store_head(dk_ptr + key_first * DK_STRIDE + d_column, key_row, key_valid, dk, DK_STRIDE, LANES, BLOCK_D)
        step += taken
        if ONLY_VISIBLE:
            step += windows_to_skip(offsets_ptr + first_window + step, steps - step, QUERY_TILE)
