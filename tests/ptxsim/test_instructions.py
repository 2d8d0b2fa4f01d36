"""Single PTX instructions against Python integers and numpy, on random and edge operands."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.support import ptxsim

M32 = 2**32 - 1
EDGES = [0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 255, 256, 2**31 - 1, 2**31, 2**31 + 1, M32 - 1, M32]
HEADER = ".version 8.6\n.target sm_80\n.address_size 64\n"


def operands(count, seed=0, width=32):
    """`count` arrays of 512 unsigned operands, edge values mixed with random ones."""
    r = np.random.default_rng(seed)
    dtype = np.uint32 if width == 32 else np.uint64
    out = r.integers(0, 2**width - 1, (count, 512), dtype, endpoint=True)
    edges = r.choice(np.array(EDGES, dtype), (count, 512))
    return list(np.where(r.random((count, 512)) < 0.5, edges, out))


def execute(instruction, *inputs, width=32, out_width=32, declare=""):
    """Run `instruction` (on %a0, %a1, ... giving %d) once per element of the inputs."""
    n = len(inputs[0])
    loads = "".join(
        f"ld.param.u64 %rd0, [p{i}];\n add.u64 %rd0, %rd0, %rd{9 if width == 64 else 8};\n ld.global.b{width} %a{i}, [%rd0];\n"
        for i in range(len(inputs))
    )
    text = f"""{HEADER}.visible .entry k({", ".join(f".param .u64 p{i}" for i in range(len(inputs) + 1))})
{{
 .reg .b{width} %a<8>; .reg .b{out_width} %d; .reg .b32 %r<8>; .reg .b64 %rd<16>; .reg .pred %p<4>; {declare}
 mov.u32 %r0, %tid.x;
 mul.wide.u32 %rd8, %r0, 4;
 mul.wide.u32 %rd9, %r0, 8;
 mov.b{out_width} %d, 0;
 {loads}
 {instruction}
 ld.param.u64 %rd0, [p{len(inputs)}];
 add.u64 %rd0, %rd0, %rd{9 if out_width == 64 else 8};
 st.global.b{out_width} [%rd0], %d;
 ret;
}}"""
    out = np.zeros(n, np.uint32 if out_width == 32 else np.uint64)
    ptxsim.load(text).launch("k", 1, n, [*inputs, out])
    return out


def signed(value, bits=32):
    value &= 2**bits - 1
    return value - 2**bits if value >> (bits - 1) else value


def check(instruction, reference, count, **options):
    inputs = operands(count, width=options.get("width", 32))
    got = execute(instruction, *inputs, **options)
    bits = options.get("out_width", 32)
    for row in zip(*(x.tolist() for x in inputs), got.tolist()):
        assert row[-1] == reference(*row[:-1]) & (2**bits - 1), (instruction, row)


def test_lop3_every_table():
    a, b, c = operands(3)
    for table in range(256):
        got = execute(f"lop3.b32 %d, %a0, %a1, %a2, {table:#x};", a, b, c)
        want = np.zeros_like(a)
        for i in range(8):
            if table >> i & 1:
                want |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        assert (got == want).all(), table


def bfe(a, position, length, is_signed, width=32):
    """The PTX ISA's definition, bit by bit."""
    position, length = position & 255, length & 255
    top = min(position + length - 1, width - 1)
    sign = a >> top & 1 if is_signed and length else 0
    bits = [a >> (position + i) & 1 if i < length and position + i < width else sign for i in range(width)]
    return sum(bit << i for i, bit in enumerate(bits))


def bfi(a, b, position, length):
    position, length = position & 255, length & 255
    for i in range(length):
        if position + i < 32:
            b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


def prmt(a, b, c):
    pool = [(b << 32 | a) >> (8 * i) & 255 for i in range(8)]
    out = 0
    for i in range(4):
        selector = c >> (4 * i) & 15
        byte = pool[selector & 7]
        out |= ((0xFF if byte >> 7 else 0) if selector & 8 else byte) << (8 * i)
    return out


def shift_right(a, n, bits):
    return a >> min(n, bits)


INTEGER = {
    "bfe.u32 %d, %a0, %a1, %a2;": (lambda a, p, n: bfe(a, p, n, False), 3),
    "bfe.s32 %d, %a0, %a1, %a2;": (lambda a, p, n: bfe(a, p, n, True), 3),
    "bfi.b32 %d, %a0, %a1, %a2, %a3;": (bfi, 4),
    "prmt.b32 %d, %a0, %a1, %a2;": (prmt, 3),
    "shf.l.clamp.b32 %d, %a0, %a1, %a2;": (lambda a, b, n: (b << 32 | a) << min(n, 32) >> 32, 3),
    "shf.l.wrap.b32 %d, %a0, %a1, %a2;": (lambda a, b, n: (b << 32 | a) << (n & 31) >> 32, 3),
    "shf.r.clamp.b32 %d, %a0, %a1, %a2;": (lambda a, b, n: (b << 32 | a) >> min(n, 32), 3),
    "shf.r.wrap.b32 %d, %a0, %a1, %a2;": (lambda a, b, n: (b << 32 | a) >> (n & 31), 3),
    "shl.b32 %d, %a0, %a1;": (lambda a, n: a << min(n, 32), 2),
    "shr.u32 %d, %a0, %a1;": (lambda a, n: shift_right(a, n, 32), 2),
    "shr.s32 %d, %a0, %a1;": (lambda a, n: shift_right(signed(a), n, 32), 2),
    "mul.hi.s32 %d, %a0, %a1;": (lambda a, b: signed(a) * signed(b) >> 32, 2),
    "mul.hi.u32 %d, %a0, %a1;": (lambda a, b: a * b >> 32, 2),
    "mad.lo.s32 %d, %a0, %a1, %a2;": (lambda a, b, c: a * b + c, 3),
    "mad.hi.s32 %d, %a0, %a1, %a2;": (lambda a, b, c: (signed(a) * signed(b) >> 32) + c, 3),
    "add.sat.s32 %d, %a0, %a1;": (lambda a, b: max(-(2**31), min(2**31 - 1, signed(a) + signed(b))), 2),
    "sub.sat.s32 %d, %a0, %a1;": (lambda a, b: max(-(2**31), min(2**31 - 1, signed(a) - signed(b))), 2),
    "min.s32 %d, %a0, %a1;": (lambda a, b: min(signed(a), signed(b)), 2),
    "max.u32 %d, %a0, %a1;": (max, 2),
    "sad.s32 %d, %a0, %a1, %a2;": (lambda a, b, c: abs(signed(a) - signed(b)) + c, 3),
    "neg.s32 %d, %a0;": (lambda a: -a, 1),
    "abs.s32 %d, %a0;": (lambda a: abs(signed(a)), 1),
    "not.b32 %d, %a0;": (lambda a: ~a, 1),
    "cnot.b32 %d, %a0;": (lambda a: int(a == 0), 1),
    "popc.b32 %d, %a0;": (lambda a: a.bit_count(), 1),
    "clz.b32 %d, %a0;": (lambda a: 32 - a.bit_length(), 1),
    "brev.b32 %d, %a0;": (lambda a: int(f"{a:032b}"[::-1], 2), 1),
    "bfind.u32 %d, %a0;": (lambda a: a.bit_length() - 1, 1),
    "bfind.s32 %d, %a0;": (lambda a: (a if signed(a) >= 0 else ~a & M32).bit_length() - 1, 1),
    "bfind.shiftamt.u32 %d, %a0;": (lambda a: 32 - a.bit_length() if a else -1, 1),
    "slct.b32.s32 %d, %a0, %a1, %a2;": (lambda a, b, c: a if signed(c) >= 0 else b, 3),
    "set.lt.u32.s32 %d, %a0, %a1;": (lambda a, b: -int(signed(a) < signed(b)), 2),
    "cvt.s32.s8 %d, %a0;": (lambda a: signed(a, 8), 1),
    "cvt.u32.u16 %d, %a0;": (lambda a: a & 0xFFFF, 1),
    "cvt.sat.u32.s32 %d, %a0;": (lambda a: max(signed(a), 0), 1),
    "setp.lt.and.s32 %p0|%p1, %a0, %a1, 1; selp.u32 %d, 1, 0, %p0; @%p1 add.u32 %d, %d, 2;": (
        lambda a, b: 1 if signed(a) < signed(b) else 2, 2,
    ),
    "setp.hi.u32 %p0, %a0, %a1; @!%p0 mov.b32 %d, 5;": (lambda a, b: 0 if a > b else 5, 2),
    "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %a0; mov.b32 %d, {hi, lo}; }": (lambda a: a >> 16 | a << 16, 1),
    "add.cc.u32 %r1, %a0, %a1; addc.u32 %d, %a2, 0;": (lambda a, b, c: c + (a + b >> 32), 3),
    "sub.cc.u32 %r1, %a0, %a1; subc.u32 %d, %a2, 0;": (lambda a, b, c: c - int(a < b), 3),
}  # fmt: skip


@pytest.mark.parametrize("instruction", INTEGER)
def test_integer(instruction):
    check(instruction, *INTEGER[instruction])


WIDE = {
    "mul.hi.u64 %d, %a0, %a1;": (lambda a, b: a * b >> 64, 2),
    "mul.hi.s64 %d, %a0, %a1;": (lambda a, b: signed(a, 64) * signed(b, 64) >> 64, 2),
    "bfe.u64 %d, %a0, 5, 60;": (lambda a: bfe(a, 5, 60, False, 64), 1),
    "bfe.s64 %d, %a0, 40, 9;": (lambda a: bfe(a, 40, 9, True, 64), 1),
    "brev.b64 %d, %a0;": (lambda a: int(f"{a:064b}"[::-1], 2), 1),
}


@pytest.mark.parametrize("instruction", WIDE)
def test_wide_integer(instruction):
    check(instruction, *WIDE[instruction], width=64, out_width=64)


def floats(count, seed=1):
    r = np.random.default_rng(seed)
    special = np.array(
        [
            0,
            -0.0,
            1,
            -1,
            0.5,
            1.5,
            2.5,
            -2.5,
            np.inf,
            -np.inf,
            np.nan,
            1e-40,
            3e38,
            65504,
            65520,
            1e-7,
            127.5,
            -128.5,
            4e9,
            -4e9,
        ],
        np.float32,
    )
    plain = (r.normal(size=(count, 512)) * 10.0 ** r.integers(-8, 8, (count, 512))).astype(np.float32)
    return list(np.where(r.random((count, 512)) < 0.3, r.choice(special, (count, 512)), plain).astype(np.float32))


def nearest(value: Fraction) -> np.float32:
    """The f32 nearest to an exact rational, ties to even."""
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    distance = lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.uint32)) & 1)
    return min((f for f in around if math.isfinite(f)), key=distance)


def test_fma_rounds_once_and_directed_roundings():
    a, b, c = (x[np.isfinite(x) & (abs(x) < 1e15)][:300] for x in floats(3))
    a, b, c = (x[:256] for x in (a, b, c))
    fused = execute("fma.rn.f32 %d, %a0, %a1, %a2;", *(x.view(np.uint32) for x in (a, b, c))).view(np.float32)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c)]
    for got, want in zip(fused, exact):
        assert got == nearest(want) or abs(want) < Fraction(1, 2**126)
    sums = [Fraction(float(x)) + Fraction(float(y)) for x, y in zip(a, b)]
    for mode, ok in {"rm": lambda g, w: g <= w, "rp": lambda g, w: g >= w, "rz": lambda g, w: abs(g) <= abs(w)}.items():
        got = execute(f"add.{mode}.f32 %d, %a0, %a1;", a.view(np.uint32), b.view(np.uint32)).view(np.float32)
        for g, w in zip(got, sums):
            assert ok(Fraction(float(g)), w) and abs(Fraction(float(g)) - w) <= abs(w) / 2**22


CONVERSIONS = {
    "cvt.rni.s32.f32": (np.rint, -(2**31), 2**31 - 1), "cvt.rzi.s32.f32": (np.trunc, -(2**31), 2**31 - 1),
    "cvt.rmi.s32.f32": (np.floor, -(2**31), 2**31 - 1), "cvt.rpi.u32.f32": (np.ceil, 0, M32),
    "cvt.rzi.u8.f32": (np.trunc, 0, 255), "cvt.rni.s8.f32": (np.rint, -128, 127),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSIONS)
def test_float_to_integer_saturates(name):
    (x,) = floats(1)
    rounding, low, high = CONVERSIONS[name]
    got = execute(f"{name} %d, %a0;", x.view(np.uint32)).view(np.int32)
    for value, result in zip(x.astype(np.float64), got.tolist()):
        want = 0 if math.isnan(value) else int(min(max(rounding(value), low), high))
        assert result == signed(want), (value, result)


def test_narrow_float_conversions():
    torch = pytest.importorskip("torch")
    a, b = floats(2)
    bits = [x.view(np.uint32) for x in (a, b)]
    for name, dtype in (("f16x2", torch.float16), ("bf16x2", torch.bfloat16)):
        got = execute(f"cvt.rn.{name}.f32 %d, %a0, %a1;", *bits).view(np.uint16).reshape(-1, 2)
        for half, source in ((got[:, 1], a), (got[:, 0], b)):
            want = torch.from_numpy(source.copy()).to(dtype)
            mine = torch.from_numpy(half.copy().view(np.int16)).view(dtype)
            assert torch.equal(mine.nan_to_num(7), want.nan_to_num(7)) and torch.equal(mine.isnan(), want.isnan())


def test_tf32_rounding():
    (x,) = floats(1)
    x = x[np.isfinite(x) & (abs(x) < 1e38)]
    got = execute("cvt.rna.tf32.f32 %d, %a0;", x.view(np.uint32))
    assert ((got & 0x1FFF) == 0).all()
    normal = abs(x) > 1e-37
    error = abs(got.view(np.float32).astype(np.float64) - x)[normal]
    assert (error <= abs(x[normal].astype(np.float64)) / 2**11).all()


COMPARISONS = {"eq": (False, lambda x, y: x == y), "lt": (False, lambda x, y: x < y), "ne": (False, lambda x, y: x != y),
               "equ": (True, lambda x, y: x == y), "neu": (True, lambda x, y: x != y), "geu": (True, lambda x, y: x >= y),
               "num": (False, lambda x, y: True), "nan": (True, lambda x, y: False)}  # fmt: skip


@pytest.mark.parametrize("name", COMPARISONS)
def test_float_comparisons(name):
    a, b = floats(2)
    b[::3] = a[::3]
    unordered, compare = COMPARISONS[name]
    got = execute(f"setp.{name}.f32 %p0, %a0, %a1; selp.u32 %d, 1, 0, %p0;", a.view(np.uint32), b.view(np.uint32))
    for x, y, g in zip(a, b, got):
        assert bool(g) == (unordered if np.isnan(x) or np.isnan(y) else compare(x, y)), (name, x, y)


def test_min_max_and_nan():
    a, b = (x.view(np.uint32) for x in floats(2))
    x, y = a.view(np.float32), b.view(np.float32)
    np.testing.assert_array_equal(execute("min.f32 %d, %a0, %a1;", a, b).view(np.float32), np.fmin(x, y))
    np.testing.assert_array_equal(execute("max.NaN.f32 %d, %a0, %a1;", a, b).view(np.float32), np.maximum(x, y))
    flushed = execute("add.ftz.f32 %d, %a0, 0f00000000;", a).view(np.float32)
    np.testing.assert_array_equal(flushed, np.where(abs(x) < 2.0**-126, 0, x))


def test_straight_line_arrival_at_a_waiting_collective():
    """Lanes 16..31 come from a higher PC and run into the barrier at which lanes 0..15 wait."""
    body = """
 setp.lt.u32 %p0, %r0, 16;
 @!%p0 bra FAR;
BACK:
 add.u32 %r1, %a0, 1;
 bar.warp.sync -1;
 shfl.sync.bfly.b32 %d, %r1, 16, 31, -1;
 bra.uni DONE;
FAR:
 add.u32 %a0, %a0, 10;
 bra.uni BACK;
DONE:"""
    x = np.arange(64, dtype=np.uint32)
    got = execute(body.replace("%r0, 16", "%r2, 16").replace("setp", "mov.u32 %r2, %laneid; setp", 1), x)
    want = (x + 1 + np.where(x % 32 < 16, 0, 10)).reshape(2, 2, 16)[:, ::-1].reshape(-1)
    assert (got == want).all()


def test_indexed_branch():
    body = """
 ts: .branchtargets A, B, C;
 rem.u32 %r1, %a0, 3;
 brx.idx %r1, ts;
A: add.u32 %d, %d, 1;
B: add.u32 %d, %d, 10; bra DONE;
C: add.u32 %d, %d, 100;
DONE:"""
    x = np.arange(96, dtype=np.uint32)
    assert (execute(body, x) == np.choose(x % 3, [11, 10, 100])).all()
