"""masked_pool for soft masks, bool masks and label maps, against reference.py (plain einsum) on every device."""

from __future__ import annotations

import math

import pytest
import torch

from maskco.ops import _library, masked_pool, reference
from peak_memory import peak_mib
from tolerance import assert_as_good_as

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
KINDS = ("soft", "bool", "labels")


def case(
    kind, batch=2, channels=20, height=9, width=13, regions=5, dtype=torch.float32, layout="nchw", device="cpu", seed=0
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Features, masks or labels (some of them ignored), num_regions. The last region is empty."""
    random = torch.Generator().manual_seed(seed)
    features = lay_out(torch.randn(batch, channels, height, width, generator=random).to(dtype), layout)
    if kind == "labels":
        masks = torch.randint(-1, regions - 1, (batch, height, width), generator=random)
        masks[:, ::3, 0] = 255
    else:
        masks = torch.rand(batch, regions, height, width, generator=random)
        masks = masks.to(dtype) if kind == "soft" else masks < 0.3
        masks[:, regions - 1 :] = 0
        if layout == "sliced":
            masks = lay_out(masks, layout)
    return features.to(device), masks.to(device), regions if kind == "labels" else None


def lay_out(images: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # no stride is what it seems
        batch, channels, height, width = images.shape
        larger = images.new_full((batch, 2 * channels, 2 * height, width + 3), True)
        larger[:, ::2, ::2, 1:-2] = images
        return larger[:, ::2, ::2, 1:-2]
    if layout == "transposed":
        return images.transpose(2, 3).contiguous().transpose(2, 3)
    return images


def with_gradients(function, features, masks, num_regions, reduction="mean"):
    """Output, then the gradients of the features and (soft) masks."""
    inputs = [t.detach().requires_grad_() for t in (features, masks) if t.is_floating_point()]
    output = function(inputs[0], inputs[1] if len(inputs) > 1 else masks, num_regions=num_regions, reduction=reduction)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def widened(features, masks, num_regions):
    masks = masks.cpu()
    return features.cpu().double(), masks.double() if masks.is_floating_point() else masks, num_regions


def compare(arguments, reduction="mean"):
    actual = with_gradients(masked_pool, *arguments, reduction)
    truth = with_gradients(reference.masked_pool, *widened(*arguments), reduction)
    features, masks, num_regions = arguments
    plain = with_gradients(reference.masked_pool, features.cpu(), masks.cpu(), num_regions, reduction)
    for name, a, p, t in zip(("output", "grad_features", "grad_masks"), actual, plain, truth, strict=False):
        assert_as_good_as(a, p, t, features.dtype, name)
    return actual


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_einsum(device, simulated, kind, dtype, layout):
    small = {"channels": 5, "height": 4, "width": 5, "regions": 3} if simulated else {}
    for reduction in ("mean",) if simulated else ("mean", "sum"):
        output, *_ = compare(case(kind, dtype=dtype, layout=layout, device=device, **small), reduction)
        assert not output[:, -1].any()


@pytest.mark.parametrize("channels", [1, 252, 507])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_ragged_sizes(kind, channels, layout):
    compare(case(kind, batch=3, channels=channels, height=3, width=123, regions=7, layout=layout))


@pytest.mark.parametrize(
    ("kind", "dtype", "channels", "layout"),
    [
        ("soft", torch.float32, 521, "nchw"),
        ("soft", torch.float32, 521, "channels_last"),
        ("labels", torch.float32, 521, "nchw"),
        ("labels", torch.bfloat16, 1043, "channels_last"),
    ],
)
def test_values_of_gradients_too_large_for_the_cache(kind, dtype, channels, layout):
    compare(case(kind, batch=1, channels=channels, height=67, width=61, regions=6, dtype=dtype, layout=layout))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(layout, reduction):
    features, masks, _ = case("soft", channels=3, height=3, width=4, regions=2, dtype=torch.float64, layout=layout)
    masks[:, 1:] = 0.5
    inputs = (features.requires_grad_(), masks.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, m: masked_pool(f, m, reduction=reduction), inputs)


@pytest.mark.parametrize("features_need", [False, True])
@pytest.mark.parametrize("masks_need", [False, True])
def test_every_subset_of_gradients(features_need, masks_need):
    features, masks, _ = case("soft")
    truth = with_gradients(reference.masked_pool, features, masks, None)
    features.requires_grad_(features_need), masks.requires_grad_(masks_need)
    output = masked_pool(features, masks)
    assert output.requires_grad == (features_need or masks_need)
    if output.requires_grad:
        output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    for tensor, need, expected in ((features, features_need, truth[1]), (masks, masks_need, truth[2])):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, expected)


@pytest.mark.parametrize(("kind", "kept"), [("soft", True), ("bool", False), ("labels", False)])
def test_features_are_kept_for_backward_only_if_masks_need_a_gradient(kind, kept):
    features, masks, num_regions = case(kind)
    features.requires_grad_()
    if kind == "soft":
        masks.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        masked_pool(features, masks, num_regions=num_regions)
    assert (features.shape in saved) == kept


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_label_dtypes_and_ignored_labels(device, simulated, dtype):
    small = {"channels": 2, "height": 3, "width": 3} if simulated else {}
    features, labels, regions = case("labels", device=device, **small)
    labels[labels == 255] = 100
    if dtype == torch.uint8:
        labels[labels == -1] = 255
    expected = reference.masked_pool(features.cpu(), labels.cpu(), num_regions=regions)
    actual = masked_pool(features, labels.to(dtype), num_regions=regions)
    torch.testing.assert_close(actual.cpu(), expected)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_inf(device, simulated, kind, layout):
    small = {"channels": 3, "height": 3, "width": 4, "regions": 3} if simulated else {}
    for bad in (math.nan,) if simulated else (math.nan, math.inf):
        features, masks, num_regions = case(kind, layout=layout, device=device, **small)
        features[1, 2, 1, 3] = bad
        features[0, 0, 0, 0] = bad
        output = masked_pool(features, masks, num_regions=num_regions, reduction="sum").cpu()
        truth = reference.masked_pool(features.cpu(), masks.cpu(), num_regions=num_regions, reduction="sum")
        assert torch.equal(output.isfinite(), truth.isfinite())
        if kind == "soft":
            assert not output[1, :, 2].isfinite()[:-1].any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_gradient_reaches_the_pixels_that_it_reaches_in_plain_torch(
    device, simulated, kind, layout, reduction
):
    small = {"channels": 3, "height": 3, "width": 6, "regions": 3} if simulated else {}
    features, masks, num_regions = case(kind, layout=layout, device=device, **small)
    if kind == "soft":
        masks[:, 0, 1] = 0  # 0 · Inf is NaN; bool masks and labels keep it out
    gradients = []
    for function, x, m in ((masked_pool, features, masks), (reference.masked_pool, features.cpu(), masks.cpu())):
        x = x.detach().requires_grad_()
        output = function(x, m, num_regions=num_regions, reduction=reduction)
        upstream = torch.ones_like(output)
        upstream[1, 0, 1] = math.inf
        gradients += torch.autograd.grad(output, x, upstream)
    torch.testing.assert_close(gradients[0].cpu(), gradients[1], equal_nan=True)
    assert not gradients[1].isfinite().all()


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_copy_of_the_features(kind, layout):
    features, masks, num_regions = case(kind, batch=4, channels=256, height=64, width=64, layout=layout)
    size = features.numel() * features.element_size() / 2**20
    with_gradients(masked_pool, features, masks, num_regions)
    assert peak_mib(lambda: masked_pool(features, masks, num_regions=num_regions)) < size / 5
    assert size / 2 < peak_mib(lambda: with_gradients(masked_pool, features, masks, num_regions)) < 1.3 * size


@pytest.mark.parametrize("kind", KINDS)
def test_empty_regions_give_zero_and_no_gradient(device, simulated, kind):
    small = {"channels": 3, "height": 3, "width": 4, "regions": 2} if simulated else {}
    features, masks, num_regions = case(kind, device=device, **small)
    masks = torch.full_like(masks, 7) if kind == "labels" else torch.zeros_like(masks)
    for tensor in with_gradients(masked_pool, features, masks, num_regions):
        assert not tensor.any()


@pytest.mark.parametrize("shape", [(0, 3, 2, 4, 4), (2, 0, 2, 4, 4), (2, 3, 0, 4, 4), (2, 3, 2, 0, 4), (2, 3, 2, 4, 0)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_empty(device, kind, shape, memory_format):
    batch, channels, regions, height, width = shape
    features = torch.randn(batch, channels, height, width, device=device).contiguous(memory_format=memory_format)
    if kind == "labels":
        masks = torch.zeros(batch, height, width, dtype=torch.int64, device=device)
    else:
        masks = torch.ones(batch, regions, height, width, device=device, dtype=None if kind == "soft" else torch.bool)
    tensors = with_gradients(masked_pool, features, masks, regions if kind == "labels" else None)
    assert tensors[0].shape == (batch, regions, channels)
    assert not any(t.any() for t in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_area(device, simulated, kind):
    for channels in (0, 2) if simulated else (0, 2, 300):  # (the last is shared by several threads)
        features, masks, regions = case(kind, channels=channels, height=3, width=4, device=device)
        _, area = _library.kernels(features.device).masked_pool_fwd(features, masks, regions, True)
        chosen = masks[:, None] == torch.arange(regions, device=device)[:, None, None] if regions else masks
        torch.testing.assert_close(area, chosen.sum((-2, -1)).to(area.dtype))


def test_layout_of_the_gradient():
    for kind in KINDS:
        for layout in ("nchw", "channels_last"):
            features, masks, num_regions = case(kind, layout=layout)
            assert with_gradients(masked_pool, features, masks, num_regions)[1].stride() == features.stride()


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_twice_and_for_any_number_of_threads(kind):
    threads = torch.get_num_threads()
    try:
        for layout in ("nchw", "channels_last"):
            arguments = case(kind, channels=333, height=17, width=19, regions=9, layout=layout)
            results = []
            for count in (1, 2, 2, 5):
                torch.set_num_threads(count)
                results.append(with_gradients(masked_pool, *arguments))
            for result in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    features, masks, num_regions = case(kind, channels=4, height=3, width=4, regions=3)
    masks = masks.requires_grad_() if kind == "soft" else masks
    torch.library.opcheck(
        torch.ops.maskco.masked_pool_fwd.default, (features.requires_grad_(), masks, num_regions, True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_compile_with_changing_sizes(kind):
    def loss(features, masks, num_regions):
        return masked_pool(features, masks, num_regions=num_regions).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for channels, height in ((6, 4), (8, 5), (10, 3)):
        features, masks, num_regions = case(kind, channels=channels, height=height)
        features.requires_grad_()
        (expected,) = torch.autograd.grad(loss(features, masks, num_regions), features)
        (gradient,) = torch.autograd.grad(compiled(features, masks, num_regions), features)
        torch.testing.assert_close(gradient, expected)


def test_autocast_brings_masks_to_the_features_dtype():
    features, masks, _ = case("soft", dtype=torch.bfloat16)
    expected = masked_pool(features, masks)
    with torch.autocast("cpu", torch.bfloat16):
        masks = masks.float().requires_grad_()
        output = masked_pool(features, masks)
    assert torch.equal(output, expected)
    output.sum().backward()
    assert masks.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="masks must be bfloat16, bool, got float32"):
        masked_pool(features, masks)


def test_arrays():
    for kind in KINDS:
        features, masks, num_regions = case(kind)
        expected = masked_pool(features, masks, num_regions=num_regions)
        assert torch.equal(masked_pool(features.numpy(), masks.numpy(), num_regions=num_regions), expected)


def test_double_backward_says_no():
    features, masks, _ = case("soft")
    features.requires_grad_(), masks.requires_grad_()
    gradients = torch.autograd.grad(masked_pool(features, masks).square().sum(), (features, masks), create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match="no gradient of their gradient"):
            gradient.sum().backward(retain_graph=True)


def test_bad_arguments_are_named():
    features, masks, _ = case("soft")
    _, labels, regions = case("labels")
    with pytest.raises(ValueError, match=r"features must have shape \[B, C, H, W\]"):
        masked_pool(features[0], masks)
    with pytest.raises(ValueError, match=r"masks must have shape \[2, R, 9, 13\]"):
        masked_pool(features, masks[:, :, 1:])
    with pytest.raises(ValueError, match=r"masks \(labels.*must have shape \[2, 9, 13\]"):
        masked_pool(features, labels[None], num_regions=regions)
    with pytest.raises(TypeError, match="Give num_regions too"):
        masked_pool(features, labels)
    with pytest.raises(TypeError, match=r"masks \(labels.*must be int64"):
        masked_pool(features, masks, num_regions=regions)
    with pytest.raises(TypeError, match="masks must be float32, bool"):
        masked_pool(features, masks.double())
    with pytest.raises(ValueError, match="num_regions must not be negative"):
        masked_pool(features, labels, num_regions=-1)
    with pytest.raises(ValueError, match='reduction must be "mean" or "sum"'):
        masked_pool(features, masks, reduction="max")
    with pytest.raises(ValueError, match="masks is on meta"):
        masked_pool(features, masks.to("meta"))


@pytest.mark.parametrize("device", [pytest.param("sim", marks=pytest.mark.sim)], indirect=True)
@pytest.mark.parametrize(("arch", "schedule"), [("sm_80", "reverse"), ("sm_80", "random"), ("sm_90", "forward")])
def test_cuda_kernels_under_other_schedules(device, arch, schedule):
    import ptxsim

    with ptxsim.device(arch, strict=True, schedule=schedule) as launched:
        compare(case("soft", channels=3, height=3, width=4, regions=3))
    assert [launched.count(k) for k in ("total_kernel", "pool_kernel", "spread_kernel")] == [1, 2, 1]
