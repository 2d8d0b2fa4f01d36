"""What the attention kernels of the Triton backend need of a window: its tokens, and what is added to their scores.

Legend: a *place* is where a token lies in its window; a *row* is where it lies in its tensor, counted from the window's
first row. Scores are (queries, keys), or turned, in float32, and times log2(e), as are the bias and the scale that the
kernels are given: exp2 is what devices have.
"""

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-1e29)  # scores far below this are no keys (kernels/reference.py); a running maximum starts here
FOREIGN = tl.constexpr(100 * 1.4426950408889634)  # less for keys of other shift regions, where they take part


@triton.jit
def compact_index_kernel(offsets_ptr, position_ptr, rows_ptr, PLACES: tl.constexpr, BLOCK: tl.constexpr):
    """(windows, places), which were -1: the row of the visible token at each place of each window."""
    window = tl.program_id(0)
    first = tl.load(offsets_ptr + window)
    row = tl.arange(0, BLOCK)
    visible = row < tl.load(offsets_ptr + window + 1) - first
    place = tl.load(position_ptr + first + row, mask=visible, other=0)
    tl.store(rows_ptr + window.to(tl.int64) * PLACES + place, row, mask=visible)


@triton.jit
def window_rows(window, windows, offsets_ptr, ROWS: tl.constexpr):
    """First row and number of rows: of adjacent windows in a list, or of one in a windowed tensor."""
    first = window.to(tl.int64) * ROWS
    count = ROWS
    if offsets_ptr is not None:
        begin = tl.load(offsets_ptr + window)
        count = tl.load(offsets_ptr + window + windows) - begin
        first = begin.to(tl.int64)
    return first, count


@triton.jit
def windows_that_fit(offsets_ptr, left, MOST: tl.constexpr):
    """How many of the first windows of a list have at most MOST rows together, at least 1; left: how many there are."""
    begin = tl.load(offsets_ptr)
    taken = 1
    while (taken < left) & (tl.load(offsets_ptr + tl.minimum(taken + 1, left)) - begin <= MOST):
        taken += 1
    return taken


@triton.jit
def take_windows(
    window, left, offsets_ptr, regions_ptr, region_windows, MOST: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PACKED: tl.constexpr, ONLY_VISIBLE: tl.constexpr,
):  # fmt: skip
    """How many of the `left` windows from one on are taken at once: with PACKED, those of MOST rows together at most.

    And first row and number of rows of their keys, and of their queries. (Triton 3.6 cannot return None in a tuple.)
    """
    taken = 1
    if PACKED:
        if regions_ptr is not None:  # those of an image lie behind each other
            left = tl.minimum(left, region_windows - window % region_windows)
        taken = windows_that_fit(offsets_ptr + window, left, MOST)
    key_first, key_count = window_rows(window, taken, offsets_ptr, KEYS)
    out_first, out_count = key_first, key_count
    if not ONLY_VISIBLE:
        out_first, out_count = window_rows(window, 1, None, QUERIES)
    return taken, key_first, key_count, out_first, out_count


@triton.jit
def window_of_rows(row, offsets_ptr, windows):
    """Which of the first windows of a list each row lies in, counted from the first one's first."""
    begin = tl.load(offsets_ptr)
    window = tl.zeros_like(row)
    for i in range(1, windows):
        window += (row >= tl.load(offsets_ptr + i) - begin).to(tl.int32)
    return window


@triton.jit
def windows_to_skip(offsets_ptr, left, least):
    """How many of the first windows of a list have at most `least` rows; left: how many there are."""
    skipped = 0
    while (skipped < left) & (first_count(offsets_ptr + tl.minimum(skipped, left - 1)) <= least):
        skipped += 1
    return skipped


@triton.jit
def first_count(offsets_ptr):
    return tl.load(offsets_ptr + 1) - tl.load(offsets_ptr)


@triton.jit
def query_rows(
    start, out_count, position_ptr, rows_ptr, QUERIES: tl.constexpr, COMPACT_Q: tl.constexpr,
    ONLY_VISIBLE: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Queries from row `start` of the output: their rows there and in q (-1: masked), places, and which exist."""
    out_row = start + tl.arange(0, BLOCK_T)
    valid = out_row < out_count
    place = out_row
    q_row = out_row
    if ONLY_VISIBLE:
        place = tl.load(position_ptr + out_row, mask=valid, other=0)
    elif COMPACT_Q:
        q_row = tl.load(rows_ptr + out_row, mask=valid, other=0)
    return out_row, q_row, place, valid


@triton.jit
def load_head(base_ptr, row, valid, STRIDE: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr):
    """One head of the rows, (rows, BLOCK_D), 0 outside of the valid rows and the first LANES columns."""
    dim = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if LANES < BLOCK_D:
        mask = mask & (dim < LANES)[None, :]
    return tl.load(base_ptr + row[:, None] * STRIDE + dim[None, :], mask=mask, other=0.0)


@triton.jit
def store_head(base_ptr, row, valid, tile, STRIDE: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr):
    dim = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if LANES < BLOCK_D:
        mask = mask & (dim < LANES)[None, :]
    tl.store(base_ptr + row[:, None] * STRIDE + dim[None, :], tile.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_masked(masked_ptr, WHICH: tl.constexpr, head, HEADS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The q, k or v (WHICH = 0, 1, 2) that all masked tokens share, (BLOCK_D,), float32."""
    return tl.load(masked_ptr + (WHICH * HEADS + head) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.float32)


@triton.jit
def load_queries(
    q_ptr, row, valid, masked_ptr, head,
    STRIDE: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One head of q; rows of masked tokens, -1, get the q that they share."""
    if masked_ptr is not None and PADDED:  # it is read in their place: both begin at a sector
        dim = tl.arange(0, BLOCK_D)
        row_ptr = tl.where(row >= 0, q_ptr + row * STRIDE, masked_ptr + head * BLOCK_D)
        row_ptr = tl.multiple_of(row_ptr, 16)
        mask = valid[:, None] & (dim < LANES)[None, :]
        q = tl.load(row_ptr[:, None] + dim[None, :], mask=mask, other=0.0)
    else:
        q = load_head(q_ptr, row, valid & (row >= 0), STRIDE, LANES, BLOCK_D)
        if masked_ptr is not None:
            shared = tl.load(masked_ptr + head * BLOCK_D + tl.arange(0, BLOCK_D))
            q = tl.where((row >= 0)[:, None], q, shared[None, :])
    return q


@triton.jit
def is_foreign(region_ptr, query_place, query_valid, key_place, key_valid):
    """(keys, queries): whether they lie in different shift regions."""
    key_region = tl.load(region_ptr + key_place, mask=key_valid, other=0)
    return key_region[:, None] != tl.load(region_ptr + query_place, mask=query_valid, other=0)[None, :]


@triton.jit
def load_bias(bias_ptr, query_place, query_valid, key_place, key_valid, QUERIES: tl.constexpr):
    """(keys, queries): the position bias of a head, -inf where there is no key.

    It lies like this in memory: the places of visible keys pick rows of adjacent queries.
    """
    pair = key_place[:, None] * QUERIES + query_place[None, :]
    return tl.load(bias_ptr + pair, mask=key_valid[:, None] & query_valid[None, :], other=float("-inf"))


@triton.jit
def region_key(row, place, valid, region_ptr, offsets_ptr, windows, KEYS: tl.constexpr):
    """A number that rows share which lie in the same window, of `windows` adjacent ones, and shift region."""
    window = window_of_rows(row, offsets_ptr, windows)
    kind = window << 16
    if region_ptr is not None:
        kind += tl.load(region_ptr + window * KEYS + place, mask=valid, other=0)
    return kind


@triton.jit
def add_window_tables(
    bias, mask_ptr, region_ptr, query_place, query_valid, key_place, key_valid,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, EXCLUDE: tl.constexpr,
    query_row=None, key_row=None, offsets_ptr=None, windows=1,
):  # fmt: skip
    """The position bias with window mask and shift regions: all that is added to scores.

    windows: of how many adjacent ones the rows are; offsets_ptr: those of these windows. Keys of others are no keys.
    """
    if mask_ptr is not None:
        pair = key_place[:, None] * QUERIES + query_place[None, :]
        bias += tl.load(mask_ptr + pair, mask=key_valid[:, None] & query_valid[None, :], other=0.0)
    several = False
    if region_ptr is not None:
        several = tl.load(region_ptr) != tl.load(region_ptr + KEYS - 1)  # then first and last place differ
    if offsets_ptr is not None:  # noqa: SIM102 (known when it is compiled)
        if windows > 1:
            query_kind = region_key(query_row, query_place, query_valid, region_ptr, offsets_ptr, windows, KEYS)
            key_kind = region_key(key_row, key_place, key_valid, region_ptr, offsets_ptr, windows, KEYS)
            bias = tl.where(key_kind[:, None] != query_kind[None, :], float("-inf"), bias)
            several = False
    if region_ptr is not None:  # noqa: SIM102
        if several:
            foreign = is_foreign(region_ptr, query_place, query_valid, key_place, key_valid)
            bias = tl.where(foreign, float("-inf") if EXCLUDE else bias - FOREIGN, bias)
    return bias


@triton.jit
def masked_scores(q, k_masked, masked_bias_ptr, row, valid, scale):
    """The score of the one key that stands for the masked ones; its bias is theirs, exponentials added up."""
    masked_bias = tl.load(masked_bias_ptr + row, mask=valid, other=float("-inf"))
    return tl.sum(q.to(tl.float32) * k_masked[None, :], 1) * scale + masked_bias
