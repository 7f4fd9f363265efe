"""Encoders: any timm backbone, cut at one stage, as a module from images to one feature map. Needs timm."""

from __future__ import annotations

import copy
import difflib
from bisect import bisect_left
from typing import Any, NamedTuple, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import FeatureInfo, _hub, parse_model_name
from torch import Tensor, nn


class DownloadError(ValueError):
    """timm's weights could not be downloaded."""


class Encoder(nn.Module):
    """Wraps a backbone as a module from images to its last feature map.

    Images [B, 3, H, W] become [B, channels, H / stride, W / stride].

    Args:
        backbone: a module that returns a feature map, or a list whose last item is one (timm's `features_only`).
        channels: channels of that map.
        stride: image pixels per feature pixel.
        channels_last: whether the backbone returns [B, H, W, C], as Swin does. The map is then permuted.
        image_size: the only side in pixels that the backbone accepts, as for ViT. None accepts any.
        padding: pixels of 0 (the mean color) around the image: left and top, then right and bottom. Backbones whose
            convolutions do not pad (Inception) need it for a map that covers the whole image. See `same_padding`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        stride: int,
        *,
        channels_last: bool = False,
        image_size: int | None = None,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone must be a torch.nn.Module, got {type(backbone).__name__}")
        self.backbone = backbone
        self.channels = channels
        self.stride = stride
        self.channels_last = channels_last
        self.image_size = image_size
        self.padding = padding

    def forward(self, images: Tensor) -> Tensor:
        if any(self.padding):
            images = F.pad(images, (*self.padding, *self.padding))
        features = self.backbone(images)
        if isinstance(features, (list, tuple)):
            features = features[-1]
        if features.ndim != 4:
            raise ValueError(f"the encoder must return a feature map [B, C, H, W], got {tuple(features.shape)}")
        return features.permute(0, 3, 1, 2) if self.channels_last else features


class Source(NamedTuple):
    """The model that timm builds for an encoder's name."""

    architecture: str  # one that timm has built in, perhaps with a tag
    config: dict[str, Any]  # timm's `pretrained_cfg`: mean, std, input_size, fixed_input_size …
    arguments: dict[str, Any]  # more of the model's arguments, which a hub or folder says
    stage: int  # the feature map that it was saved for; -1: the last


def resolve(name: str) -> Source:
    """Looks up a timm name, or reads the config.json of `hf-hub:USER/NAME` or `local-dir:FOLDER`.

    Raises:
        ValueError: an unknown name, or no such repository or folder. The message suggests the nearest names.
    """
    name = name.removeprefix("timm/")
    if ":" in name:
        try:
            kind, place = parse_model_name(name)
            read = _hub.load_model_config_from_hf if kind == "hf-hub" else _hub.load_model_config_from_path
            config, architecture, saved = read(place)
            arguments = dict(saved)
            arguments.pop("features_only", None)
            *_, stage = arguments.pop("out_indices", (-1,))
            return Source(architecture, dict(config), arguments, int(stage))
        except Exception as error:  # of the hub's client, or of a config.json that is none of timm's
            raise ValueError(f"encoder {name!r} cannot be read: {_unread(error)}") from error
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists them all"
        raise ValueError(f"encoder {name!r} is not a timm model. {hint}")
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:  # a weights tag that this architecture does not have
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ValueError(f"encoder {name!r}: timm has no such weights. It has {tags}") from error
    return Source(name, {} if found is None else found.to_dict(), {}, -1)


def _unread(error: Exception) -> str:
    """Why timm's config.json could not be read from the hub or a folder."""
    kinds = {each.__name__ for each in type(error).__mro__}  # (names: the client's modules move between versions)
    if "LocalEntryNotFoundError" in kinds or isinstance(error, ConnectionError):
        return "the hub cannot be reached. Go online once"
    if "RepositoryNotFoundError" in kinds:
        return "the hub has no such model, or a private one. Check the name, or log in with `hf auth login`"
    if "EntryNotFoundError" in kinds or isinstance(error, (KeyError, TypeError)):
        return "its config.json is missing, or not timm's"
    return str(error).split("\n")[0] or type(error).__name__


def create_encoder(
    name: str,
    *,
    stage: int | None = None,
    output_stride: int | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
) -> Encoder:
    """Creates an encoder from a timm name such as "resnet50", "convnext_tiny" or "vit_small_patch16_224".

    Fresh weights are initialised as in timm, with one exception. timm starts some residual branches at or near
    zero. Here they start as in MoCo v2's ResNets.

    Args:
        name: a name that `timm.list_models()` lists, also as `timm/…` or with a tag such as `resnet50.a1_in1k`. Or
            `hf-hub:USER/NAME` or `local-dir:FOLDER`, whose config.json is read.
        stage: which of the backbone's feature maps to use, numbered as timm's `out_indices`. -1 is the last. None uses
            the map that a model on the hub was saved for, else the last.
        output_stride: dilate the last stages so that no map is coarser than this. Convolutional backbones take 8, 16
            or 32.
        image_size: side of the images in pixels. Only backbones with a fixed input size (ViT, Swin) use it.
        pretrained: download timm's weights and start from them.

    Raises:
        ValueError: an unknown name, a backbone without such a feature map, or one that fails on images of `image_size`.
            The message suggests the nearest names.
        DownloadError: the weights could not be downloaded. It is a ValueError.
    """
    name = name.removeprefix("timm/")
    source = resolve(name)
    stage = source.stage if stage is None else stage
    options: dict[str, Any] = {"features_only": True, "out_indices": (stage,), "pretrained": pretrained}
    if output_stride is not None:
        options["output_stride"] = output_stride
    side = None  # any
    if source.config.get("fixed_input_size"):
        side = image_size or source.config["input_size"][-1]
        if image_size is not None:
            options["img_size"] = image_size
    try:
        backbone = timm.create_model(name, **options)
    except OSError as error:  # what the hub's client raises without a connection
        raise DownloadError(
            f"the weights of encoder {name!r} could not be downloaded. Go online once, or leave out `pretrained`"
        ) from error
    except Exception as error:  # models of many authors, who raise anything
        asked = ", ".join(
            f"{key}={value}" for key, value in options.items() if key not in ("features_only", "pretrained")
        )
        raise ValueError(
            f"encoder {name!r} gives no feature map with {asked}: {_reason(error)}. Choose another `stage`, "
            "`output_stride` or `image_size`, or another encoder"
        ) from error
    if not pretrained:
        _begin_branches(backbone)
    info = cast("FeatureInfo", backbone.feature_info)
    turned = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
    encoder = Encoder(backbone, info.channels()[-1], info.reduction()[-1], channels_last=turned, image_size=side)
    if side is None:
        encoder.padding = same_padding(encoder)
    elif image_size is not None:
        try:
            _try_side(encoder, side)
        except Exception as error:
            raise ValueError(
                f"encoder {name!r} takes no images of {side} pixels: {_reason(error)}. Choose another `image_size`, or "
                "another encoder"
            ) from error
    return encoder


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".") or "timm refuses this combination"


def _try_side(encoder: Encoder, side: int) -> None:
    """Raises what the backbone raises for images of this side in pixels."""
    try:
        _on_meta(encoder)(torch.empty(1, 3, side, side, device="meta"))
    except Exception:  # of the size, or of the meta device
        with torch.no_grad():
            copy.deepcopy(encoder).eval()(torch.zeros(1, 3, side, side))


def _on_meta(encoder: Encoder) -> Encoder:
    """A copy for the sizes of maps alone: on the meta device, without weights."""
    tensors = (*encoder.parameters(), *encoder.buffers())
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in tensors}  # no weights are copied
    return copy.deepcopy(encoder, memo).eval()


PROBE = 256  # side in pixels that backbones of any input size take


def same_padding(encoder: Encoder) -> tuple[int, int]:
    """The `padding` with which an encoder's map has size / stride cells, cell i around pixel (i + 1/2) · stride.

    It is (0, 0) if the map already has that many cells, rounded up or down, or if the backbone fails at the probed
    size. A chain of convolutions without padding gives n cells from K + (n - 1) · stride pixels. Cell i is around
    pixel K / 2 + i · stride, so K - stride pixels are missing. K is found from the map's sizes, on the meta device.
    """
    stride = encoder.stride
    probe = _on_meta(encoder)

    def cells(side: int) -> int:
        return probe(torch.empty(1, 3, side, side, device="meta")).shape[-1]

    try:
        count = cells(PROBE)
        if count >= PROBE // stride:
            return 0, 0
        sides = range(PROBE - stride, PROBE)
        least = sides[0] + bisect_left(sides, True, key=lambda side: cells(side) >= count)
    except Exception:  # anyone's code, and perhaps not for this size or device: the run's first pass shows it
        return 0, 0
    missing = least - (count - 1) * stride - stride
    return missing // 2, missing - missing // 2


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
SMALL = 1e-2  # layer scales start at 1e-6 to 1e-4 as timm has them


def _begin_branches(backbone: nn.Module) -> None:
    """Initialises to 1 the weights that make fresh residual blocks start as the identity.

    These are norms and gains at the end of branches, which timm sets to 0, and layer scales, at about 1e-6. Such a
    start helps deep networks and long supervised schedules with large batches. It costs short runs accuracy (norms:
    benchmarks/results/claims_tries.json). MoCo v2's ResNets, which are torchvision's, do not start so.
    """
    for module in backbone.modules():
        weight = getattr(module, "weight", None) if isinstance(module, NORMS) else getattr(module, "gain", None)
        if isinstance(weight, nn.Parameter) and not weight.any():
            nn.init.ones_(weight)
    for name, parameter in backbone.named_parameters():
        per_channel = parameter.numel() == max(parameter.shape, default=0)
        if parameter.numel() > 1 and (per_channel or name.endswith((".alpha", ".gamma"))):
            low, high = parameter.detach().aminmax()
            if 0 < low == high <= SMALL:
                nn.init.ones_(parameter)


def map_scale(features: Tensor, images: Tensor, stride: int) -> float:
    """Feature pixels per image pixel, for `ops.box_pool`: 1 / stride, after a check of the map's size.

    Args:
        features: [B, C, h, w], the encoder's map of images [B, 3, H, W].

    Raises:
        ValueError: h or w is not H / stride or W / stride, rounded down or up. The caller adds the encoder's name to
            the message.
    """
    found, sides = features.shape[-2:], images.shape[-2:]
    if all(side // stride <= size <= -(-side // stride) for size, side in zip(found, sides, strict=True)):
        return 1 / stride
    raise ValueError(
        f"returns a map of {found[0]}x{found[1]}, which does not fit its .stride of {stride} for images of "
        f"{sides[0]}x{sides[1]} pixels. Regions would be pooled in the wrong places"
    )


def as_encoder(encoder: str | nn.Module) -> Encoder:
    """Turns a name into `create_encoder(name)`. A module is used as it is, if it has `.channels` and `.stride`."""
    if isinstance(encoder, str):
        return create_encoder(encoder)
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder must be a timm name or a torch.nn.Module, got {type(encoder).__name__}")
    for attribute in ("channels", "stride"):
        if not isinstance(getattr(encoder, attribute, None), int):
            raise ValueError(
                f"encoder needs an integer attribute .{attribute}. Wrap the backbone: "
                "maskco.nn.Encoder(backbone, channels=…, stride=…)"
            )
    return cast("Encoder", encoder)  # which it stands in for
