"""CUDA C++ kernels (kernels.cu) run by ptxsim against numpy."""

import math

import numpy as np
import pytest

from tests.support import ptxsim

F32 = np.float32


def rng(seed=0):
    return np.random.default_rng(seed)


def bf16(x):
    """f32 array -> bf16 bit patterns, nearest even."""
    bits = np.asarray(x, F32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(F32)


@pytest.mark.parametrize("kernel, ways", [("transpose_naive", 32), ("transpose_padded", 1)])
def test_transpose_counts_bank_conflicts(cuda, kernel, ways):
    n = 64
    x, out = rng().random((n, n), F32), np.zeros((n, n), F32)
    stats = cuda.launch(kernel, (2, 2), (32, 8), [x, out, n], racecheck=True, initcheck=True)
    assert (out == x.T).all()
    requests = 4 * 8 * 4  # CTAs x warps x rows per warp
    assert stats.shared_requests == 2 * requests
    assert stats.shared_conflict_wavefronts == requests * (ways - 1)
    assert stats.instructions["ld_global"] == stats.instructions["st_global"] == requests
    assert stats.global_read_sectors == 4 * requests and stats.read_efficiency == 1
    assert stats.barriers == 4 and stats.unique_bytes == 2 * x.nbytes


def test_strided_access_is_uncoalesced(cuda):
    x, out = rng().random(64 * 16, F32), np.zeros(64, F32)
    stats = cuda.launch("copy_strided", 1, 64, [x, out, 16])
    assert (out == x[::16]).all()
    assert stats.global_read_requests == 2 and stats.global_read_sectors == 64
    assert stats.read_efficiency == 1 / 8 and stats.write_efficiency == 1
    assert stats.arguments[0].unique_read == 256 and stats.arguments[1].unique_written == 256
    assert stats.arguments[0].requested_read == 64 and stats.arguments[1].requested_written == 8


def test_shuffle_reduction(cuda):
    x, out = rng().random(5000, F32), np.zeros(3, F32)
    stats = cuda.launch("block_sum", 3, 256, [x, out, x.size], racecheck=True, initcheck=True)
    np.testing.assert_allclose(out.sum(), x.sum(dtype=np.float64), rtol=1e-5)
    assert stats.instructions["shfl"] == 3 * (8 * 5 + 5)
    assert stats.shared_static_bytes == 128


def test_mma_gemm(cuda):
    m, n, k = 64, 96, 48
    a, b, c = bf16(rng(1).normal(size=(m, k))), bf16(rng(2).normal(size=(k, n))), np.zeros((m, n), F32)
    stats = cuda.launch("mma_gemm", (n // 32, m // 32), 128, [a, b, c, n, k], racecheck=True, initcheck=True)
    np.testing.assert_allclose(c, from_bf16(a) @ from_bf16(b), rtol=1e-5, atol=1e-5)
    assert stats.mma_flops == 2 * m * n * k
    assert stats.mma_by_shape == {"m16n8k16.bf16.f32": m * n * k // (16 * 8 * 16)}
    assert stats.instructions["ldmatrix"] == stats.instructions["mma"]


def fragment_index(rows, depth, e):
    """For an A operand: (register, lane, element) -> (row, column), spelled out from the PTX ISA."""
    table = {}
    for i in range(rows * depth // 32 // e):
        for lane in range(32):
            for j in range(e):
                row = lane // 4 + 8 * (i % 2)
                table[i, lane, j] = row, (i // 2) * 4 * e + (lane % 4) * e + j
    return table


@pytest.mark.parametrize("shape, depth, e", [(0, 16, 2), (1, 8, 1), (2, 32, 4)])
def test_mma_shapes(cuda, shape, depth, e):
    kind = [np.float16, F32, np.int8][shape]
    a_regs, b_regs, c_regs, d = (np.zeros((4, 32), np.uint32) for _ in range(4))
    r = rng(shape)
    draw = lambda s: r.integers(-9, 9, s).astype(kind)
    a, b = draw((16, depth)), draw((depth, 8))
    c = r.integers(-9, 9, (16, 8)).astype([np.float16, F32, np.int32][shape])
    for (i, lane, j), (row, col) in fragment_index(16, depth, e).items():
        a_regs.view(kind).reshape(4, 32, e)[i, lane, j] = a[row, col]
    for i in range(2):
        for lane in range(32):
            for j in range(e):
                k = i * 4 * e + (lane % 4) * e + j
                b_regs.view(kind).reshape(4, 32, e)[i, lane, j] = b[k, lane // 4]

    def place(regs, lane, i):
        if shape == 0:
            return regs.view(np.float16).reshape(4, 32, 2), (i // 2, lane, i % 2)
        return regs.view(c.dtype), (i, lane)

    for lane in range(32):
        for i in range(4):
            view, at = place(c_regs, lane, i)
            view[at] = c[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2]
    cuda.launch("mma_shapes", 1, 96, [a_regs, b_regs, c_regs, d, shape])
    want = a.astype(np.int64) @ b.astype(np.int64) + c.astype(np.int64)
    for lane in range(32):
        for i in range(4):
            view, at = place(d, lane, i)
            assert view[at] == want[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2]


def test_cp_async_pipeline(cuda):
    x, out = rng().random(128 * 5, F32), np.zeros(128 * 5, F32)
    stats = cuda.launch("cp_async_pipeline", 1, 128, [x, out, 5], racecheck=True, initcheck=True)
    want = 2 * x.reshape(5, 2, 64)[:, ::-1].reshape(-1)
    assert (out == want).all()
    assert stats.instructions["cp_async"] >= 5


def test_cp_async_without_wait_is_caught(cuda):
    x, out = rng().random(128 * 5, F32), np.zeros(128 * 5, F32)
    cuda.launch("cp_async_no_wait", 1, 128, [x, out, 5])
    assert not (out == 2 * x.reshape(5, 2, 64)[:, ::-1].reshape(-1)).any()
    with pytest.raises(ptxsim.UninitialisedRead, match="cp.async"):
        cuda.launch("cp_async_no_wait", 1, 128, [x, out, 5], initcheck=True)


def test_atomics(cuda):
    n = 500
    x = rng().integers(0, 1000, n, np.int32)
    histogram, total = np.zeros(16, np.int32), np.zeros(1, np.float32)
    extremes, big = np.array([-1, 5000], np.int32), np.zeros(1, np.uint64)
    ticket, pair = np.zeros(n + 1, np.uint32), np.zeros(2, np.float16)
    args = [x, histogram, total, extremes, big, ticket, pair, n]
    stats = cuda.launch("atomics", 4, 128, args, racecheck=True, initcheck=True)
    assert (histogram == np.bincount(x & 15, minlength=16)).all()
    assert total[0] == n / 2 and extremes.tolist() == [x.max(), x.min()]
    assert big[0] == int(x.sum()) << 20 and pair.tolist() == [n, 2 * n]
    assert ticket[0] == n and sorted(ticket[1:]) == list(range(n))
    assert stats.atomics == 7 * n + 4 * 16


def test_spin_lock_makes_progress(cuda):
    lock, value = np.zeros(1, np.int32), np.zeros(1, np.int32)
    cuda.launch("spin_lock", 1, 64, [lock, value])
    assert value[0] == 64


def test_divergent_loops(cuda):
    start, steps = np.arange(1, 101, dtype=np.int32), np.zeros(100, np.int32)

    def collatz(v):
        count = 0
        while v != 1:
            v, count = (3 * v + 1 if v % 2 else v // 2), count + 1
        return count

    stats = cuda.launch("collatz", 2, 64, [start, steps, 100])
    assert steps.tolist() == [collatz(v) for v in range(1, 101)]
    assert stats.divergent_branches > 0


def test_out_of_bounds_message(cuda):
    x, out = np.zeros(200, F32), np.zeros(256, F32)
    with pytest.raises(ptxsim.MemoryFault) as caught:
        cuda.launch("copy_unchecked", 2, 128, [x, out])
    message = str(caught.value)
    for part in ("copy_unchecked, PTX line", "kernels.cu:", "thread (72, 0, 0) of CTA (1, 0, 0)", "load of 4 bytes",
                 "0 bytes past the end of argument 0", "of 800 bytes", "ld.global"):  # fmt: skip
        assert part in message, message
    readonly = np.zeros(256, F32)
    readonly.flags.writeable = False
    with pytest.raises(ptxsim.MemoryFault, match="read-only"):
        cuda.launch("copy_unchecked", 2, 128, [np.zeros(256, F32), readonly])
    with pytest.raises(ptxsim.MemoryFault, match="0x0"):
        cuda.launch("copy_unchecked", 1, 128, [None, out])


def test_misaligned_access(cuda):
    with pytest.raises(ptxsim.MemoryFault, match="misaligned for 16 bytes"):
        cuda.launch("misaligned", 1, 32, [np.zeros(200, F32), np.zeros(200, F32)])


def test_views_share_storage_and_keep_bounds(cuda):
    storage = np.arange(300, dtype=F32)
    cuda.launch("copy_unchecked", 1, 128, [storage[3:131], storage[160:288]])
    assert (storage[160:288] == np.arange(3, 131)).all()
    with pytest.raises(ptxsim.MemoryFault):
        cuda.launch("copy_unchecked", 1, 160, [storage[3:131], np.zeros(160, F32)])


def test_race_is_caught(cuda):
    x = rng().random(128, F32)
    synced = x.copy()
    cuda.launch("reverse_synced", 1, 128, [synced], racecheck=True)
    assert (synced == x[::-1]).all()
    with pytest.raises(ptxsim.RaceError, match="shared memory race: read of a byte written by warp 3"):
        cuda.launch("reverse_racy", 1, 128, [x.copy()], racecheck=True)


def test_uninitialised_shared_read_is_caught(cuda):
    cuda.launch("uninitialised", 1, 100, [np.zeros(128, F32)], 512, initcheck=True)
    with pytest.raises(ptxsim.UninitialisedRead, match=r"thread \(100, 0, 0\)"):
        cuda.launch("uninitialised", 1, 128, [np.zeros(128, F32)], 512, initcheck=True)
    with pytest.raises(ptxsim.MemoryFault, match="shared byte offset 256 of 256"):
        cuda.launch("uninitialised", 1, 128, [np.zeros(128, F32)], 256)


def to_signed(v, bits):
    v &= 2**bits - 1
    return v - 2**bits if v >> (bits - 1) else v


def integer_reference(x, y):
    """The values of kernel `integers` with Python integers."""
    m32, m64 = 2**32 - 1, 2**64 - 1
    u, v, z = x & m32, y & m32, y or 1
    wide = to_signed((x << 32) | v, 64)
    uz = z & m32
    trunc = lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    clz = lambda a, w: w - a.bit_length()
    rev = lambda a, w: int(f"{a:0{w}b}"[::-1], 2)
    pool = [(v << 32 | u) >> (8 * i) & 255 for i in range(8)]
    perm = sum(pool[(v & 0x7777) >> (4 * i) & 7] << (8 * i) for i in range(4))
    sh = y & 31
    s8 = lambda a: [to_signed(a >> (8 * i), 8) for i in range(4)]
    return [
        (u).bit_count(), clz(u, 32), rev(u, 32), (u & -u).bit_length(), to_signed(perm, 32),
        ((v << 32 | u) << sh >> 32) & m32, u * v >> 32, x * y >> 32, to_signed(trunc(x, z), 32), x - trunc(x, z) * z,
        to_signed(u // uz, 32), to_signed(u % uz, 32), to_signed(wide * to_signed(wide ^ y, 64) >> 64, 64),
        to_signed((wide & m64) * ((wide + 7) & m64) >> 64, 64), x >> sh, to_signed(u << sh, 32), (abs(x - y) + 5) & m32,
        min(x, y), max(u, v), to_signed(abs(x), 32), (wide & m64).bit_count(), clz(wide & m64, 64),
        to_signed(rev(wide & m64, 64), 64), trunc(wide, z), wide - trunc(wide, z) * z,
        to_signed(3 + sum(p * q for p, q in zip(s8(u), s8(v))), 32), (x & 0x1FF0) >> 4, to_signed(x, 8), v & 0xFFFF,
        to_signed((x & y) | (~x & z), 32), wide >> (y & 63), u ^ v,
    ]  # fmt: skip


def test_integer_instructions(cuda):
    n = 256
    r = rng(3)
    a, b = r.integers(-(2**31), 2**31, n, np.int32), r.integers(-(2**31), 2**31, n, np.int32)
    a[:32], b[:64:2] = r.integers(-9, 9, 32), r.integers(-9, 9, 32)
    out = np.zeros((32, n), np.int64)
    cuda.launch("integers", 1, n, [a, b, out, n])
    for i in range(n):
        assert out[:, i].tolist() == integer_reference(int(a[i]), int(b[i])), (i, a[i], b[i])


def test_carry_chains(cuda):
    a, out = rng(4).integers(0, 2**64, 4, np.uint64), np.zeros(6, np.uint64)
    cuda.launch("wide_add", 1, 1, [a, out])
    x, y = (int(a[0]) << 64) | int(a[1]), (int(a[2]) << 64) | int(a[3])
    want = [v & (2**128 - 1) for v in (x + y, x * y, x - y)]
    assert out.tolist() == [part for v in want for part in (v >> 64, v & (2**64 - 1))]


def test_float_instructions(cuda):
    n = 128
    r = rng(5)
    a, b = r.normal(size=n).astype(F32), r.normal(size=n).astype(F32)
    out = np.zeros((32, n), F32)
    cuda.launch("floats", 1, n, [a, b, out, n])
    x, y = a.astype(np.float64), b.astype(np.float64)
    x100, x9 = (F32(100) * a).astype(np.float64), (a * F32(9))
    to_zero = lambda s: np.where(np.abs(s.astype(F32)) > np.abs(s), np.nextafter(s.astype(F32), F32(0)), s.astype(F32))
    want = [
        a + b, a / b, (x * y + x).astype(F32), np.sqrt(np.abs(a)), 1 / np.sqrt(np.abs(y)), np.exp(x), np.log(np.abs(y)),
        np.sin(x100), np.cos(x100), np.tanh(x), np.abs(x) ** y, np.exp(x), [math.erf(v) for v in x], np.minimum(a, b), a,
        np.copysign(a, b), np.trunc(x9), np.rint(x9), np.floor(x9), np.ceil(x9), np.trunc(x9), np.rint(x9),
        np.trunc(np.maximum(b * F32(9), 0)), a < b, np.ones(n), to_zero(x + y), x * y + 1, np.exp(x), F32(1) / b,
        np.fmod(a, b), np.cbrt(x), np.sin(x * 1e6),
    ]  # fmt: skip
    exact = {0, 1, 2, 3, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 28, 29}
    for j, expected in enumerate(want):
        if j in exact:
            np.testing.assert_array_equal(out[j], np.asarray(expected, F32), err_msg=str(j))
        else:
            np.testing.assert_allclose(out[j], expected, rtol=2e-6, atol=2e-7, err_msg=str(j))


def test_half_and_bfloat_instructions(cuda):
    n = 64
    a, b = rng(6).normal(size=n).astype(F32), rng(7).normal(size=n).astype(F32)
    out = np.zeros((16, n), F32)
    cuda.launch("halves", 1, n, [a, b, out, n])
    x, y = a.astype(np.float16), b.astype(np.float16)
    p, q = from_bf16(bf16(a)), from_bf16(bf16(b))
    wx, wy, wp, wq = (v.astype(np.float64) for v in (x, y, p, q))
    half = lambda v: v.astype(np.float16).astype(F32)
    brain = lambda v: from_bf16(bf16(v.astype(F32)))
    want = [half(wx + wy), half(wx * wy), half(wx * wy + wx), half(wx / wy), half(wx * wy + wx), half(wy * wy + wx),
            brain(wp + wq), brain(wp * wq), brain(wp * wq + wp), brain(wp * wq + wp), brain(wq * wq + wp),
            np.maximum(x, y), np.minimum(p, q), half(2.0**wx), x < y, -x]  # fmt: skip
    for j, expected in enumerate(want):
        np.testing.assert_allclose(out[j], np.asarray(expected, F32), rtol=1e-3 if j in (3, 13) else 0, err_msg=str(j))


def test_votes(cuda):
    n = 64
    x = rng(8).integers(-100, 100, n, np.int32)
    out = np.zeros((10, n), np.uint32)
    cuda.launch("votes", 1, n, [x, out, n])
    for w in range(2):
        v = x[32 * w : 32 * w + 32]
        got = out[:, 32 * w : 32 * w + 32]
        bits = lambda c: sum(1 << i for i in range(32) if c[i])
        assert (got[0] == bits(v > 0)).all()
        assert (got[1] == (int((v > 90).any()) | 2)).all()
        assert got[2].tolist() == [bits((v & 3) == (k & 3)) for k in v]
        assert (got[3].view(np.int32) == v.sum()).all() and (got[4].view(np.int32) == v.max()).all()
        assert (got[5].view(np.int32) == v[v & 31]).all()
        assert got[6].view(np.int32).tolist() == [v[i - 3] if i % 8 >= 3 else v[i] for i in range(32)]
        assert got[7].tolist() == [bits(v & 1) if k & 1 else 0 for k in v]
    assert (out[8] == (x > 0).sum()).all()
    assert (out[9] == (int((x > 98).any()) | int((x > -101).all()) << 1)).all()


def test_calls_tables_local_and_constant_memory(cuda):
    n = 100
    x, out = rng(9).random(128, F32), rng(10).random(128, F32)
    before = out.copy()
    shift = np.array([1, -2, 3, -4, 5], np.int32)
    cuda.symbol("calls")[:] = 0
    stats = cuda.launch("calls_and_tables", 2, 64, [x, out, F32(0.5).tobytes() + shift.tobytes(), n])
    weight = np.arange(1, 9, dtype=np.float64)
    for i in range(n):
        blend = lambda v, k: v * weight[k & 7] + k
        v = x[i] * ((i * 7) & 15) + blend(float(x[i]), i) + 0.5 * shift[i % 5]
        v = [v + 1, v * 2, v - before[i], blend(v, 3), -v, abs(v) ** 0.5, 0][i % 7]
        assert math.isclose(out[i], v, rel_tol=1e-5, abs_tol=1e-5), i
    assert (out[n:] == before[n:]).all()
    assert cuda.symbol("calls").view(np.int32)[0] == 2
    assert stats.local_bytes_per_thread >= 64


def test_assert_and_deadlock_are_reported(cuda):
    cuda.launch("asserting", 1, 4, [np.zeros(4, np.int32)])
    with pytest.raises(ptxsim.ExecutionError, match="assert"):
        cuda.launch("asserting", 1, 4, [np.array([0, 1, 9, 2], np.int32)])
    with pytest.raises(ptxsim.ExecutionError, match="deadlock.*bar.sync"):
        cuda.launch("deadlock", 1, 64, [np.zeros(64, np.int32)])


def test_diverged_warp_meets_at_a_collective(cuda):
    out = np.zeros(32, np.int32)
    cuda.launch("diverged_collective", 1, 32, [out], initcheck=True)
    s = np.where(np.arange(32) < 16, 1, 3) * np.arange(32)
    assert (out == s[::-1][np.arange(32) ^ 1]).all()


def test_sampled_ctas_and_bad_launches(cuda):
    x, out = np.ones(1024, F32), np.zeros(1024, F32)
    stats = cuda.launch("copy_unchecked", 8, 128, [x, out], ctas=[1, (3,)])
    assert np.flatnonzero(out.reshape(8, 128).any(axis=1)).tolist() == [1, 3]
    assert (stats.ctas_run, stats.ctas_total) == (2, 8)
    full = cuda.launch("copy_unchecked", 8, 128, [x, out])
    for name, bound in full.roofline(2000, 300, 108, 1.4).items():
        if name != "bound_by":
            assert math.isclose(bound, stats.roofline(2000, 300, 108, 1.4)[name])
    assert "global reads" in full.summary() and full.hottest(1)[0][2] == 32
    with pytest.raises(ptxsim.LaunchError, match="takes 2 arguments"):
        cuda.launch("copy_unchecked", 8, 128, [x])
    with pytest.raises(ptxsim.LaunchError, match="no kernel"):
        cuda.launch("nothing", 8, 128, [x])


def test_unsupported_instruction_is_quoted():
    text = """.version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{\n
    wgmma.fence.sync.aligned;\n ret;\n}\n"""
    with pytest.raises(NotImplementedError, match="PTX line 7.*wgmma.fence.sync.aligned"):
        ptxsim.load(text).launch("k", 1, 32, [])


def test_named_barrier_and_early_exit(cuda):
    x, out = np.arange(64, dtype=np.int32) + 5, np.zeros(65, np.int32)
    stats = cuda.launch("named_barrier", 1, 160, [x, out], racecheck=True, initcheck=True)
    assert (out[:64] == x[::-1]).all() and out[64] == 6 and stats.barriers == 2


def test_generic_pointers(cuda):
    x, out = rng(11).random(32, F32), np.zeros(96, F32)
    before, lanes = x.copy(), np.arange(32)
    cuda.launch("generic_pointers", 1, 32, [x, out], racecheck=True)
    value = np.choose(lanes % 3, [before, -lanes, 100 * lanes + (lanes * 5) % 32]).astype(F32)
    assert (out[:32] == value).all()
    assert (out[32:64] == np.where(lanes % 3 == 2, 0, value)).all()
    assert (x == before + np.where(lanes % 3 == 0, F32(0.25), F32(0))).all()
    assert (out[64:] == -lanes + np.where(lanes % 3 == 1, 0.25, 0)).all()


@pytest.mark.parametrize("have", [128, 127, 61, 2, 0])
def test_cp_async_zero_fill(cuda, have):
    x, out = rng(12).random(have, F32), np.ones(128, F32)
    cuda.launch("zero_fill", 1, 32, [x, out, have], initcheck=True)  # x ends at `have`: no byte beyond is read
    assert (out[:have] == x).all() and not out[have:].any()


def test_matrix_moves(cuda):
    x, out = rng(13).integers(0, 2**16, (4, 8, 8), np.uint16), np.zeros((4, 8, 8), np.uint16)
    cuda.launch("matrix_moves", 1, 96, [x, out], initcheck=True)
    assert (out == x.transpose(0, 2, 1)).all()


def test_mma_f64(cuda):
    a, b, c = rng(14).random((8, 4)), rng(15).random((4, 8)), np.zeros((8, 8))
    stats = cuda.launch("mma_f64", 1, 32, [a, b, c])
    np.testing.assert_allclose(c, a @ b, rtol=1e-15)
    assert stats.mma_flops == 2 * 8 * 8 * 4


def test_launch_limits(cuda):
    x = np.zeros(32, F32)
    cuda.launch("too_much_shared", 1, 32, [x], 163 * 1024)
    with pytest.raises(ptxsim.LaunchError, match="sm_80 has 163 KiB"):
        cuda.launch("too_much_shared", 1, 32, [x], 164 * 1024)
    with pytest.raises(ptxsim.LaunchError, match="more than 1024 threads"):
        cuda.launch("too_much_shared", 1, (32, 32, 2), [x], 4096)


def test_struct_argument_and_mangled_name(cuda):
    x, y = rng(16).random(300, F32), np.zeros(300, F32)
    name = cuda.find("scaled")
    stats = cuda.launch(name, 3, 128, [ptxsim.Struct("PiPf", x, 300, y, 2.0), 0.25])
    assert name.startswith("_Z") and (y == F32(2) * x + F32(0.25)).all()
    traffic = [(a.unique_read, a.unique_written, a.sectors_read) for a in stats.arguments]
    assert sorted(traffic) == [(0, 1200, 0), (1200, 0, 38)]
    assert stats.unique_bytes == 2400 and stats.unique_sector_bytes == 64 * 38 == stats.moved_bytes
    with pytest.raises(ptxsim.LaunchError, match="by value"):
        cuda.launch(name, 3, 128, [5, 0.25])
    with pytest.raises(ptxsim.LaunchError, match="kernels contain"):
        cuda.find("transpose")


def test_initialised_pointer_table(cuda):
    out = np.zeros(3, np.int32)
    cuda.launch("pointer_table", 1, 3, [out, 1])
    assert out.tolist() == [20, 30, 40]
    with pytest.raises(ptxsim.MemoryFault, match="past the end of variable table_b"):
        cuda.launch("pointer_table", 1, 4, [np.zeros(4, np.int32), 1])
    for wrong in (1.5, 2**40):
        with pytest.raises(ptxsim.LaunchError, match="cannot take"):
            cuda.launch("pointer_table", 1, 3, [out, wrong])
