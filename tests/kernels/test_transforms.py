"""Forward mode, torch.func and vmap: computed, or refused with the way out; never a derivative that is silently 0."""

import re
import warnings

import pytest
import torch
from torch.autograd import forward_ad

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig
from masked_swin.kernels import convolution, swin_block, window_attention
from tests.support.examples import examples, names_here

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of PyTorch's own forward mode
OPERATIONS = {"window_attention": "dense", "swin_block": "dense", "convolution": "3x3"}
REFUSES = ("cpu", "triton", "composed")  # composed calls the others
FAST = [(operation, name) for operation in OPERATIONS for name in names_here(operation)]


def call(operation, backend):
    """The public operation as a function of its first tensor, and that tensor."""
    inputs = examples(operation)[OPERATIONS[operation]]
    if operation == "window_attention":
        fixed = [inputs.k, inputs.v, inputs.bias]
        options = {"scale": inputs.scale, "window_mask": inputs.window_mask, "backend": backend}
        return lambda q: window_attention(q, *(t.detach() for t in fixed), **options), inputs.q.detach()
    if operation == "swin_block":
        weights = inputs.weights._make(None if w is None else w.detach() for w in inputs.weights)
        options = {"window": inputs.windows.window, "shift": inputs.windows.shift, "backend": backend}
        return lambda x: swin_block(x, weights, **options), inputs.x.detach()
    weight, bias = inputs.weight.detach(), inputs.bias.detach()
    return lambda x: convolution(x, weight, bias, backend=backend), inputs.x.detach()


def computed_or_refused(run, message):
    """The value, or None if an error names the way out."""
    try:
        return run()
    except RuntimeError as refused:
        if not re.search(message, str(refused)):
            raise
        return None


@pytest.mark.parametrize(("operation", "backend"), FAST)
def test_forward_mode_is_computed_or_refused_with_the_way_out(operation, backend):
    function, x = call(operation, backend)
    tangent, message = torch.randn_like(x), "has no forward-mode derivative; pass backend='reference'"

    def dual():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent

    _, wanted = torch.func.jvp(call(operation, "reference")[0], (x,), (tangent,))
    for run in (lambda: torch.func.jvp(function, (x,), (tangent,))[1], dual):
        found = computed_or_refused(run, message)
        assert found is not None or backend in REFUSES
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        assert function(x).isfinite().all()  # nothing to differentiate


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_has_forward_mode(operation):
    function, x = call(operation, "reference")
    tangent, step = torch.randn_like(x), 1e-2
    _, found = torch.func.jvp(function, (x,), (tangent,))
    wanted = (function(x + step * tangent) - function(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    assert found.abs().max() > 0.1


@pytest.mark.parametrize(("operation", "backend"), FAST)
def test_gradients_of_torch_func_are_computed_or_refused_with_the_way_out(operation, backend):
    function, x = call(operation, backend)
    reference, _ = call(operation, "reference")
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
    transforms = [torch.func.grad(lambda x, run=run: run(x).square().sum()) for run in (function, reference)]
    message = r"no derivative under torch\.func.*backend='reference'"
    found = computed_or_refused(lambda: transforms[0](x), message)
    assert found is not None or backend in REFUSES
    for value in (found, transforms[1](x)):
        if value is not None:
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)
    jacobian = computed_or_refused(lambda: torch.func.jacrev(lambda x: function(x).flatten()[:2])(x), message)
    assert (jacobian is None) == (found is None)


@pytest.mark.parametrize(("operation", "backend"), FAST)
def test_vmap_is_a_loop_without_a_warning(operation, backend):
    function, x = call(operation, backend)
    many = torch.stack([x, 2 * x, -x], dim=1).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = torch.vmap(function, in_dims=1)(many)
    wanted = torch.stack([function(one) for one in many.unbind(1)])
    torch.testing.assert_close(out, wanted)
    found, expected = (torch.autograd.grad(o.square().sum(), many)[0] for o in (out, wanted))
    torch.testing.assert_close(found, expected)


def test_a_network_has_forward_mode_through_the_reference_only():
    config = ModelConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, attention_mask=0.5)
    x, key = torch.rand(1, 3, 8, 8), MaskKey.make(0, 1)
    networks = [MaskedSwinIR(config, backend=backend).eval() for backend in (None, "reference")]
    networks[1].load_state_dict(networks[0].state_dict())
    fast, reference = (lambda x, network=network: network(x, key=key) for network in networks)
    with pytest.raises(RuntimeError, match="pass backend='reference'"):
        torch.func.jvp(fast, (x,), (torch.ones_like(x),))
    _, tangent = torch.func.jvp(reference, (x,), (torch.ones_like(x),))
    assert tangent.abs().max() > 0
