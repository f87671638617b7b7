"""What stands beside the layers of a network: functions of features, in evaluation. `t` are a graft's tensors by name.

`layout` is that of features: 'map' for [B, C, H, W], 'last' for channels last, tokens [B, N, C] or grids [B, H, W, C]."""

import torch
from torch.nn import functional as F

from .increments import kronecker_sum, quantized

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "tanh": torch.tanh,
}


def over_channels(x, layout, compute):
    """A function of features with channels last, on either layout."""
    return compute(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if layout == "map" else compute(x)


def over_patches(x, layout, context, on_map, on_rest):
    """A function of maps on whatever holds patches; tokens that are none go to `on_rest`."""
    if layout == "map":
        return on_map(x)
    if x.ndim == 4:
        return on_map(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    height, width = context.grid
    before, count = context.prefix, height * width
    patches = x[:, before : before + count].transpose(1, 2).unflatten(2, (height, width))
    parts = [on_map(patches).flatten(2).transpose(1, 2)]
    if before:
        parts.insert(0, on_rest(x[:, :before]))
    if x.shape[1] > before + count:
        parts.append(on_rest(x[:, before + count :]))
    return torch.cat(parts, 1)


def bottleneck(t, x, context, *, layout, norm="none", activation="relu", scale=1):
    """u = norm(s up(act(down(norm x)))), with at most one of the norms; a learned scale is among the tensors."""

    def normed(z, where):
        return F.layer_norm(z, z.shape[-1:], t["norm.weight"], t["norm.bias"]) if norm == where else z

    def compute(z):
        z = ACTIVATIONS[activation](F.linear(normed(z, "in"), t["down.weight"], t.get("down.bias")))
        u = F.linear(z, t["up.weight"], t.get("up.bias")) * (t["scale"] if "scale" in t else scale)
        return normed(u, "out")

    return over_channels(x, layout, compute)


def decoded(t, bits):
    """A bottleneck's tensors with the weights that its layers compute with."""
    return {name: quantized(value, bits) if name in ("down.weight", "up.weight") else value for name, value in t.items()}


def conv_bypass(t, x, context, *, layout):
    """A bottleneck with a convolution over the patches; other tokens meet the middle of its kernel."""
    act = ACTIVATIONS["quick_gelu"]
    weight, bias = t["conv.weight"], t["conv.bias"]
    middle = weight.shape[-1] // 2
    z = over_channels(x, layout, lambda rows: act(F.linear(rows, t["down.weight"], t["down.bias"])))
    z = over_patches(
        z,
        layout,
        context,
        lambda image: F.conv2d(image, weight, bias, padding=middle),
        lambda tokens: F.linear(tokens, weight[:, :, middle, middle], bias),
    )
    return over_channels(act(z), layout, lambda rows: F.linear(rows, t["up.weight"], t["up.bias"]))


def kronecker_bypass(t, x, context, *, layout, scale=1):
    """s x (A ⊗ B) + r x."""

    def compute(rows):
        y = rows @ torch.kron(t["A"], t["B"]) * scale
        return y + rows * t["residual_scale"] if "residual_scale" in t else y

    return over_channels(x, layout, compute)


def compacter(t, x, context, *, layout, rule, activation):
    """A bottleneck of two layers that are sums of Kronecker products."""

    def layer(name, z):
        h = kronecker_sum(rule, t[f"{name}.W.left"], t[f"{name}.W.right"]).to(z)
        return z @ h + t[f"{name}.b"]

    def compute(rows):
        z = F.layer_norm(rows, rows.shape[-1:], t["norm.weight"], t["norm.bias"])
        return layer("up", ACTIVATIONS[activation](layer("down", z)))

    return over_channels(x, layout, compute)


def conv_adapter(t, x, context, *, layout, activation):
    """se conv2(act(conv1 x)); the map that it is added to says its stride."""
    kernel = t["conv1.weight"].shape[-1]

    def on_map(image):
        stride = -(-image.shape[2] // context.target.shape[2]) if layout == "map" else 1
        z = F.conv2d(image, t["conv1.weight"], t["conv1.bias"], stride, (kernel - 1) // 2, groups=t["conv1.weight"].shape[0])
        return F.conv2d(ACTIVATIONS[activation](z), t["conv2.weight"], t["conv2.bias"]) * t["se"]

    channels = t["conv2.weight"].shape[0]
    return over_patches(x, layout, context, on_map, lambda tokens: tokens.new_zeros(*tokens.shape[:2], channels))


def prompt_block(t, x, context, *, layout, groups, gate_only):
    """Pro-tuning: beta times 1x1, depth-wise, 1x1, gate, 1x1."""

    def conv(index, z, **options):
        return F.conv2d(z, t[f"prompt_block.{index}.weight"], t[f"prompt_block.{index}.bias"], **options)

    def on_map(image):
        kernel = t["prompt_block.1.weight"].shape[-1]
        z = conv(0, image, groups=groups)
        z = conv(2, conv(1, z, padding=(kernel - 1) // 2, groups=z.shape[1]))
        gate = z.mean((2, 3), keepdim=True)
        gate = torch.sigmoid(conv("3.excitation", F.relu(conv("3.compress", gate))))
        return (conv(4, gate if gate_only else z * gate, groups=groups) * t["beta"]).expand_as(image)

    return over_patches(x, layout, context, on_map, torch.zeros_like)


def prompt_matcher(t, x, context, *, layout, iterations):
    """SPM: prompts that are refined under interim semantic maps."""

    def on_map(image):
        prompts = torch.zeros_like(image)
        for _ in range(iterations):
            z = F.conv2d(image + prompts, t["reduce.weight"], t["reduce.bias"])
            maps = F.conv2d(z, t["semantic.weight"], t["semantic.bias"])
            z = z + F.conv2d(maps.softmax(1), t["embed.weight"])
            z = F.gelu(F.conv2d(z, t["mix.weight"], t["mix.bias"], padding=1, groups=z.shape[1]))
            prompts = prompts + F.conv2d(z, t["expand.weight"], t["expand.bias"])
        return prompts

    return over_patches(x, layout, context, on_map, torch.zeros_like)


def st_adapter(t, x, context, *, layout):
    """fc2(K * fc1 x), K a depth-wise convolution over frames, rows and columns."""

    def on_map(patches):
        z = F.linear(patches.permute(0, 2, 3, 1), t["fc1.weight"], t["fc1.bias"])
        z = z.unflatten(0, (-1, context.frames)).permute(0, 4, 1, 2, 3)
        padding = [side // 2 for side in t["conv.weight"].shape[2:]]
        z = F.conv3d(z, t["conv.weight"], t["conv.bias"], padding=padding, groups=z.shape[1])
        z = F.linear(z.permute(0, 2, 3, 4, 1), t["fc2.weight"], t["fc2.bias"])
        return z.flatten(0, 1).permute(0, 3, 1, 2)

    return over_patches(x, layout, context, on_map, torch.zeros_like)


def noah_adapter(t, x, context, *, width):
    """ln2(act(ln1 x)) of the leading hidden features."""
    if width == 0:
        return torch.zeros_like(x)
    z = ACTIVATIONS["quick_gelu"](F.linear(x, t["ln1.weight"][:width], t["ln1.bias"][:width]))
    return F.linear(z, t["ln2.weight"][:, :width], t["ln2.bias"])


def raw_heads(d, heads):
    """PEViT's reading of an increment [B, N, C] as heads: in memory's order (token, sample, channel), not by channels."""
    batch, channels = d.shape[0], d.shape[-1]
    length = d.numel() // (batch * channels)
    dealt = d.reshape(batch, length, channels).transpose(0, 1).reshape(batch, heads, length, channels // heads)
    return dealt.transpose(1, 2).reshape(d.shape)
