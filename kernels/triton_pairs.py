"""What the attention kernels of the Triton backend need of a window: its tokens, and what is added to their scores.

Legend: a *place* is where a token lies in its window; a *row* is where it lies in its tensor, counted from the window's
first row. Tiles are (queries, keys) of a window, in float32.
"""

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-1e29)  # scores from here down are no keys (kernels/reference.py); a running maximum starts here


@triton.jit
def rows_of_places_kernel(offsets_ptr, position_ptr, rows_ptr, PLACES: tl.constexpr, BLOCK: tl.constexpr):
    """(windows, places): the row of the visible token at each place of each window, or -1."""
    window = tl.program_id(0)
    first = tl.load(offsets_ptr + window)
    count = tl.load(offsets_ptr + window + 1) - first
    lane = tl.arange(0, BLOCK)
    place = tl.load(position_ptr + first + lane, mask=lane < count, other=-1)
    row = tl.max(tl.where(lane[:, None] == place[None, :], lane[None, :], -1), 1)
    tl.store(rows_ptr + window * PLACES + lane, row, mask=lane < PLACES)


@triton.jit
def window_rows(window, offsets_ptr, ROWS: tl.constexpr):
    """First row and number of rows of a window: in the list of visible tokens, or of a windowed tensor."""
    first = window.to(tl.int64) * ROWS
    count = ROWS
    if offsets_ptr is not None:
        begin = tl.load(offsets_ptr + window)
        count = tl.load(offsets_ptr + window + 1) - begin
        first = begin.to(tl.int64)
    return first, count


@triton.jit
def load_head(base_ptr, row, valid, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """One head of the rows, (rows, BLOCK_D), 0 outside."""
    dim = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (dim < HEAD_DIM)[None, :]
    return tl.load(base_ptr + row[:, None] * STRIDE + dim[None, :], mask=mask, other=0.0)


@triton.jit
def store_head(base_ptr, row, valid, tile, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    dim = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(base_ptr + row[:, None] * STRIDE + dim[None, :], tile.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_masked(
    masked_ptr, WHICH: tl.constexpr, head, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The q, k or v (WHICH = 0, 1, 2) that all masked tokens share, (BLOCK_D,)."""
    dim = tl.arange(0, BLOCK_D)
    return tl.load(masked_ptr + (WHICH * HEADS + head) * HEAD_DIM + dim, mask=dim < HEAD_DIM, other=0.0)


@triton.jit
def window_tables(
    window, position_ptr, rows_ptr, regions_ptr, mask_ptr, region_windows, mask_windows, key_first,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The parts of positions, rows, regions and mask that belong to a window; None where there are none."""
    if position_ptr is not None:
        position_ptr += key_first
        rows_ptr += window * KEYS
    if regions_ptr is not None:
        regions_ptr += (window % region_windows) * KEYS
    if mask_ptr is not None:
        mask_ptr += (window % mask_windows).to(tl.int64) * (QUERIES * KEYS)
    return position_ptr, rows_ptr, regions_ptr, mask_ptr


@triton.jit
def load_region(region_ptr, place, valid):
    """The shift region of each place; all the same without a shift."""
    region = tl.zeros(place.shape, tl.int32)
    if region_ptr is not None:
        region = tl.load(region_ptr + place, mask=valid, other=0)
    return region


@triton.jit
def pair_bias(
    bias_ptr, mask_ptr, region_ptr, query_place, query_region, query_valid, key_place, key_valid,
    QUERIES: tl.constexpr, EXCLUDE: tl.constexpr,
):  # fmt: skip
    """What is added to the scores: position bias, window mask, shift regions; -inf where there is no pair.

    Bias (of one head) and mask are (keys, queries) in memory: the places of visible keys pick rows of adjacent queries.
    """
    valid = query_valid[:, None] & key_valid[None, :]
    pair = key_place[None, :] * QUERIES + query_place[:, None]
    added = tl.load(bias_ptr + pair, mask=valid, other=0.0).to(tl.float32)
    if mask_ptr is not None:
        added += tl.load(mask_ptr + pair, mask=valid, other=0.0).to(tl.float32)
    if region_ptr is not None:
        foreign = query_region[:, None] != load_region(region_ptr, key_place, key_valid)[None, :]
        added = tl.where(foreign, float("-inf") if EXCLUDE else added - 100.0, added)
    return tl.where(valid & ~(added <= NO_KEY), added, float("-inf"))  # NaN stays


@triton.jit
def load_keys(
    k_ptr, v_ptr, position_ptr, row, count, bias_ptr, mask_ptr, region_ptr, query_place, query_region, query_valid,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr, EXCLUDE: tl.constexpr,
):  # fmt: skip
    """k, v and places of the keys in the given rows, and what is added to their scores.

    k, v and positions begin at the window's first row; without positions, rows lie at their places.
    """
    valid = row < count
    place = row
    if position_ptr is not None:
        place = tl.load(position_ptr + row, mask=valid, other=0)
    k = load_head(k_ptr, row, valid, K_STRIDE, HEAD_DIM, BLOCK_D)
    v = load_head(v_ptr, row, valid, V_STRIDE, HEAD_DIM, BLOCK_D)
    added = pair_bias(
        bias_ptr, mask_ptr, region_ptr, query_place, query_region, query_valid, place, valid, QUERIES, EXCLUDE
    )
    return k, v, place, added


@triton.jit
def load_queries(
    q_ptr, row, valid, masked_ptr, head,
    Q_STRIDE: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One head of q; rows of masked tokens, -1, get the q that they share."""
    q = load_head(q_ptr, row, valid & (row >= 0), Q_STRIDE, HEAD_DIM, BLOCK_D)
    if masked_ptr is not None:
        q = tl.where((row >= 0)[:, None], q, load_masked(masked_ptr, 0, head, HEADS, HEAD_DIM, BLOCK_D)[None, :])
    return q


@triton.jit
def scores(q, k, added, scale, PRECISION: tl.constexpr):
    return tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + added


@triton.jit
def raise_maximum(highest, score):
    """The running maximum of each query after more keys, and the factor of what was summed under the old one."""
    raised = tl.maximum(highest, tl.max(score, 1))
    return raised, tl.exp(highest - raised)


@triton.jit
def masked_keys(
    bias_ptr, exp_bias_ptr, top_ptr, mask_ptr, region_ptr, rows_ptr, query_place, query_region, query_valid,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """All masked keys of each query as one: a largest bias b and E = sum exp(bias - b) over them.

    Without a window mask b is the largest bias of the query's row, and exp(bias - b) is read from `exp_bias_ptr`.
    """
    if exp_bias_ptr is None:
        top = tl.full(query_place.shape, NO_KEY, tl.float32)
        mass = tl.zeros(query_place.shape, tl.float32)
        for start in range(0, KEYS, BLOCK_N):
            place = start + tl.arange(0, BLOCK_N)
            masked = tl.load(rows_ptr + place, mask=place < KEYS, other=0) < 0
            added = pair_bias(
                bias_ptr, mask_ptr, region_ptr, query_place, query_region, query_valid, place, masked, QUERIES, False
            )
            top, shrink = raise_maximum(top, added)
            mass = mass * shrink + tl.sum(tl.exp(added - top[:, None]), 1)
    else:
        top = tl.load(top_ptr + query_place, mask=query_valid, other=0.0)
        mass = tl.zeros(query_place.shape, tl.float32)
        foreign_mass = tl.zeros(query_place.shape, tl.float32)
        # Unrolled: Triton 3.8's pass OptimizeThreadLocality asserts on a loop like this one.
        for start in tl.static_range(0, KEYS, BLOCK_N):
            place = start + tl.arange(0, BLOCK_N)
            masked = tl.load(rows_ptr + place, mask=place < KEYS, other=0) < 0
            chosen = query_valid[:, None] & masked[None, :]
            pair = place[None, :] * QUERIES + query_place[:, None]
            part = tl.load(exp_bias_ptr + pair, mask=chosen, other=0.0)
            if region_ptr is not None:
                foreign = query_region[:, None] != load_region(region_ptr, place, masked)[None, :]
                foreign_mass += tl.sum(tl.where(foreign, part, 0.0), 1)
                part = tl.where(foreign, 0.0, part)
            mass += tl.sum(part, 1)
        if region_ptr is not None:
            # Beside any masked key of its own region, one of another counts exp(-100): nothing in float32.
            alone = mass == 0.0
            mass = tl.where(alone, foreign_mass, mass)
            top = tl.where(alone, top - 100.0, top)
        top = tl.where(mass == 0.0, NO_KEY, top)
    return top, mass
