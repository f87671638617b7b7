"""Golden cases of the second versions of torchvision's detectors: python make_detectors.py FOLDER

Needs torch, torchvision 0.28.0 and safetensors. torchvision's own Python code runs in float64; NMS and RoIAlign are
plain functions, so that its compiled operators need not be there. The cases have the format of test/golden.
"""

import json
import os
import sys
import types
from functools import partial

import torch
from safetensors.torch import save_file
from torch import nn

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

from torchvision.models.detection import FasterRCNN, RetinaNet  # noqa: E402
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor  # noqa: E402
from torchvision.models.detection.retinanet import RetinaNetHead  # noqa: E402
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, boxes, poolers  # noqa: E402
from torchvision.ops.feature_pyramid_network import (  # noqa: E402
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

PLAIN_ROI_ALIGN = sys.modules["torchvision.ops.roi_align"]._roi_align
WIDTHS = [6, 8, 8, 10, 12]
BODY = (
    "body: conv1 Conv2d(3,w0,3,stride 2,pad 1,no bias), bn1 FrozenBatchNorm2d(eps 1e-5), ReLU; "
    "layerK (K=1..4) = conv Conv2d(w[K-1],w[K],3,stride 2,pad 1,no bias), bn FrozenBatchNorm2d, ReLU"
)
COMMON = {
    "backbone": BODY,
    "body_widths": WIDTHS,
    "aspect_ratios": [0.5, 1.0, 2.0],
    "min_size": 64,
    "max_size": 96,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size_divisible": 32,
}
ALL = 100000  # more than there are candidates: no random choice is left


def plain_nms(candidates, scores, threshold):
    order = scores.argsort(descending=True, stable=True).tolist()
    iou = boxes.box_iou(candidates, candidates)
    keep = []
    for i in order:
        if not any(iou[j, i] > threshold for j in keep):
            keep.append(i)
    return torch.tensor(keep, dtype=torch.long)


def plain_roi_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned=False):
    return PLAIN_ROI_ALIGN(features, rois, spatial_scale, *output_size, sampling_ratio, aligned)


boxes.nms = plain_nms
boxes.batched_nms = boxes._batched_nms_vanilla
poolers.roi_align = plain_roi_align


class Stage(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 3, 2, 1, bias=False)
        self.bn = FrozenBatchNorm2d(outer)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Body(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.first = first
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(WIDTHS[0])
        for k in range(1, 5):
            setattr(self, f"layer{k}", Stage(WIDTHS[k - 1], WIDTHS[k]))

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        maps = []
        for k in range(1, 5):
            x = getattr(self, f"layer{k}")(x)
            maps.append(x)
        return {str(i): level for i, level in enumerate(maps[self.first :])}


class Backbone(nn.Module):
    out_channels = 8

    def __init__(self, first, extra, norm):
        super().__init__()
        self.body = Body(first)
        self.fpn = FeaturePyramidNetwork(WIDTHS[1 + first :], 8, extra_blocks=extra, norm_layer=norm)

    def forward(self, x):
        return self.fpn(self.body(x))


def faster_rcnn():
    sizes = [[8], [16], [24], [32], [48]]
    names = ["0", "1", "2", "3"]
    model = FasterRCNN(
        Backbone(0, LastLevelMaxPool(), nn.BatchNorm2d),
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * 5),
        rpn_head=RPNHead(8, 3, conv_depth=2),
        box_roi_pool=MultiScaleRoIAlign(names, 5, 2, canonical_scale=32, canonical_level=4),
        box_head=FastRCNNConvFCHead((8, 5, 5), [8, 6], [16], norm_layer=nn.BatchNorm2d),
        box_predictor=FastRCNNPredictor(16, 5),
        rpn_pre_nms_top_n_train=60,
        rpn_post_nms_top_n_train=40,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=30,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_detections_per_img=12,
    )
    config = {
        **COMMON,
        "fpn": {"in_channels": WIDTHS[1:], "out_channels": 8, "extra": "maxpool", "norm": "BatchNorm2d"},
        "num_classes": 5,
        "anchor_sizes": sizes,
        "rpn_conv_depth": 2,
        "roi_pool": {
            "featmap_names": names,
            "output_size": 5,
            "sampling_ratio": 2,
            "canonical_scale": 32,
            "canonical_level": 4,
        },
        "box_head": {"kind": "FastRCNNConvFCHead", "conv_layers": [8, 6], "fc_layers": [16], "norm": "BatchNorm2d"},
        "rpn_pre_nms_top_n_train": 60,
        "rpn_post_nms_top_n_train": 40,
        "rpn_pre_nms_top_n_test": 60,
        "rpn_post_nms_top_n_test": 30,
        "rpn_batch_size_per_image": ALL,
        "box_batch_size_per_image": ALL,
        "box_detections_per_img": 12,
    }
    return model, config


def retinanet():
    sizes = [[8, 10, 12], [16, 20, 25], [24, 30, 38], [32, 40, 50], [48, 60, 76]]
    head = RetinaNetHead(8, 9, 4, norm_layer=partial(nn.GroupNorm, 4))
    head.regression_head._loss_type = "giou"
    model = RetinaNet(
        Backbone(1, LastLevelP6P7(12, 8), None),
        4,
        min_size=64,
        max_size=96,
        anchor_generator=AnchorGenerator(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * 5),
        head=head,
        detections_per_img=15,
        topk_candidates=40,
    )
    config = {
        **COMMON,
        "fpn": {"in_channels": WIDTHS[2:], "out_channels": 8, "extra": "p6p7", "p6_input": "C5"},
        "num_classes": 4,
        "anchor_sizes": sizes,
        "head_norm": "GroupNorm(4)",
        "regression_loss": "giou",
        "detections_per_img": 15,
        "topk_candidates": 40,
    }
    return model, config


def randomize(model, generator):
    """Weights at which all that is random is also exact in float32."""

    def normal(tensor):
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            gain = 0.3 if tensor.dim() == 1 else (2 / tensor[0].numel()) ** 0.5 * (1.5 if "cls" in name else 1)
            tensor.copy_((normal(tensor) * gain).float())
        for name, tensor in model.named_buffers():
            if tensor.dtype != torch.float64:
                continue
            center = 1 if name.endswith(("weight", "running_var")) else 0
            tensor.copy_((normal(tensor) * 0.1 + center).float())


def write(folder, case, made, seed, targets=None):
    """Runs the model and stores everything. `targets`: boxes and labels of two images, to train on them."""
    model, config = made
    generator = torch.Generator().manual_seed(seed)
    model = model.double().train(targets is not None)
    randomize(model, generator)
    sides = [(50, 70), (61, 45)]
    images = [torch.rand(3, *size, generator=generator).double().requires_grad_() for size in sides]
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor.clone() for name, tensor in model.state_dict().items()}
    io = {f"input.image_{i}": image.detach().float() for i, image in enumerate(images)}
    if targets:
        for i, (corners, labels) in enumerate(targets):
            io |= {f"input.boxes_{i}": corners, f"input.labels_{i}": labels}
        losses = model(images, [{"boxes": b.double(), "labels": labels} for b, labels in targets])
        outputs = {name: loss.reshape(1) for name, loss in losses.items()}
    else:
        outputs = {f"{name}_{i}": value for i, found in enumerate(model(images)) for name, value in found.items()}
    total = 0
    for name, value in outputs.items():
        io["output." + name] = value.detach().float() if value.is_floating_point() else value.clone()
        if value.requires_grad:
            cotangent = torch.randn(value.shape, generator=generator)
            io["cotangent." + name] = cotangent
            total = total + (cotangent.double() * value).sum()
    total.backward()
    grads = {name: tensor.grad for name, tensor in model.named_parameters()}
    io |= {f"grad.{name}": grad.float() for name, grad in grads.items() if grad is not None}
    io |= {f"grad_input.image_{i}": image.grad.float() for i, image in enumerate(images)}
    description = {
        "system": "dense_heads",
        "case": case,
        "source": {"kind": "official", "repository": "pytorch/vision", "commit": "release 0.28.0", "entry": "torchvision/models/detection"},
        "config": config,
        "mode": "train" if targets else "eval",
        "outputs": {name: list(value.shape) for name, value in outputs.items()},
        "trainable": list(grads),
        "without_gradient": [name for name, grad in grads.items() if grad is None],
        "tolerance": {"forward": 2e-4, "grad": 2e-3},
    }
    os.makedirs(f"{folder}/{case}", exist_ok=True)
    for name, tensors in (("weights", weights), ("io", io)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, f"{folder}/{case}/{name}.safetensors")
    with open(f"{folder}/{case}/case.json", "w") as file:
        json.dump(description, file, indent=1)


def main(folder):
    # Seeds at which no ReLU sits so near to zero that float32 would flip it.
    first = (torch.tensor([[5, 8, 30, 40], [20, 10, 60, 45], [40, 20, 50, 30]]), torch.tensor([1, 3, 2]))
    second = (torch.tensor([[10, 12, 40, 55], [2, 3, 20, 22]]), torch.tensor([2, 1]))
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    write(folder, "faster_rcnn_v2", faster_rcnn(), 2)
    write(folder, "faster_rcnn_v2_train", faster_rcnn(), 2, [first, second])
    write(folder, "faster_rcnn_v2_no_box", faster_rcnn(), 7, [first, nothing])
    write(folder, "retinanet_v2", retinanet(), 6)
    write(folder, "retinanet_v2_train", retinanet(), 6, [first, second])
    write(folder, "retinanet_v2_no_box", retinanet(), 7, [first, nothing])


main(sys.argv[1])
