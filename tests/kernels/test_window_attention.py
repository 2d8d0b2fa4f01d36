import os
import subprocess
import sys

import pytest
import torch

from masked_swin.kernels import CPU_LIBRARY, VisibleTokens, Windows, relative_position_bias, window_attention
from tests.support.attention_cases import USES, make_case, mean_error, relative_error
from tests.support.examples import names_here
from tests.support.native import needs_native

BACKENDS = names_here("window_attention")
every_backend = pytest.mark.parametrize("backend", BACKENDS)

# Shapes that a kernel gets wrong one at a time: published, SwinIR-M, odd head_dim, rectangle, tiny, big window, no
# token, all.
SHAPES = {
    "published": {},
    "unshifted": {"shift": (0, 0)},
    "head_dim 30, 240 channels": {"heads": 8, "head_dim": 30, "grid": (1, 2)},
    "rectangle": {"window": (3, 5), "shift": (1, 2), "heads": 2, "head_dim": 7, "keep": 0.5},
    "rectangle, one axis shifted": {"window": (4, 2), "shift": (0, 1), "heads": 3, "head_dim": 1, "keep": 0.5},
    "tiny": {"window": (1, 2), "shift": (0, 0), "heads": 1, "head_dim": 3, "keep": 0.5},
    "one window": {"grid": (1, 1), "heads": 2, "batch": 1},
    "window 16": {"window": (16, 16), "shift": (8, 8), "heads": 2, "head_dim": 30, "grid": (2, 1), "batch": 1},
    "head_dim 128": {"window": (4, 4), "shift": (2, 2), "heads": 2, "head_dim": 128},
    "no token visible": {"keep": 0.0, "heads": 2},
    "all visible": {"keep": 1.0, "heads": 2},
    "about one visible": {"keep": 0.02, "heads": 2},
    "large scores": {"magnitude": 6.0, "heads": 2},
}


@every_backend
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_every_gradient_against_float64(use, shape, backend):
    """Errors against float64 are at most twice those of torch's own fp32 ops, plus one rounding; mean of seeds."""
    errors: dict[str, list[tuple[float, float]]] = {}
    for seed in range(3):
        case = make_case(use, seed=seed, **SHAPES[shape])
        truth, true_grads = case.run(torch.float64, "reference")
        ours, our_grads = case.run(torch.float32, backend)
        eager, eager_grads = case.run(torch.float32, "reference")
        for name, exact, value, yardstick in [
            ("out", truth, ours, eager),
            *((n, true_grads[n], our_grads[n], eager_grads[n]) for n in true_grads),
        ]:
            assert value.isfinite().all(), name
            scale = exact.norm() > 1e-9 * (1 + truth.norm())  # gradients that vanish in theory have no relative error
            if exact.numel() and scale:
                errors.setdefault(name, []).append((relative_error(value, exact), relative_error(yardstick, exact)))
    for name, pairs in errors.items():
        ours, eager = (mean_error([pair[i] for pair in pairs]) for i in (0, 1))
        assert ours <= 2 * eager + 1.2e-7, f"{name}: {ours:.1e}, torch {eager:.1e}"


@pytest.mark.parametrize("use", USES)
def test_specification_passes_gradcheck(use):
    case = make_case(use, window=(2, 3), shift=(1, 1), grid=(2, 1), heads=2, head_dim=3, keep=0.4, batch=1)
    names = list(case.tensors)

    def call(*tensors):
        given = dict(zip(names, tensors, strict=True))
        masked = tuple(given[n] for n in ("masked_q", "masked_k", "masked_v") if n in given) or None
        return window_attention(
            *(given[n] for n in ("q", "k", "v", "bias")), shared_qkv=masked, backend="reference", **case.fixed
        )

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in case.tensors.values()])


def test_masked_tokens_are_zero_vectors_before_qkv():
    """The definition: attention over full windows of qkv(x * keep)."""
    windows = Windows(8, 12, (4, 4), (2, 2))
    keep = torch.rand(2, windows.tokens) < 0.3
    plan = VisibleTokens.from_keep(keep, windows)
    heads, head_dim = 2, 5
    x = torch.randn(2 * windows.count, windows.size, 10, dtype=torch.float64)
    qkv = torch.nn.Linear(10, 30, dtype=torch.float64)
    bias = torch.randn(heads, windows.size, windows.size, dtype=torch.float64)
    q, k, v = qkv(x * plan.keep[..., None]).view(*x.shape[:2], 3, heads, head_dim).unbind(2)
    mask = torch.where(plan.regions[:, :, None] == plan.regions[:, None, :], 0.0, -100.0).double()
    expected = window_attention(q, k, v, bias, scale=0.4, window_mask=mask, backend="reference")
    rows = qkv(x[plan.keep]).view(-1, 3, heads, head_dim)
    out = window_attention(
        *rows.unbind(1),
        bias,
        scale=0.4,
        visible=plan,
        shared_qkv=tuple(qkv.bias.view(3, heads, head_dim)),
        backend="reference",
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


# Windows of other nets: blocks of queries that are and are not full, and more keys than queries.
@needs_native
@pytest.mark.parametrize(
    ("queries", "keys", "head_dim"),
    [(49, 49, 32), (64, 64, 64), (144, 144, 30), (256, 256, 30), (64, 144, 30), (49, 256, 16), (33, 65, 10)],
)
def test_dense_sizes_against_float64(queries, keys, head_dim):
    windows, heads = 3, 2
    q = torch.randn(windows, queries, heads, head_dim)
    k, v = torch.randn(2, windows, keys, heads, head_dim)
    bias, grad = torch.randn(heads, queries, keys), torch.randn(windows, queries, heads, head_dim)

    def run(backend, dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (q, k, v, bias)]
        out = window_attention(*inputs, scale=0.3, backend=backend)
        return out, *torch.autograd.grad(out, inputs, grad.to(dtype))

    names = ("out", "q", "k", "v", "bias")
    results = (run("cpu", torch.float32), run("reference", torch.float32), run("reference", torch.float64))
    for name, ours, eager, exact in zip(names, *results, strict=True):
        assert relative_error(ours, exact) <= 2 * relative_error(eager, exact) + 1.2e-7, name


@every_backend
@pytest.mark.parametrize("queries_keys", [(9, 16), (64, 1), (5, 37)])
def test_other_numbers_of_keys(queries_keys, backend):
    queries, keys = queries_keys
    q = torch.randn(6, queries, 3, 7)
    k, v = torch.randn(2, 6, keys, 3, 7)
    bias, mask = torch.randn(3, queries, keys), torch.randn(2, queries, keys)
    arguments = {"scale": 0.6, "window_mask": mask}
    ours = window_attention(q, k, v, bias, backend=backend, **arguments)
    truth = window_attention(
        *(t.double() for t in (q, k, v, bias)), scale=0.6, window_mask=mask.double(), backend="reference"
    )
    assert relative_error(ours, truth) < 3e-7


@every_backend
def test_strided_and_sliced_inputs(backend):
    qkv = torch.randn(4, 16, 3, 2, 6, requires_grad=True)
    bias = torch.randn(2, 16, 16)
    packed = window_attention(*qkv.unbind(2), bias, scale=0.5, backend=backend)
    separate = window_attention(*(t.contiguous() for t in qkv.unbind(2)), bias, scale=0.5, backend=backend)
    assert torch.equal(packed, separate)
    swapped = qkv.detach().transpose(-1, -2).contiguous().transpose(-1, -2)  # head_dim not adjacent
    assert torch.equal(window_attention(*swapped.unbind(2), bias, scale=0.5, backend=backend), packed)
    spread = torch.randn(packed.shape[0], 16, 2, 12)[..., ::2]
    grad = torch.autograd.grad(packed, qkv, spread, retain_graph=True)[0]
    assert torch.equal(grad, torch.autograd.grad(packed, qkv, spread.contiguous())[0])


@every_backend
@pytest.mark.parametrize("use", USES)
def test_same_bits_for_any_number_of_threads(use, backend):
    case = make_case(use, grid=(4, 5), heads=3)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, grads = case.run(torch.float32, backend)
            results.append([out, *grads.values()])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_backend
def test_one_token_with_a_stride_of_its_own(backend):
    q = torch.randn(1, 50, 3, 64).transpose(0, 1)  # (50, 1, 3, 64), whose token dimension has stride 50 * 192
    k, v = torch.randn(2, 50, 4, 3, 64)
    bias = torch.randn(3, 1, 4)
    out = window_attention(q, k, v, bias, scale=0.2, backend=backend)
    torch.testing.assert_close(out, window_attention(q, k, v, bias, scale=0.2, backend="reference"))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_mask_of_minus_infinity_excludes_keys_and_may_empty_a_row(backend):
    q, k, v = torch.randn(3, 2, 4, 2, 3, requires_grad=True)
    mask = torch.zeros(2, 4, 4)
    mask[0, 1] = float("-inf")
    mask[1, 2] = torch.finfo(torch.float32).min
    mask[:, :, 3] = float("-inf")
    out = window_attention(q, k, v, torch.randn(2, 4, 4), scale=0.5, window_mask=mask, backend=backend)
    assert out[0, 1].count_nonzero() == out[1, 2].count_nonzero() == 0
    out.sum().backward()
    assert out[0, 0].count_nonzero() == out[0, 0].numel()


@every_backend
def test_a_mask_of_minus_infinity_over_visible_tokens(backend):
    case = make_case("visible")
    mask = torch.zeros(3, 64, 64).masked_fill(torch.rand(3, 64, 64) < 0.3, float("-inf"))
    mask[:, 40:50] = float("-inf")  # these queries have no key
    case.fixed["window_mask"] = mask
    (out, grads), (truth, wanted) = case.run(torch.float32, backend), case.run(torch.float64, "reference")
    for value, exact in zip((out, *grads.values()), (truth, *wanted.values()), strict=True):
        assert relative_error(value, exact) < 1e-6
    assert not out[truth == 0].any()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_nan_is_not_swallowed(backend):
    q, k, v = torch.randn(3, 2, 16, 2, 4)
    bias = torch.zeros(2, 16, 16)
    for tensor in (q, k, v, bias):
        kept = tensor.flatten()[5].item()
        tensor.view(-1)[5] = float("nan")
        assert window_attention(q, k, v, bias, scale=0.5, backend=backend).isnan().any()
        tensor.view(-1)[5] = kept


def test_a_query_without_any_key_gets_zero():
    windows = Windows(4, 4, (4, 4), (2, 2))  # one window of four regions
    keep = torch.zeros(1, 16, dtype=torch.bool)
    keep[0, 0] = True  # visible to its own region of 4 places only
    plan = VisibleTokens.from_keep(keep, windows)
    k = torch.randn(1, 2, 3, requires_grad=True)
    v = torch.randn(1, 2, 3, requires_grad=True)
    for backend in ["reference", *BACKENDS]:
        q = torch.randn(1, 16, 2, 3, requires_grad=True)
        out = window_attention(q, k, v, torch.randn(2, 16, 16), scale=1.0, visible=plan, backend=backend)
        assert (out != 0).any(-1).all(-1).sum() == 4
        out.sum().backward()
        assert q.grad.isfinite().all()
        assert q.grad.count_nonzero() == 0  # the softmax over one key is constant


@every_backend
def test_unused_rows_are_ignored_and_get_no_gradient(monkeypatch, backend):
    windows = Windows(8, 8, (4, 4), (2, 2))
    keep = torch.rand(2, 64) < 0.4
    exact = VisibleTokens.from_keep(keep, windows)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        roomy = VisibleTokens.from_keep(keep, windows)
    rows, used = len(roomy.token_index), len(exact.token_index)
    qkv = torch.randn(3, rows, 2, 3, requires_grad=True)
    bias = torch.randn(2, 16, 16)
    masked = tuple(torch.randn(3, 2, 3))
    for m in (None, masked):
        out = window_attention(*qkv, bias, scale=0.5, visible=roomy, shared_qkv=m, backend=backend)
        short = window_attention(*qkv[:, :used], bias, scale=0.5, visible=exact, shared_qkv=m, backend=backend)
        assert torch.equal(out if m else out[:used], short)
        (grad,) = torch.autograd.grad(out.square().sum(), qkv)
        assert grad[:, used:].count_nonzero() == 0
        assert grad.isfinite().all()


def test_bias_table_is_expanded_for_the_plans_window():
    windows = Windows(6, 8, (3, 4), (1, 2))
    plan = VisibleTokens.from_keep(torch.rand(1, 48) < 0.5, windows)
    q, k, v = torch.randn(3, len(plan.token_index), 2, 3)
    table = torch.randn(5 * 7, 2)
    dense = relative_position_bias(table, (3, 4))
    a = window_attention(q, k, v, table, scale=0.5, visible=plan)
    assert torch.equal(a, window_attention(q, k, v, dense, scale=0.5, visible=plan))


@pytest.mark.parametrize("mode", ["zero", "drop", "visible"])
def test_per_head_masks_equal_one_head_at_a_time(mode):
    windows = Windows(4, 8, (4, 4), (2, 2))
    heads, head_dim = 3, 4
    keep = torch.rand(2, heads, 32) < 0.4
    plan = VisibleTokens.from_keep(keep, windows)
    full = torch.randn(3, 2 * windows.count, 16, heads, head_dim, dtype=torch.float64)
    bias = torch.randn(heads, 16, 16, dtype=torch.float64)
    masked = tuple(torch.randn(3, heads, head_dim, dtype=torch.float64)) if mode == "zero" else None
    flat_keep = plan.keep.view(-1, heads, 16)
    rows = [t.transpose(1, 2)[flat_keep] for t in full]
    q = full[0] if mode == "drop" else rows[0]
    out = window_attention(q, *rows[1:], bias, scale=0.5, visible=plan, shared_qkv=masked, backend="reference")
    for head in range(heads):
        single = VisibleTokens.from_keep(keep[:, head], windows)
        part = [t[:, :, head : head + 1][single.keep] for t in full]
        one_q = full[0][:, :, head : head + 1] if mode == "drop" else part[0]
        one_masked = None if masked is None else tuple(m[head : head + 1] for m in masked)
        expected = window_attention(
            one_q,
            *part[1:],
            bias[head : head + 1],
            scale=0.5,
            visible=single,
            shared_qkv=one_masked,
            backend="reference",
        )
        if mode == "visible":
            segment = torch.arange(len(flat_keep) * heads).view(-1, heads)[:, head]
            lists = [out[plan.offsets[s] : plan.offsets[s + 1]] for s in segment.tolist()]
            torch.testing.assert_close(torch.cat(lists), expected[:, 0])
        else:
            torch.testing.assert_close(out[:, :, head], expected[:, :, 0])


def arguments(**changes):
    base = {
        "q": torch.zeros(2, 16, 2, 3),
        "k": torch.zeros(2, 16, 2, 3),
        "v": torch.zeros(2, 16, 2, 3),
        "bias": torch.zeros(2, 16, 16),
        "scale": 0.5,
    }
    return base | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.zeros(2, 15, 2, 3)}, r"k must be \(2, 16, 2, 3\)"),
        ({"q": torch.zeros(16, 2, 3)}, "q must be"),
        ({"v": torch.zeros(2, 16, 2, 4)}, "v must be"),
        ({"q": torch.zeros(2, 16, 2, 3).long()}, "q must be floating"),
        ({"k": torch.zeros(2, 16, 2, 3).double()}, "k is torch.float64 but q is torch.float32"),
        ({"k": torch.zeros(2, 16, 2, 3, device="meta")}, "on cpu as q is"),
        ({"bias": torch.zeros(225, 2)}, "bias table needs `visible`"),
        ({"bias": torch.zeros(2)}, "bias must be"),
        ({"shared_qkv": (torch.zeros(2, 3),) * 3}, "need `visible`"),
        ({"window_mask": torch.zeros(3, 16, 16)}, "dividing 2"),
        ({"window_mask": torch.zeros(1, 16, 15)}, "window_mask must be"),
        ({"window_mask": torch.zeros(1, 16, 16, requires_grad=True)}, "has no gradient"),
        ({"backend": "cuda9"}, "has no backend 'cuda9'"),
        ({name: torch.zeros(2, 16, 2, 129) for name in "qkv"} | {"backend": "cpu"}, "head_dim is 129"),
        (
            {name: torch.zeros(2, 16, 2, 3).double() for name in "qkv"}
            | {"bias": torch.zeros(2, 16, 16).double(), "backend": "cpu"},
            "cpu: needs float32, got torch.float64",
        ),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    if "backend" in changes and changes["backend"] == "cpu" and not CPU_LIBRARY.loaded:
        message = "cannot run: cpu: "
    with pytest.raises(ValueError, match=message):
        window_attention(**arguments(**changes))


@needs_native
@pytest.mark.parametrize("instruction_set", ["portable", "avx2"])
def test_lesser_instruction_sets(instruction_set):
    """The choice is made once, when the library is first used: force it in a process of its own."""
    code = f"""
import torch
from tests.support.attention_cases import USES, make_case, relative_error
from masked_swin.kernels import CPU_LIBRARY
assert CPU_LIBRARY.instruction_set in ("{instruction_set}", "portable"), CPU_LIBRARY
for use in USES:
    for shape in ({{}}, {{"window": (3, 5), "shift": (1, 2), "heads": 2, "head_dim": 7}}):
        case = make_case(use, **shape)
        truth, grads = case.run(torch.float64, "reference")
        out, ours = case.run(torch.float32, "cpu")
        assert relative_error(out, truth) < 4e-7
        for name, grad in grads.items():
            assert relative_error(ours[name], grad) < 2e-6, (use, name, relative_error(ours[name], grad))
print(CPU_LIBRARY.instruction_set)
"""
    env = os.environ | {"MASKED_SWIN_CPU_ISA": instruction_set}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in (instruction_set, "portable")
