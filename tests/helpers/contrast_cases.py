"""Cases of info_nce, and the comparison of the op with its reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from maskco.ops import _library, info_nce, reference
from tolerance import assert_as_good_as

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def unit(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).to(dtype).to(device)


def make_case(
    device="cpu", dtype=torch.float32, n=9, c=20, k=45, m=3, valid=40, ids=True, in_batch=True, temperature=0.2
) -> dict:
    """Every argument at once; tests drop what they don't mean."""
    return {
        "query": unit(n, c, dtype=dtype, device=device),
        "positive": unit(n, c, dtype=dtype, device=device),
        "queue": unit(k, c, dtype=dtype, device=device) if k else None,
        "local_negatives": unit(n, m, c, dtype=dtype, device=device) if m else None,
        "in_batch": in_batch,
        "query_ids": torch.randint(0, 4, (n,), device=device) if ids else None,
        "queue_ids": torch.randint(0, 4, (k,), device=device) if ids and k else None,
        "valid": torch.tensor(valid, device=device) if k else None,
        "temperature": temperature,
    }


def run(function, case: dict, grad: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """loss, lse, positive_logit, rank and the gradients of a weighted sum of the losses."""
    case = {key: v.detach().clone().requires_grad_(key in grad) if torch.is_tensor(v) and v.is_floating_point() else v
            for key, v in case.items()}  # fmt: skip
    if function is info_nce:
        loss, stats = info_nce(**case, reduction="none", return_stats=True)
        result = {"loss": loss, **stats._asdict()}
    else:
        result = dict(zip(("loss", "lse", "positive_logit", "rank"), reference.info_nce(**case), strict=True))
    if grad:
        weights = torch.linspace(0.5, 2, len(result["loss"]), dtype=result["loss"].dtype, device=result["loss"].device)
        grads = torch.autograd.grad((result["loss"] * weights).sum(), [case[name] for name in grad])
        result |= {f"grad_{name}": g for name, g in zip(grad, grads, strict=True)}
    return result


def check_case(case: dict, grad: tuple[str, ...]) -> None:
    """The op, plain torch in the same dtype, and plain torch in float64 on the same rounded inputs."""
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    actual, same, truth = (
        run(info_nce, case, grad),
        run(reference.info_nce, case, grad),
        run(reference.info_nce, wide, grad),
    )
    device = case["query"].device
    on_cpu = _library.keep_logits(_library.kernels(device), device)
    for name, value in actual.items():
        if name == "rank":
            assert torch.equal(value.cpu(), truth[name].cpu())
        elif name == "grad_temperature" and not on_cpu:  # made of the query's gradient: weights are in its dtype there
            assert_as_good_as(value, same[name], truth[name], value.dtype, name, slack=case["query"].dtype)
        else:
            assert_as_good_as(value, same[name], truth[name], value.dtype, name)


FEATURES = ("query", "positive", "queue", "local_negatives")
CASES = {
    "queue": {"m": 0, "in_batch": False, "ids": False},
    "queue_ids": {"m": 0, "in_batch": False},
    "local": {"k": 0, "in_batch": False, "ids": False},
    "in_batch": {"k": 0, "m": 0, "ids": False},
    "in_batch_ids": {"k": 0, "m": 0},
    "query_ids_alone": {"queue_ids": None},
    "all": {},
    "negative_temperature": {"temperature": -0.5},
    "cold": {"temperature": 0.01},
}
