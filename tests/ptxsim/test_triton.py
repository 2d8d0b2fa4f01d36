"""Triton kernels compiled ahead of time (no GPU) and run by ptxsim against torch."""

import functools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget

from tests.ptxsim import triton_kernels as kernels
from tests.support import ptxsim

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64",
         torch.int32: "i32", torch.int64: "i64", torch.int8: "i8"}  # fmt: skip
CHECKS = {"initcheck": True, "racecheck": True}


@functools.cache
def compile_kernel(name, types, constants, warps, arch, aligned=()):
    fn = getattr(kernels, name)
    constants = dict(constants)
    signature = dict(zip(fn.arg_names, types)) | dict.fromkeys(constants, "constexpr")
    hints = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = triton.compiler.ASTSource(fn, signature=signature, constexprs=constants, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


def run(name, grid, *args, warps=4, arch=80, options=None, **constants):
    kind = {bool: "i1", int: "i32", float: "fp32"}
    types = tuple(f"*{NAMES[a.dtype]}" if torch.is_tensor(a) else kind[type(a)] for a in args)
    aligned = tuple(i for i, a in enumerate(args) if torch.is_tensor(a) or (type(a) is int and a % 16 == 0))
    compiled = compile_kernel(name, types, tuple(constants.items()), warps, arch, aligned)
    return ptxsim.launch_triton(compiled, grid, args, **(CHECKS if options is None else options))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("n", [1, 255, 1000])
def test_masked_vector_add(n):
    x, y, o = torch.randn(n), torch.randn(n), torch.full((n,), 7.0)
    stats = run("vector_add", triton.cdiv(n, 256), x, y, o, n, B=256)
    assert torch.equal(o, x + y)
    assert [(a.unique_read, a.unique_written) for a in stats.arguments] == [(4 * n, 0), (4 * n, 0), (0, 4 * n)]
    assert stats.global_read_bytes == 8 * n and stats.global_write_sectors >= math.ceil(n / 8)


def test_one_request_to_two_allocations():
    x, y, o = torch.randn(32), torch.randn(32), torch.zeros(32)
    stats = run("from_either", 1, x, y, o, 10, warps=1)
    assert torch.equal(o, torch.cat([x[:10], y[10:]]))
    assert [a.requested_read for a in stats.arguments] == [2, 3, 0]


def test_softmax():
    x, o = torch.randn(13, 200), torch.zeros(13, 200)
    run("softmax", 13, x, o, 200, 200, B=256)
    torch.testing.assert_close(o, x.softmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layernorm(dtype):
    x, w, b = torch.randn(7, 333).to(dtype), torch.randn(333), torch.randn(333)
    o = torch.zeros_like(x)
    run("layernorm", 7, x, w, b, o, 333, 1e-5, B=512, warps=2)
    want = torch.nn.functional.layer_norm(x.float(), (333,), w, b).to(dtype)
    torch.testing.assert_close(o, want)


PRODUCTS = [
    (torch.bfloat16, "tf32", 3, 80, 1e-6), (torch.float16, "tf32", 1, 80, 1e-6), (torch.float32, "tf32", 3, 80, 2e-3),
    (torch.float32, "tf32x3", 2, 80, 1e-6), (torch.float32, "ieee", 2, 80, 1e-6), (torch.int8, "ieee", 2, 80, 0),
    (torch.float64, "ieee", 1, 80, 1e-14), (torch.float16, "tf32", 3, 120, 1e-6),
]  # fmt: skip


@pytest.mark.parametrize("dtype, precision, stages, arch, tolerance", PRODUCTS)
def test_matmul(dtype, precision, stages, arch, tolerance):
    m, n, k = 80, 48, 112
    if dtype == torch.int8:
        a, b, c = (
            torch.randint(-99, 99, (m, k)).to(dtype),
            torch.randint(-99, 99, (k, n)).to(dtype),
            torch.zeros(m, n).int(),
        )
    else:
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        c = torch.zeros(m, n, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    stats = run("matmul", (2, 2), a, b, c, m, n, k, BM=64, BN=32, BK=32, STAGES=stages, PRECISION=precision, arch=arch)
    want = a.double() @ b.double()
    assert ((c - want).abs().max() / want.abs().max()).item() <= tolerance
    if precision != "ieee":
        passes = 3 if precision == "tf32x3" else 1
        assert stats.mma_flops == passes * 2 * 128 * 64 * 128
    if stages == 3:
        assert stats.instructions["cp_async"] > 0


ATTENTION = [
    (torch.bfloat16, torch.float16, 16, 80), (torch.float16, torch.float32, 32, 80), (torch.bfloat16, torch.float16, 32, 120),
]  # fmt: skip


@pytest.mark.parametrize("dtype, bias, d, arch", ATTENTION)
def test_attention_with_gathered_bias(dtype, bias, d, arch):
    heads, n = 2, 128
    q, k, v = (torch.randn(heads, n, d).to(dtype) for _ in range(3))
    index, table = torch.randint(0, 77, (n, n), dtype=torch.int32), torch.randn(77).to(bias)
    o = torch.zeros(heads, n, d, dtype=dtype)
    stats = run("attention", (n // 64, heads), q, k, v, index, table, o, n, 0.3, BM=64, BN=64, D=d, arch=arch)
    scores = q.float() @ k.float().transpose(1, 2) * 0.3 + table.float()[index.long()]
    want = torch.softmax(scores * math.log(2), -1) @ v.float()
    torch.testing.assert_close(o.float(), want, rtol=2e-2, atol=4e-3)
    assert stats.mma_flops == 4 * heads * n * n * d


def test_atomic_sum():
    x, o = torch.randn(3000), torch.zeros(1)
    stats = run("atomic_sum", 12, x, o, 3000, B=256)
    torch.testing.assert_close(o[0], x.sum(), rtol=1e-5, atol=1e-4)
    assert stats.atomics == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scatter_add(dtype):
    n = 700
    x, index = torch.randint(-3, 4, (n,)).to(dtype), torch.randint(0, 50, (n,), dtype=torch.int32)
    o = torch.zeros(50, dtype=dtype)
    run("scatter_add", 3, x, index, o, n, B=256)
    assert torch.equal(o.float(), torch.zeros(50).index_add_(0, index.long(), x.float()))


def test_atomic_kinds():
    x, o = torch.randint(1, 2**20, (128,), dtype=torch.int32), torch.zeros(4 + 128, dtype=torch.int32)
    o[1] = 2**30
    o[4:] = torch.where(torch.arange(128) % 2 == 0, x, 0)
    run("atomic_kinds", 1, x, o, B=128)
    assert o[0] == x.max() and o[1] == x.min() and o[3] in x
    assert o[2] == np.bitwise_or.reduce(x.numpy())
    assert torch.equal(o[4:], torch.where(torch.arange(128) % 2 == 0, -x, 0).int())


def philox_uniform(seed, counters):
    """Philox-4x32-10 with Triton's conversion of the first word to [0, 1)."""
    c = [np.asarray(counters, np.uint64), *(np.zeros(len(counters), np.uint64) for _ in range(3))]
    key, low = [seed, 0], np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]),
            p0 & low,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    x = c[0].astype(np.uint32).view(np.int32)
    return np.where(x < 0, -x - 1, x).astype(np.float32) * np.float32(4.6566127342e-10)


def test_philox():
    o = torch.zeros(1000)
    run("uniform", 4, o, 1234, 1000, B=256)
    np.testing.assert_array_equal(o.numpy(), philox_uniform(1234, np.arange(1000)))


def test_int64_addresses():
    x, o = torch.randn(5, 300), torch.zeros(5, 128)
    run("far_rows", 5, x, o, 300, B=128)
    assert torch.equal(o, x[:, :256:2])


def test_scans_sort_argmax_histogram():
    x = torch.randn(256)
    sums, ordered, top, counts = torch.zeros(256), torch.zeros(256), torch.zeros(1).int(), torch.zeros(16).int()
    run("scans", 1, x, sums, ordered, top, counts, B=256, options={"racecheck": True})
    torch.testing.assert_close(sums, x.cumsum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(ordered, x.sort()[0]) and top[0] == x.argmax()
    assert torch.equal(counts, torch.bincount((x.abs() * 4).int() & 15, minlength=16).int())


def test_layout_changes():
    x, o = torch.randn(64, 32), torch.zeros(32, 64)
    run("reshapes", 1, x, o, R=64, C=32)
    torch.testing.assert_close(o, x.T.flip(1) + x.sum(1)[None] * x.max(0)[0][:, None])


def test_mathematics():
    n = 128
    x, o = torch.randn(n), torch.zeros(5, n)
    run("mathematics", 1, x, o, n, B=n)
    whole = (x * 100).int()
    quotient = (whole / 7).trunc()
    want = [torch.sin(x) + torch.cos(x * 50), torch.log2(x.abs() + 1) * x.abs().sqrt() + torch.erf(x),
            x.sigmoid() + x.floor() + x / 3, (quotient + torch.fmod(whole, 5)).float(), None]  # fmt: skip
    for row, expected in zip(o, want):
        if expected is not None:
            torch.testing.assert_close(row, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(o[4], x.bfloat16().float() ** 2 + x.half().float(), rtol=1e-2, atol=1e-2)


def test_out_of_bounds_names_the_source_line():
    x, o = torch.zeros(300), torch.zeros(512)
    with pytest.raises(ptxsim.MemoryFault, match=r"triton_kernels.py:\d+.*past the end of argument 0"):
        run("out_of_bounds", 2, x, o, B=256)


def test_arguments_by_name_and_sampling():
    compiled = compile_kernel("vector_add", ("*fp32", "*fp32", "*fp32", "i32"), (("B", 256),), 4, 80)
    x, o = torch.randn(1024), torch.zeros(1024)
    stats = ptxsim.launch_triton(compiled, 4, {"n": 1024, "x": x, "y": x, "o": o}, ctas=[2])
    assert torch.equal(o[512:768], 2 * x[512:768]) and o[:512].abs().sum() == 0
    assert stats.ctas_run == 1 and stats.ctas_total == 4


def test_batching_does_not_change_results_or_counts():
    x = torch.randn(9, 200)
    results = []
    for batch in (1, 4, 16):
        o = torch.zeros(9, 200)
        stats = run("softmax", 9, x, o, 200, 200, B=256, options={"batch": batch})
        counts = (stats.instructions, stats.global_read_sectors, stats.shared_wavefronts, stats.barriers)
        results.append((o, counts))
    for o, counts in results[1:]:
        assert torch.equal(o, results[0][0]) and counts == results[0][1]
