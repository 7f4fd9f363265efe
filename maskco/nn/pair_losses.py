"""The losses over all pairs as modules: CLIP, SigLIP and SupCon, on one rank's batch or on those of all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskco import ops
from maskco.nn.gathered_clip import clip_losses
from maskco.nn.ranks import Layout, compare, gather_parts, gather_rows, joined, sum_over_ranks, world_size
from maskco.ops._contrast import (
    check_features,
    check_ids,
    check_nonzero,
    check_reduction,
    check_scalar,
    check_temperature,
    one_dtype,
)
from maskco.ops._inputs import FLOATS, as_float, as_tensor, check_dtype


class ClipLoss(nn.Module):
    """CLIP's symmetric cross-entropy, with open_clip's order of arguments. See `maskco.ops.clip_loss`.

    With `gather=True` it is the loss of all ranks' pairs, as one process would compute it. Ranks may have different
    numbers of pairs, or none. All ranks must call it, and run the backward pass.

    - The value is the same on every rank. Gradients are those of one process, times the number of ranks.
      DistributedDataParallel divides by that number when it averages. All ranks must weigh the loss alike.
    - With reduction "none" each rank gets the losses of its own pairs. Gradients are those of the sum of all ranks'
      results. So if ranks have equally many pairs, the mean of each rank's losses is equivalent to "mean".

    Args:
        gather: contrast with the pairs of all ranks. Without a process group it has no effect.
        label_smoothing: as in F.cross_entropy, over the pairs that are not excluded.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: an option has an impossible value.
    """

    def __init__(self, gather: bool = False, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.gather = gather
        self.label_smoothing = as_float(label_smoothing, "label_smoothing")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie between 0 and 1, got {label_smoothing}")
        self.reduction = reduction

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        ids: Tensor | None = None,
        *,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ops.ClipStats]:
        """The loss, [] or [N], or (loss, ClipStats).

        Args:
            image_features, text_features: [N, C]. Normalise them first, as CLIP does.
            logit_scale: multiplies the dot products. A tensor with one element gets a gradient.
            ids: [N] integers. Pairs with equal ids are not negatives of each other, on any rank.
            return_stats: also return the `ClipStats`. It does not work with gather=True.

        Raises:
            TypeError, ValueError: as in `maskco.ops.clip_loss`, and for return_stats with gather=True.
            RankError: another rank's arguments are invalid, or the ranks' arguments do not fit together.
        """

        def check() -> tuple[Tensor | None, ...]:
            if return_stats and self.gather:
                raise ValueError("return_stats does not work with gather=True. Use gather=False, or leave it out")
            image, text = _pairs(image_features, text_features)
            check_nonzero(logit_scale, image, "logit_scale", "image_features")
            own = None if ids is None else check_ids(ids, image.shape[0], image, "ids", "image_features")
            return image, text, own

        gather = self.gather and world_size() > 1
        (image, text, own_ids), (of_images, of_texts, _) = compare(check) if gather else (check(), (None, None, None))
        assert image is not None and text is not None
        if of_images is None or of_texts is None:
            options: dict[str, Any] = {"label_smoothing": self.label_smoothing, "return_stats": return_stats}
            return ops.clip_loss(image, text, logit_scale=logit_scale, ids=own_ids, reduction=self.reduction, **options)
        scale = check_nonzero(logit_scale, image, "logit_scale", "image_features")
        losses = clip_losses(image, text, own_ids, scale, self.label_smoothing, of_images, of_texts)
        return _over_ranks(losses, self.reduction, of_images.total)

    def extra_repr(self) -> str:
        return f"gather={self.gather}, label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


class SigLipLoss(nn.Module):
    """SigLIP's pairwise sigmoid loss, with open_clip's order of arguments. See `maskco.ops.siglip_loss`.

    Args:
        gather: contrast with the texts of all ranks, as in `ClipLoss`.
        reduction: "mean" over the N images, "sum" or "none". "none" gives each image's sum over all texts.

    Raises:
        ValueError: an unknown reduction.
    """

    def __init__(self, gather: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.gather = gather
        self.reduction = reduction

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor,
    ) -> Tensor:
        """The loss, [] or [N].

        Args:
            image_features, text_features: [N, C]. Normalise them first, as SigLIP does.
            logit_scale: multiplies the dot products. A tensor with one element gets a gradient.
            logit_bias: added to each logit. A tensor with one element gets a gradient.

        Raises:
            TypeError, ValueError: as in `maskco.ops.siglip_loss`, and if the numbers of images and texts differ.
            RankError: another rank's arguments are invalid, or the ranks' arguments do not fit together.
        """

        def check() -> tuple[Tensor, Tensor]:
            image, text = _pairs(image_features, text_features)
            check_nonzero(logit_scale, image, "logit_scale", "image_features")
            check_scalar(logit_bias, image, "logit_bias", "image_features")
            return image, text

        gather = self.gather and world_size() > 1
        (image, text), (of_images, of_texts) = compare(check) if gather else (check(), (None, None))
        assert image is not None and text is not None
        options: dict[str, Any] = {"logit_scale": logit_scale, "logit_bias": logit_bias}
        if of_images is None or of_texts is None:
            return ops.siglip_loss(image, text, reduction=self.reduction, **options)
        texts = gather_rows(text, of_texts)
        reduction = "none" if self.reduction == "none" else "sum"  # (of a sum one sweep gives the gradients, too)
        loss = ops.siglip_loss(joined(image, of_images), texts, offset=of_texts.start, reduction=reduction, **options)
        return _over_ranks(loss, self.reduction, of_images.total)

    def extra_repr(self) -> str:
        return f"gather={self.gather}, reduction={self.reduction!r}"


class SupConLoss(nn.Module):
    """The supervised contrastive loss, with the arguments of SupContrast and of pytorch-metric-learning.

    See `maskco.ops.supcon_loss`. A row without positives has loss 0, and counts in the mean.

    Args:
        temperature: divides the dot products. A parameter is learned.
        gather: contrast with the features of all ranks, as in `ClipLoss`.
        reduction: "mean" over all rows, "sum" or "none".

    Raises:
        TypeError, ValueError: a temperature that is no number or 0, or an unknown reduction.
    """

    def __init__(self, temperature: float | Tensor = 0.1, gather: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        check_temperature(temperature)
        self.temperature = temperature
        self.gather = gather
        self.reduction = reduction

    def forward(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        ref_features: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, ops.SupConStats]:
        """The loss, [] or [N], or (loss, SupConStats).

        The N rows of B images in V views are `torch.cat(torch.unbind(features, 1))`: the first view of all images,
        then the second, and so on. Losses and stats have this order. With gather=True they are those of this rank.

        Args:
            features: [N, C] with labels, or [B, V, C] with V views of each image. Dimensions after the second are
                flattened. Normalise them first for cosine similarity.
            labels: [N] or [B] integers. With None, each image is its own class, and its views are the positives.
            ref_features: [K, C], the features to contrast with. With None, these are all other rows.
            ref_labels: [K] integers.
            return_stats: also return the `SupConStats`.

        Raises:
            TypeError, ValueError: as in `maskco.ops.supcon_loss`, and for missing labels.
            RankError: another rank's arguments are invalid, or the ranks' arguments do not fit together.
        """

        def check() -> list[Tensor | None]:
            return self._checked(features, labels, ref_features, ref_labels)

        gather = self.gather and world_size() > 1
        tensors, layouts = compare(check) if gather else (check(), [None] * 4)
        (views, own_labels, keys, key_labels), (of_images, _, of_keys, _) = tensors, layouts
        assert views is not None
        if of_images is not None:
            views = joined(views, of_images)
        query, query_labels = _rows(views, own_labels, 0 if of_images is None else of_images.start)
        options: dict[str, Any] = {"temperature": self.temperature, "return_stats": return_stats}
        if of_images is None:
            return ops.supcon_loss(
                query, keys, query_labels=query_labels, key_labels=key_labels, reduction=self.reduction, **options
            )
        per_image = views.shape[1] if views.dim() > 2 else 1
        of_rows = Layout([length * per_image for length in of_images.lengths], of_images.needs_grad)
        if keys is None or key_labels is None or of_keys is None:
            keys, key_labels, of_keys, options["offset"] = query, query_labels, of_rows, of_rows.start
        keys, key_labels = gather_rows(keys, of_keys), gather_parts(key_labels, of_keys.lengths)
        reduction = "none" if self.reduction == "none" else "sum"  # (of a sum the gradients come with it)
        found = ops.supcon_loss(
            query, keys, query_labels=query_labels, key_labels=key_labels, reduction=reduction, **options
        )
        losses, stats = found if isinstance(found, tuple) else (found, None)
        loss = _over_ranks(losses, self.reduction, of_rows.total)
        return loss if stats is None else (loss, stats)

    def _checked(self, features: Any, labels: Any, ref_features: Any, ref_labels: Any) -> list[Tensor | None]:
        """The arguments as checked tensors: features and references of one dtype, labels int64."""
        features = as_tensor(features, "features")
        if features.dim() < 2:
            raise ValueError(f"features must have shape [N, C] or [B, V, C], got {list(features.shape)}")
        check_dtype(features, FLOATS, "features")
        check_nonzero(self.temperature, features, "temperature", "features")
        if labels is not None:
            labels = check_ids(labels, features.shape[0], features, "labels", "features")
        elif features.dim() == 2 or ref_features is not None:
            found = "ref_features" if ref_features is not None else "features [N, C]"
            raise ValueError(f"labels must be given with {found}. Only features [B, V, C] alone go without")
        if (ref_features is None) != (ref_labels is None):
            given = "ref_labels were" if ref_features is None else "ref_features were"
            raise ValueError(f"{given} given alone. Pass ref_features and ref_labels")
        if ref_features is not None:
            ref_features = as_tensor(ref_features, "ref_features")
            width = features.shape[1:].numel() if features.dim() == 2 else features.shape[2:].numel()
            check_features(ref_features, ("K", width), "ref_features", features, "features")
            ref_labels = check_ids(ref_labels, ref_features.shape[0], features, "ref_labels", "features")
            features, ref_features = one_dtype({"features": features, "ref_features": ref_features}, features)
        return [features, labels, ref_features, ref_labels]

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather={self.gather}, reduction={self.reduction!r}"


def _pairs(image_features: Any, text_features: Any) -> tuple[Tensor, Tensor]:
    """Both features, checked: as many images as texts, of one dtype."""
    image, text = as_tensor(image_features, "image_features"), as_tensor(text_features, "text_features")
    check_features(image, ("N", "C"), "image_features", image, "image_features")
    check_features(text, tuple(image.shape), "text_features", image, "image_features")
    image, text = one_dtype({"image_features": image, "text_features": text}, image)  # type: ignore[assignment]
    return image, text


def _rows(features: Tensor, labels: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    """Features as rows [N, C], and their labels [N]. Without labels, images are numbered from `first`."""
    if features.dim() == 2:
        assert labels is not None
        return features, labels
    if labels is None:
        labels = torch.arange(first, first + features.shape[0], device=features.device)
    return features.flatten(2).transpose(0, 1).flatten(0, 1), labels.repeat(features.shape[1])


def _over_ranks(losses: Tensor, reduction: str, count: int) -> Tensor:
    """The loss of all ranks from this rank's losses [n] or their sum []. "none" returns [n]. All ranks have `count`."""
    if reduction == "none":
        return losses
    total = sum_over_ranks(losses.sum())
    return total / max(count, 1) if reduction == "mean" else total
