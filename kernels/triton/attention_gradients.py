"""What the backward kernels of the attention share: tiles of pairs, and sums that outlive a tile.

Scores are (keys, queries) here: what they give to keys then stays in the registers that it is in.
"""

import triton
import triton.language as tl

from .attention_pairs import add_window_tables, load_bias, load_head, load_queries, query_rows, window_of_rows


@triton.jit
def key_rows(start, count, position_ptr, BLOCK_S: tl.constexpr):
    """Keys from row `start` of a window: their rows, positions, and which exist."""
    row = start + tl.arange(0, BLOCK_S)
    valid = row < count
    position = row
    if position_ptr is not None:
        position = tl.load(position_ptr + row, mask=valid, other=0)
    return row, position, valid


@triton.jit
def pair_gradients(k, v, q, grad, added, highest_ptr, valid, scale, PRECISION: tl.constexpr):
    """(keys, queries): p before the division by the softmax denominator, and the gradient of p."""
    score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale + added
    p = tl.exp2(score - tl.load(highest_ptr, mask=valid, other=0.0)[None, :])
    return p, tl.dot(v, tl.trans(grad), input_precision=PRECISION)


@triton.jit
def load_pairs(
    start, key_count, k_ptr, v_ptr, key_position_ptr, bias_ptr, bias, mask_ptr, region_ptr, stats_ptr,
    q, grad, out_row, position, valid, pack_ptr, taken, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    EXCLUDE: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of keys with all queries: rows and positions of the keys, which exist, k, and `pair_gradients`.

    bias: the position bias, if it is in registers; else it is loaded.
    """
    key_row, key_position, key_valid = key_rows(start, key_count, key_position_ptr, BLOCK_S)
    k = load_head(k_ptr, key_row, key_valid, K_STRIDE, LANES, BLOCK_D)
    v = load_head(v_ptr, key_row, key_valid, V_STRIDE, LANES, BLOCK_D)
    if bias is None:
        bias = load_bias(bias_ptr, position, valid, key_position, key_valid, QUERIES)
    added = add_window_tables(
        bias, mask_ptr, region_ptr, position, valid, key_position, key_valid, QUERIES, KEYS, EXCLUDE,
        out_row, key_row, pack_ptr, taken,
    )  # fmt: skip
    p, dp = pair_gradients(k, v, q, grad, added, stats_ptr + out_row, valid, scale, PRECISION)
    return key_row, key_position, key_valid, k, p, dp


@triton.jit
def load_gradient(
    grad_ptr, out_ptr, stats_ptr, row, valid, out_rows,
    EXACT: tl.constexpr, OUT_STRIDE: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of the output, divided by the softmax denominator; 1 / denominator; and delta.

    delta of a query, sum_j p_ij dp_ij, is gradient . out. In exact float32 it has to be that sum: made from the p and
    dp that it is subtracted from, it cancels where one key takes nearly all. Then only the gradient is final here.
    """
    grad = load_head(grad_ptr, row, valid, OUT_STRIDE, LANES, BLOCK_D)
    share = tl.zeros(row.shape, tl.float32)
    delta = tl.zeros(row.shape, tl.float32)
    if not EXACT:
        share = tl.load(stats_ptr + out_rows + row, mask=valid, other=0.0)
        out = load_head(out_ptr, row, valid, OUT_STRIDE, LANES, BLOCK_D)
        divided = grad.to(tl.float32) * share[:, None]
        delta = tl.sum(divided * out.to(tl.float32), 1)
        grad = divided.to(out.dtype)
    return grad, share, delta


@triton.jit
def exact_sums(
    total, delta, key_count, k_ptr, v_ptr, key_position_ptr, bias_ptr, mask_ptr, region_ptr, stats_ptr,
    q, grad, out_row, position, valid, pack_ptr, taken, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    EXCLUDE: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """1 / softmax denominator and delta, summed over all keys from those of the masked key on."""
    for start in range(0, key_count, BLOCK_S):
        key_row, key_position, key_valid, k, p, dp = load_pairs(  # noqa: RUF059 (`_` would be a variable, too)
            start, key_count, k_ptr, v_ptr, key_position_ptr, bias_ptr, None, mask_ptr, region_ptr, stats_ptr,
            q, grad, out_row, position, valid, pack_ptr, taken, scale,
            QUERIES, KEYS, K_STRIDE, V_STRIDE, EXCLUDE, LANES, PRECISION, BLOCK_S, BLOCK_D,
        )  # fmt: skip
        total += tl.sum(p, 0)
        delta += tl.sum(p * dp, 0)
    share = tl.where(total == 0.0, 0.0, 1.0 / total)
    return share, delta * share


@triton.jit
def load_queries_and_gradient(
    start, out_count, key_count, head, taken, q_ptr, k_ptr, v_ptr, grad_ptr, out_ptr, stats_ptr, bias_ptr,
    shared_qkv_ptr, k_shared, v_shared, shared_ds_ptr, d_shared_ptr,
    key_position_ptr, index_ptr, mask_ptr, region_ptr, pack_ptr, out_rows, scale,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPACT_Q: tl.constexpr,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    ONLY_VISIBLE: tl.constexpr, EXCLUDE: tl.constexpr, ALL_KEYS: tl.constexpr, EXACT: tl.constexpr,
    LANES: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of queries of a window, ready for its keys. The pointers are those of the window.

    Returns rows of the output and of q, positions, which exist, q, the gradient, 1 / softmax denominator, delta, and dq
    with what the masked key gives to it.
    """
    out_row, q_row, position, valid = query_rows(
        start, out_count, key_position_ptr, index_ptr, QUERIES, COMPACT_Q, ONLY_VISIBLE, BLOCK_T
    )
    q = load_queries(q_ptr, q_row, valid, shared_qkv_ptr, head, Q_STRIDE, PADDED, LANES, BLOCK_D)
    grad, share, delta = load_gradient(
        grad_ptr, out_ptr, stats_ptr, out_row, valid, out_rows, EXACT, OUT_STRIDE, LANES, BLOCK_D
    )
    dq = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    if shared_qkv_ptr is not None:
        shared_p = tl.load(stats_ptr + 2 * out_rows + out_row, mask=valid, other=0.0)
        shared_dp = tl.sum(grad.to(tl.float32) * v_shared[None, :], 1)
    if EXACT and not ALL_KEYS:
        if shared_qkv_ptr is not None:
            total, delta = shared_p, shared_p * shared_dp
        share, delta = exact_sums(
            total, delta, key_count, k_ptr, v_ptr, key_position_ptr, bias_ptr, mask_ptr, region_ptr,
            stats_ptr, q, grad, out_row, position, valid, pack_ptr, taken, scale,
            QUERIES, KEYS, K_STRIDE, V_STRIDE, EXCLUDE, LANES, PRECISION, BLOCK_S, BLOCK_D,
        )  # fmt: skip
        if shared_qkv_ptr is not None:
            shared_p *= share
    if shared_qkv_ptr is not None:
        dq = shared_gradients(
            q, grad, shared_p, shared_dp, delta, k_shared, shared_ds_ptr + out_row, d_shared_ptr, valid, HEADS, BLOCK_D
        )
    return out_row, q_row, position, valid, q, grad, share, delta, dq


@triton.jit
def score_gradients(p, dp, share, delta, EXACT: tl.constexpr, ALL_KEYS: tl.constexpr):
    """p, the gradient of the scores, 1 / denominator and delta; the last two are made here from all keys at once."""
    if EXACT:
        if ALL_KEYS:
            total = tl.sum(p, 0)
            share = tl.where(total == 0.0, 0.0, 1.0 / total)
            delta = tl.sum(p * dp, 0) * share
        p *= share[None, :]
    return p, p * (dp - delta[None, :]), share, delta


@triton.jit
def shared_gradients(
    q, grad, share_of_key, d_share, delta, k_shared, shared_ds_ptr, d_shared_ptr, valid,
    HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What the masked key gives: the first part of dq; adds to the gradients of its k and v, and stores its ds."""
    ds = share_of_key * (d_share - delta)
    tl.store(shared_ds_ptr, ds, mask=valid)
    add_to_sums(d_shared_ptr + HEADS * 16 * BLOCK_D, ds[:, None] * q.to(tl.float32))
    add_to_sums(d_shared_ptr + 2 * HEADS * 16 * BLOCK_D, share_of_key[:, None] * grad.to(tl.float32))
    return ds[:, None] * k_shared[None, :]


@triton.jit
def add_to_rows(d_bias_ptr, ds, key_position, key_valid, position, valid, QUERIES: tl.constexpr):
    """Add ds to the rows of its keys, which this program alone owns, in memory that stays in the caches."""
    pair = d_bias_ptr + key_position[:, None] * QUERIES + position[None, :]
    mask = key_valid[:, None] & valid[None, :]
    tl.debug_barrier()  # another thread may have written here before
    tl.store(pair, tl.load(pair, mask=mask, other=0.0) + ds.to(tl.float32), mask=mask)


@triton.jit
def add_to_bias(
    d_bias_ptr, ds, key_row, key_position, key_valid, out_row, position, valid, pack_ptr, taken, QUERIES: tl.constexpr
):
    """`add_to_rows` for the pairs of one window or, with `pack_ptr`, of `taken` adjacent ones."""
    if pack_ptr is not None:
        key_window = window_of_rows(key_row, pack_ptr, taken)
        query_window = window_of_rows(out_row, pack_ptr, taken)
        for i in range(0, taken):  # one after the other: they meet at the same positions
            add_to_rows(
                d_bias_ptr, ds, key_position, key_valid & (key_window == i), position, valid & (query_window == i),
                QUERIES,
            )  # fmt: skip
    else:
        add_to_rows(d_bias_ptr, ds, key_position, key_valid, position, valid, QUERIES)


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
