"""Derivatives that the ops do not have: each raises, names the op and says what to use. None is silently zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from maskco.ops import box_pool, info_nce, masked_pool, queue_push_, reference

ROWS, KEYS, FEATURES = torch.randn(3, 4), torch.randn(6, 4), torch.randn(2, 3, 5, 5)
BOXES, MASKS = torch.tensor([[0, 0.0, 1.0, 3.0, 4.0], [1, 1.0, 0.0, 2.0, 5.0]]), torch.rand(2, 2, 5, 5)
LOCAL, TAU = torch.randn(3, 2, 4), torch.tensor(0.2)


def push(keys: Tensor) -> Tensor:
    queue = torch.zeros(6, 4)
    queue_push_(queue, torch.zeros(2, dtype=torch.long), keys)
    return queue


# name: (op's name in errors, function of one tensor, that tensor)
CALLS: dict[str, tuple[str, Callable[[Tensor], Tensor], Tensor]] = {
    "query": ("info_nce", lambda x: info_nce(x, ROWS, KEYS), ROWS),
    "positive": ("info_nce", lambda x: info_nce(ROWS, x, KEYS), ROWS),
    "in-batch positive": ("info_nce", lambda x: info_nce(ROWS, x, in_batch=True), ROWS),
    "queue": ("info_nce", lambda x: info_nce(ROWS, ROWS, x), KEYS),
    "local_negatives": ("info_nce", lambda x: info_nce(ROWS, ROWS, local_negatives=x), LOCAL),
    "temperature": ("info_nce", lambda x: info_nce(ROWS, ROWS, KEYS, temperature=x), TAU),
    "features of boxes": ("box_pool", lambda x: box_pool(x, BOXES, spatial_scale=1), FEATURES),
    "boxes": ("box_pool", lambda x: box_pool(FEATURES, x, spatial_scale=1), BOXES),
    "list of boxes": ("box_pool", lambda x: box_pool(FEATURES, [x, x], spatial_scale=1), BOXES[:, 1:]),
    "features of masks": ("masked_pool", lambda x: masked_pool(x, MASKS), FEATURES),
    "masks": ("masked_pool", lambda x: masked_pool(FEATURES, x), MASKS),
    "keys": ("queue_push_", push, ROWS),
}
every_call = pytest.mark.parametrize("op, function, x", CALLS.values(), ids=CALLS.keys())


def dual_numbers(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with forward_ad.dual_level():
        function(forward_ad.make_dual(x, torch.ones_like(x)))


def compiled_jvp(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.compile(lambda x: torch.func.jvp(function, (x,), (x,)), backend="aot_eager")(x)


DERIVATIVES = {
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x,)),
    "jacfwd": lambda function, x: torch.func.jacfwd(function)(x),
    "dual numbers": dual_numbers,
    "jvp of vmap": lambda function, x: torch.func.jvp(lambda x: torch.func.vmap(function)(x[None]), (x,), (x,)),
    "vmap of jvp": lambda function, x: torch.func.vmap(lambda x: torch.func.jvp(function, (x,), (x,)))(x[None]),
    "grad": lambda function, x: torch.func.grad(lambda x: function(x).sum())(x),
    "vjp": lambda function, x: torch.func.vjp(function, x),
    "jacrev": lambda function, x: torch.func.jacrev(function)(x),
    "hessian": lambda function, x: torch.func.hessian(lambda x: function(x).sum())(x),
    "vmap of grad": lambda function, x: torch.func.vmap(torch.func.grad(lambda x: function(x).sum()))(x[None]),
}


@every_call
@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES.keys())
def test_derivatives_of_transforms_raise(derivative, op, function, x):
    with pytest.raises(RuntimeError, match=rf"{op} has no forward-mode derivative .*(reference\.{op}|keys\.detach)"):
        derivative(function, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["query", "features of boxes", "masks"])
def test_compiled_forward_mode_raises(name):
    op, function, x = CALLS[name]
    torch._dynamo.reset()
    with pytest.raises(Exception, match=f"{op} has no forward-mode derivative"):
        compiled_jvp(function, x)


@pytest.mark.parametrize("name", ["query", "queue", "temperature", "features of boxes", "features of masks", "masks"])
def test_second_derivatives_raise(name):
    _, function, x = CALLS[name]
    x = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"no second derivative|no gradient of their gradient"):
        (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        torch.autograd.grad(gradient.sum(), x)


def test_what_is_not_differentiated_may_be_used_inside():
    with forward_ad.dual_level():
        forward_ad.make_dual(ROWS, ROWS)
        assert torch.equal(info_nce(ROWS, ROWS, KEYS), CALLS["query"][1](ROWS))
        keys = forward_ad.make_dual(ROWS, ROWS)
        assert torch.equal(push(keys.detach()), push(ROWS))
    gradient = torch.func.grad(lambda x: (x * info_nce(ROWS, ROWS, KEYS)).sum())(ROWS)
    assert torch.equal(gradient, info_nce(ROWS, ROWS, KEYS).expand(3, 4))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("boxes", "list of boxes", "keys")])
def test_vmap_gives_values_and_gradients(name):
    _, function, x = CALLS[name]
    batch = torch.stack([x, x * 0.5]).requires_grad_()
    together, apart = torch.func.vmap(function)(batch), torch.stack([function(x) for x in batch])
    torch.testing.assert_close(together, apart)
    weights = torch.randn_like(apart)
    for actual, expected in zip(
        torch.autograd.grad((together * weights).sum(), batch),
        torch.autograd.grad((apart * weights).sum(), batch),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_the_reference_has_what_the_errors_promise():
    _, tangent = torch.func.jvp(lambda x: reference.info_nce(x, ROWS, KEYS)[0].mean(), (ROWS,), (KEYS[:3],))
    query = ROWS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(info_nce(query, ROWS, KEYS), query)
    torch.testing.assert_close(tangent, (gradient * KEYS[:3]).sum())
    _, tangent = torch.func.jvp(lambda x: reference.masked_pool(x, MASKS), (FEATURES,), (FEATURES,))
    torch.testing.assert_close(tangent, masked_pool(FEATURES, MASKS))
