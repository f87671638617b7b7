"""The rows of the benchmark, PyTorch's side. Each takes the options and the timer and returns what it measured."""

import torch
import torch.nn.functional as F

import methods
from convnets import ConvNeXtTiny, GhostNet, HorNetTiny
from hatnet import HatNetTiny
from internimage import InternImageTiny, dcnv3
from models import CifarResNet, ResNet50, ViTSmall, batch_norm_frozen, freeze


def tiny(make):
    """Seconds per operation, from loops of many."""

    def row(options, timed):
        loop = make()
        count = options["count"]
        result = timed(lambda: loop(count), options["warmup"], options["steps"])
        return {"seconds": result["seconds"] / count, "cpu": result["cpu"] / count}

    return row


def tiny_add():
    a, b = torch.randn(2, 2), torch.randn(2, 2)

    def loop(count):
        for _ in range(count):
            a.add(b)

    return loop


def tiny_add_grad():
    a, b = torch.randn(2, 2, requires_grad=True), torch.randn(2, 2)

    def loop(count):
        for _ in range(count):
            a.add(b)

    return loop


def tiny_view():
    a = torch.randn(2, 2)

    def loop(count):
        for _ in range(count):
            a.view(4)

    return loop


def tiny_conv():
    x, w, b = torch.randn(1, 4, 4, 4), torch.randn(4, 4, 1, 1), torch.randn(4)

    def loop(count):
        for _ in range(count):
            F.conv2d(x, w, b, (1, 1), (0, 0), (1, 1), 1)

    return loop


def image_batch(options, size):
    x = torch.randn(options["batch"], 3, size, size)
    return x.to(memory_format=torch.channels_last) if options["layout"] == "channels_last" else x


def lay_out(model, options):
    return model.to(memory_format=torch.channels_last) if options["layout"] == "channels_last" else model


def finish(step, options, timed):
    """The work of one step in floating-point operations, or the time of a step."""
    if options.get("flops"):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step()
        return {"flops": counter.get_total_flops()}
    if options.get("profile"):
        return profile(step, options)
    result = timed(step, options["warmup"], options["steps"])
    return {"seconds": result["seconds"], "cpu": result["cpu"]}


def profile(step, options):
    """Share of every operator in the time of a step, for people."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for _ in range(options["warmup"]):
        step()
    with profiler(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(options["steps"]):
            step()
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))
    return {}


def train(build, trainable, size, classes):
    """Forward, cross-entropy, backward and AdamW of the trainable parameters only."""

    def row(options, timed):
        model = lay_out(batch_norm_frozen(build(classes)), options)
        parameters = freeze(model, trainable)
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)
        x, y = image_batch(options, size), torch.randint(0, classes, (options["batch"],))
        run = torch.compile(model) if options.get("compile") else model

        def step():
            optimizer.zero_grad()
            loss = F.cross_entropy(run(x), y)
            loss.backward()
            optimizer.step()

        result = finish(step, options, timed)
        result["trainable"] = sum(p.numel() for p in parameters)
        return result

    return row


def infer(build, size):
    def row(options, timed):
        model = lay_out(build(1000).eval().requires_grad_(False), options)
        x = image_batch(options, size)
        run = torch.compile(model) if options.get("compile") else model

        def step():
            with torch.inference_mode():
                run(x)

        return finish(step, options, timed)

    return row


def deformable(options, timed):
    """Forward and backward of the deformable convolution alone."""
    n, size, channels, groups = (options[name] for name in ("batch", "size", "channels", "groups"))
    x = torch.randn(n, size, size, channels, requires_grad=True)
    offset = torch.randn(n, size, size, groups * 18, requires_grad=True)
    mask = torch.rand(n, size, size, groups * 9, requires_grad=True)
    upstream = torch.randn(n, size, size, channels)

    def step():
        x.grad = offset.grad = mask.grad = None
        dcnv3(x, offset, mask, groups).backward(upstream)

    return finish(step, options, timed)


ROWS = {
    "tiny_add": tiny(tiny_add),
    "tiny_add_grad": tiny(tiny_add_grad),
    "tiny_view": tiny(tiny_view),
    "tiny_conv": tiny(tiny_conv),
    "train_cifar_resnet20_conv_adapter": train(
        lambda classes: CifarResNet(20, classes, reduction=4), ("adapter", "linear."), 32, 10
    ),
    "train_resnet50_conv_adapter": train(lambda classes: ResNet50(classes, reduction=4), ("adapter", "fc."), 224, 100),
    "train_vit_small_lora": train(lambda classes: ViTSmall(classes, lora=8), ("lora_", "head."), 224, 100),
    "train_vit_small_ssf": train(lambda classes: ViTSmall(classes, ssf=True), ("ssf", "head."), 224, 100),
    "train_vit_small_convpass": train(methods.convpass, ("adapter_", "head."), 224, 100),
    "train_vit_small_fact": train(methods.fact, ("fact_", "head."), 224, 100),
    "train_vit_small_vpt": train(methods.vpt_deep, ("prompt", "head."), 224, 100),
    "train_vit_small_krona": train(methods.krona(trick=True), ("krona_", "head."), 224, 100),
    "train_vit_small_krona_materialized": train(methods.krona(trick=False), ("krona_", "head."), 224, 100),
    "train_convnext_tiny_ssf": train(ConvNeXtTiny, ("ssf", "head."), 224, 100),
    "train_hornet_tiny_linear_probe": train(HorNetTiny, ("head.",), 224, 100),
    "train_hatnet_tiny_convpass": train(HatNetTiny, ("adapter_", "classifier."), 224, 100),
    "train_internimage_t_ssf": train(InternImageTiny, ("ssf", "head.weight", "head.bias"), 224, 100),
    "train_ghostnet_conv_adapter": train(GhostNet, ("adapter", "classifier."), 224, 100),
    "dcnv3": deformable,
    "infer_resnet50": infer(ResNet50, 224),
    "infer_vit_small": infer(ViTSmall, 224),
}
