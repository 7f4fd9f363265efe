"""Every recipe of docs/drop_in.md, run as it stands there, against the code that it replaces."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from maskco.nn import SupConLoss

PAGE = Path(__file__).resolve().parents[2] / "docs" / "drop_in.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout")


def recipe(heading: str) -> SimpleNamespace:
    """What the code below a heading defines, after the page's imports."""
    imports, *sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(text for text in sections if text.startswith(heading))
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", imports + section, flags=re.DOTALL):
        assert block.count("\n") <= 20, f"{heading}: more than 20 lines"
        exec(block, names)
    return SimpleNamespace(**names)


def rows(count: int, dim: int, seed: int, *, unit: bool = False) -> torch.Tensor:
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return (F.normalize(values, dim=1) if unit else values).requires_grad_()


def assert_same(ours, theirs, inputs) -> None:
    """Losses and their gradients for all inputs."""
    torch.testing.assert_close(ours, theirs)
    wanted = [x for x in inputs if x.requires_grad]
    for a, b in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_moco():
    """The original: logits of the positive, then of a clone of the queue; cross-entropy with label 0; then the push."""

    class MoCo(torch.nn.Module):
        T, forward = 0.07, recipe("MoCo's own code").forward

        def __init__(self) -> None:
            super().__init__()
            self.encoder_q, self.encoder_k = torch.nn.Linear(12, 8), torch.nn.Linear(12, 8)
            self.register_buffer("queue", F.normalize(torch.randn(8, 64), dim=0))

        def _momentum_update_key_encoder(self) -> None: ...
        def _batch_shuffle_ddp(self, images):
            return images.flip(0), None

        def _batch_unshuffle_ddp(self, keys, _):
            return keys.flip(0)

        def _dequeue_and_enqueue(self, keys) -> None:
            self.queue[:, : len(keys)] = keys.T

    torch.manual_seed(0)
    model = MoCo()
    images = torch.randn(2, 16, 12)
    q = F.normalize(model.encoder_q(images[0]), dim=1)
    k = F.normalize(model.encoder_k(images[1]), dim=1).detach()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ model.queue.clone()], dim=1) / model.T
    expected = F.cross_entropy(logits, torch.zeros(16, dtype=torch.long))
    loss, accuracy = model(*images)
    assert torch.equal(model.queue[:, :16], k.T)
    assert accuracy == (logits.argmax(1) == 0).float().mean()
    assert_same(loss, expected, list(model.encoder_q.parameters()))


def test_lightly_with_a_memory_bank():
    loss = pytest.importorskip("lightly.loss")
    ours = recipe("lightly: `NTXentLoss` with a memory bank").NTXentLoss(0.3, (64, 16))
    theirs = loss.NTXentLoss(0.3, memory_bank_size=(64, 16))
    for step in range(6):  # 64 rows are full after four
        out0, out1 = rows(16, 16, 2 * step), rows(16, 16, 2 * step + 1)
        if step < 4:
            ours(out0, out1), theirs(out0, out1)
        else:
            assert_same(ours(out0, out1), theirs(out0, out1), [out0])


def test_lightly_without_a_memory_bank():
    loss = pytest.importorskip("lightly.loss")
    out0, out1 = rows(21, 16, 0), rows(21, 16, 1)
    ours = recipe("lightly, SimCLR").nt_xent(out0, out1, 0.3)
    assert_same(ours, loss.NTXentLoss(0.3)(out0, out1), [out0, out1])


def test_lightly_dcl():
    loss = pytest.importorskip("lightly.loss")
    out0, out1 = rows(21, 16, 0), rows(21, 16, 1)
    ours = recipe("lightly: `DCLLoss`").dcl_loss(out0, out1, 0.3)
    assert_same(ours, loss.DCLLoss(0.3)(out0, out1), [out0, out1])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", ["in-batch", "unpaired", "paired"])
def test_info_nce_pytorch(mode, reduction):
    peer = pytest.importorskip("info_nce")
    query, positive = rows(13, 8, 0), rows(13, 8, 1)
    negatives = {"in-batch": None, "unpaired": rows(40, 8, 2), "paired": rows(13 * 5, 8, 3).detach().view(13, 5, 8)}[
        mode
    ]
    arguments = (query, positive, negatives) if negatives is not None else (query, positive)
    options = {
        "temperature": 0.2,
        "reduction": reduction,
        "negative_mode": "paired" if mode == "paired" else "unpaired",
    }
    ours = recipe("info-nce-pytorch").info_nce_loss(*arguments, **options)
    assert_same(ours, peer.info_nce(*arguments, **options), arguments)


def test_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    ours = recipe("pytorch-metric-learning: `CrossBatchMemory`").CrossBatchMemory(0.2, 8, memory_size=48)
    theirs = losses.CrossBatchMemory(losses.SupConLoss(0.2), 8, memory_size=48)
    is_key = torch.arange(24) >= 12
    for step in range(6):  # wraps after four
        query, key = rows(12, 8, 2 * step), rows(12, 8, 2 * step + 1).detach()
        labels = torch.arange(12) + 12 * step
        expected = theirs(torch.cat([query, key]), labels.repeat(2), enqueue_mask=is_key)
        assert_same(ours(query, key, labels), expected, [query])


def test_pytorch_metric_learning_supcon():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    embeddings, labels = rows(20, 8, 0), torch.arange(20) % 11 // 2  # 5 stands alone
    ours = recipe("pytorch-metric-learning: `SupConLoss`").supervised_loss
    for some in (slice(None), slice(0, 7), slice(5, 16)):
        expected = losses.SupConLoss(0.2)(embeddings[some], labels[some])
        assert_same(ours(embeddings[some], labels[some], 0.2), expected, [embeddings])


def test_pytorch_metric_learning_nt_xent():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    embeddings, labels = rows(20, 8, 0), torch.randperm(20, generator=torch.Generator().manual_seed(0)) // 2
    ours = recipe("pytorch-metric-learning: `NTXentLoss`").nt_xent_loss(embeddings, labels, 0.2)
    assert_same(ours, losses.NTXentLoss(0.2)(embeddings, labels), [embeddings])


def supcontrast(features, labels, temperature, base_temperature):
    """SupContrast's own formula (losses.py, contrast_mode="all")."""
    features = features.flatten(2)
    images, views = features.shape[:2]
    mask = torch.eye(images) if labels is None else (labels[:, None] == labels).float()
    contrast = torch.cat(torch.unbind(features, dim=1), dim=0)
    logits = contrast @ contrast.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True)[0].detach()
    others = 1 - torch.eye(images * views)
    mask = mask.repeat(views, views) * others
    log_prob = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    mean_log_prob_pos = (mask * log_prob).sum(1) / mask.sum(1)
    return (-(temperature / base_temperature) * mean_log_prob_pos).mean()


@pytest.mark.parametrize("shape", [(6, 2, 16), (6, 3, 4, 2, 2)])
@pytest.mark.parametrize("labels", [None, torch.tensor([3, 1, 3, 0, 1, 3])])
def test_supcontrast(shape, labels):
    features = F.normalize(rows(6, math.prod(shape[1:]), 0).view(6, shape[1], -1), dim=2)
    features = features.detach().view(shape).requires_grad_()
    ours = recipe("SupContrast").ContrastAllViews(0.1, 0.07)(features, labels)
    assert_same(ours, supcontrast(features, labels, 0.1, 0.07), [features])


class Sentences(torch.nn.Module):
    """Stands in for a SentenceTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 8)

    def forward(self, features):
        return {"sentence_embedding": self.linear(features["x"])}


@pytest.mark.parametrize("columns", [2, 4])
def test_sentence_transformers(columns):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.manual_seed(0)
    model, features = Sentences(), [{"x": torch.randn(9, 12)} for _ in range(columns)]
    ours = recipe("sentence-transformers").MultipleNegativesRankingLoss(model, 15.0)(features)
    theirs = losses.MultipleNegativesRankingLoss(model, scale=15.0)(features, None)
    assert_same(ours, theirs, list(model.parameters()))


def test_memory_bank():
    """Every image comes back with the next batch: its old key stands in the bank, and is no negative of it."""
    bank, bank_ids, cursor = torch.full((20, 8), 9.0), torch.full((20,), -1), torch.zeros(2, dtype=torch.long)
    bank_loss, keys, ids = recipe("A memory bank of your own").bank_loss, torch.empty(0, 8), torch.empty(0).long()
    for step in range(4):  # wraps after three, with 6 keys each
        query, key = rows(6, 8, 2 * step), rows(6, 8, 2 * step + 1)
        image_ids = (torch.arange(6) + 3 * step) % 12
        logits = (query @ keys.T).masked_fill(image_ids[:, None] == ids, -math.inf)
        logits = torch.cat([(query * key).sum(1, keepdim=True), logits], dim=1) / 0.2
        ours = bank_loss(query, key, image_ids, bank, bank_ids, cursor)
        assert_same(ours, F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)), [query, key])
        keys, ids = torch.cat([keys, key.detach()])[-20:], torch.cat([ids, image_ids])[-20:]
        assert cursor.tolist() == [6 * (step + 1) % 20, len(ids)]


def test_open_clip():
    open_clip = pytest.importorskip("open_clip.loss")
    image, text = rows(33, 16, 0, unit=True), rows(33, 16, 1, unit=True)
    scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    bias = torch.tensor(-3.0, requires_grad=True)
    ours = recipe("open_clip: `ClipLoss`").contrastive_loss(image, text, scale.exp())
    assert_same(ours, open_clip.ClipLoss()(image, text, scale.exp()), [image, text, scale])
    ours = recipe("open_clip: `SigLipLoss`").sigmoid_loss(image, text, scale.exp(), bias)
    assert_same(ours, open_clip.SigLipLoss()(image, text, scale.exp(), bias), [image, text, scale, bias])


def plain_clip_loss(image, text, scale):
    logits, labels = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def plain_siglip_loss(image, text, scale, bias):
    logits = scale * image @ text.T + bias
    return -F.logsigmoid((2 * torch.eye(len(image)) - 1) * logits).sum() / len(image)


def test_clip_and_siglip_in_plain_torch():
    image, text = rows(33, 16, 0, unit=True), rows(33, 16, 1, unit=True)
    scale, bias = torch.tensor(12.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    ours = recipe("open_clip: `ClipLoss`").contrastive_loss(image, text, scale)
    assert_same(ours, plain_clip_loss(image, text, scale), [image, text, scale])
    ours = recipe("open_clip: `SigLipLoss`").sigmoid_loss(image, text, scale, bias)
    assert_same(ours, plain_siglip_loss(image, text, scale, bias), [image, text, scale, bias])


@pytest.mark.distributed
def test_clip_and_siglip_on_two_ranks(tmp_path):
    """Each rank has the whole batch's loss, and averaged over ranks its gradients; open_clip's where installed."""
    mp.spawn(_clip_rank, args=(str(tmp_path / "meet"),), nprocs=2)


def _clip_rank(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        page = recipe("open_clip on several ranks")
        scalars = torch.tensor(12.0), torch.tensor(-3.0)
        _check_on_two(rank, page.DistributedClipLoss(), plain_clip_loss, scalars[:1], "ClipLoss")
        _check_on_two(rank, page.DistributedSigLipLoss(), plain_siglip_loss, scalars, "SigLipLoss")
        _check_nt_xent(rank)
        dist.barrier()  # a rank that is gone while the other still sends aborts it
    finally:
        dist.destroy_process_group()


def _check_nt_xent(rank) -> None:
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        return
    parts = [rows(10, 16, seed).detach().chunk(2)[rank].clone().requires_grad_() for seed in (0, 1)]
    views = F.normalize(torch.stack(parts, dim=1), dim=2)
    ours, theirs = SupConLoss(0.3, gather=True)(views), NTXentLoss(0.3, gather_distributed=True)(*parts)
    mean = theirs.detach().clone()
    dist.all_reduce(mean)
    assert_same(ours, theirs + (mean / 2 - theirs).detach(), parts)  # the gradients are the same, the values' mean is


def _check_on_two(rank, loss, plain, scalars, name) -> None:
    whole = [rows(20, 16, 0, unit=True), rows(20, 16, 1, unit=True), *(x.clone().requires_grad_() for x in scalars)]
    parts = [x.detach().chunk(2)[rank] if x.dim() else x.detach() for x in whole]
    parts = [x.clone().requires_grad_() for x in parts]
    value = loss(*parts, output_dict=True)["contrastive_loss"]
    torch.testing.assert_close(value, plain(*whole))
    gradients = torch.autograd.grad(value, parts)
    for gradient, expected in zip(gradients, torch.autograd.grad(plain(*whole), whole), strict=True):
        if expected.dim() == 0:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
        expected = expected.chunk(2)[rank] if expected.dim() else expected
        torch.testing.assert_close(gradient / 2, expected, atol=1e-6, rtol=1e-4)
    try:
        from open_clip import loss as open_clip
    except ImportError:
        return
    options = {"local_loss": True, "gather_with_grad": True} if name == "ClipLoss" else {}
    theirs = getattr(open_clip, name)(rank=rank, world_size=2, **options)(*parts)
    mean = theirs.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(value, mean / 2)
    for gradient, expected in zip(gradients[:2], torch.autograd.grad(theirs, parts)[:2], strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_regions():
    torch.manual_seed(0)
    project = torch.nn.Linear(12, 8)
    features = [torch.randn(3, 12, 5, 5, requires_grad=True) for _ in range(2)]
    masks = [torch.rand(3, 4, 5, 5) for _ in range(2)]
    ours = recipe("Regions, as in DetCon").region_loss(*features, *masks, project, 0.1)
    first, second = (
        F.normalize(project(torch.einsum("bchw,brhw->brc", f, m) / m.sum((-2, -1))[..., None]).flatten(0, 1), dim=1)
        for f, m in zip(features, masks, strict=True)
    )
    expected = F.cross_entropy(first @ second.T / 0.1, torch.arange(12))
    assert_same(ours, expected, [*features, *project.parameters()])


def test_arrays():
    query, positive, queue = (rows(n, 8, n, unit=True).detach() for n in (5, 6, 30))
    loss = recipe("NumPy and CuPy arrays").array_loss
    torch.testing.assert_close(
        loss(query.numpy(), positive[:5].numpy(), queue.numpy()), loss(query, positive[:5], queue)
    )


@pytest.mark.cuda
def test_cupy_arrays():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cupy = pytest.importorskip("cupy")
    query, positive, queue = (rows(n, 8, n, unit=True).detach().cuda() for n in (5, 5, 30))
    loss = recipe("NumPy and CuPy arrays").array_loss
    actual = loss(*(cupy.from_dlpack(x) for x in (query, positive, queue)))
    assert actual.is_cuda
    torch.testing.assert_close(actual, loss(query, positive, queue))
