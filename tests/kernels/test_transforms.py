"""Forward mode, torch.func and vmap: computed, or refused with the way out; never a derivative that is silently 0."""

import warnings

import pytest
import torch
from torch.autograd import forward_ad

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig
from masked_swin.kernels import convolution, swin_block, window_attention
from tests.support.examples import examples, names_here

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of PyTorch's own forward mode
OPERATIONS = {"window_attention": "dense", "swin_block": "dense", "convolution": "3x3"}
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


@pytest.mark.parametrize(("operation", "backend"), FAST)
def test_forward_mode_is_refused_with_the_way_out(operation, backend):
    function, x = call(operation, backend)
    tangent = torch.randn_like(x)
    with pytest.raises(RuntimeError, match="has no forward-mode derivative; pass backend='reference'"):
        torch.func.jvp(function, (x,), (tangent,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        function(forward_ad.make_dual(x, tangent))
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
def test_gradients_of_torch_func_are_refused_with_the_way_out(operation, backend):
    function, x = call(operation, backend)
    for transform in (torch.func.grad(lambda x: function(x).sum()), torch.func.jacrev(function)):
        with pytest.raises(RuntimeError, match=r"no derivative under torch\.func.*backend='reference'"):
            transform(x)
    reference, _ = call(operation, "reference")
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
    found = torch.func.grad(lambda x: reference(x).square().sum())(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


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
