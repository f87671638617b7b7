"""Changes of weights: W -> W + s D. Every function gives {(path, slice or None): s D} in float64."""

import re

import torch

from .folder import NotRead

#: Rounds in which the levels of a quantizer are found; torchgraft takes as many.
ROUNDS = 500


def split_slice(path):
    """`blocks.0.attn.qkv[q]` as the layer's path and the slice's name, which is None for a whole layer."""
    match = re.fullmatch(r"(.+)\[(\w+)\]", path)
    return match.groups() if match else (path, None)


def stage_of(path):
    """Number of the stage that a layer lies in; of text models, 0 for the encoder and 1 for the decoder."""
    match = re.match(r"(?:layers|stages)\.(\d+)\.", path)
    return int(match.group(1)) if match else int(".decoder." in f".{path}")


def levels(bits):
    """The values and borders of a quantizer of the standard normal distribution (Jie et al., ICCV 2023, section 3.3)."""
    count = 2**bits
    values = torch.zeros(count, dtype=torch.float64)
    borders = torch.zeros(count - 1, dtype=torch.float64)
    ends = torch.tensor([0.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    for _ in range(ROUNDS):
        borders = (values[:-1] + values[1:]) * 0.5
        below = torch.cat([ends[0], torch.special.ndtr(borders), ends[1]])
        values = torch.special.ndtri((below[:-1] + below[1:]) * 0.5)
    return values.float(), borders


def quantized(weight, bits):
    """The weight that a quantized layer computes with, of its latent one: Q((W - m) / (d + 1e-5)) d + m."""
    if bits == 32:
        return weight
    values, borders = levels(bits)
    mean, deviation = weight.mean(), weight.std()
    standard = (weight - mean) / (deviation + 1e-5)
    codes = torch.bucketize(standard, borders.to(weight.dtype))
    return values.to(weight.dtype)[codes] * deviation + mean


def factors_of(leaves, bits=32):
    """`down` and `up` as they are computed with, in float64."""
    return quantized(leaves["down.weight"], bits).double(), quantized(leaves["up.weight"], bits).double()


def _scales(folder):
    """alpha / rank of a graft by its rank: `also` gives layers ranks and scales of their own."""
    options = folder.options
    rank = options["rank"]
    default = options.get("alpha", rank) / rank
    also = options.get("also") or []
    if not also:
        return lambda path, order: default
    queries = [options.get("at"), *(layers["at"] for layers in also)]
    scales = [default, *(layers["alpha"] / layers["rank"] for layers in also)]
    ranks = [rank, *(layers["rank"] for layers in also)]

    def find(path, graft_rank):
        if graft_rank is not None and ranks.count(graft_rank) == 1:
            return scales[ranks.index(graft_rank)]
        found = [scale for query, scale in zip(queries, scales) if query and selects(query, path)]
        if len(set(found)) == 1:
            return found[0]
        if len(set(scales)) == 1:
            return default
        raise NotRead(f"which of the layers of 'also' {path} is cannot be told by its name; use `torchgraft merge`")

    return find


def selects(query, path):
    """Whether a query by names or paths selects a layer. @raises NotRead for its other conditions, which cannot be told here"""
    if isinstance(query, list):
        return any(selects(one, path) for one in query)
    if set(query) - {"name", "path", "inBlock"} or not set(query) & {"name", "path"}:
        raise NotRead(f"which layers {query} means cannot be told by names; use `torchgraft merge`")
    module, part = split_slice(path)
    names = query.get("name", [])
    globs = query.get("path", [])
    by_name = not names or (part or module.rpartition(".")[2]) in ([names] if isinstance(names, str) else names)
    by_path = not globs or any(_glob(glob, path) for glob in ([globs] if isinstance(globs, str) else globs))
    return by_name and by_path


def _glob(glob, path):
    parts = [".*" if part == "**" else re.escape(part).replace(r"\*", "[^.]*") for part in glob.split(".")]
    return re.fullmatch(r"\.".join(parts).replace(r".*\.", r"(?:.*\.)?"), path) is not None


def lora(folder, shapes):
    """B A; on convolutions A has the kernel, and with groups every group a pair of its own."""
    scale, out = _scales(folder), {}
    for path, leaves in folder.rule("lora"):
        down, up = factors_of(leaves, folder.options.get("bits", 32))
        where = split_slice(path)
        groups = 1 if down.ndim == 2 or where[1] else down.shape[0] // up.shape[1]
        first = down.reshape(groups, down.shape[0] // groups, -1)
        second = up.reshape(groups, up.shape[0] // groups, -1)
        # Depth-wise convolutions hold less than the rank that was asked for.
        rank = first.shape[1] if groups == 1 else None
        out[where] = (second @ first).reshape(up.shape[0], *down.shape[1:]) * scale(path, rank)
    return out


def lokr(folder, shapes):
    """w1 ⊗ w2, each of them perhaps a product; `t2` is a core of kernels."""
    scale, out = _scales(folder), {}
    for path, tensors in folder.rule("lokr"):
        leaves = {name: tensor.double() for name, tensor in tensors.items()}
        module, part = split_slice(path)
        w1 = leaves.get("w1")
        rank = leaves["w2_a"].shape[0 if "t2" in leaves else 1] if "w2_a" in leaves else None
        if w1 is None:
            w1 = leaves["w1_a"] @ leaves["w1_b"]
        w2 = leaves.get("w2")
        if w2 is None and "t2" in leaves:
            w2 = torch.einsum("ijkl,jr,ip->prkl", leaves["t2"], leaves["w2_b"], leaves["w2_a"])
        elif w2 is None:
            w2 = leaves["w2_a"] @ leaves["w2_b"]
            w2 = w2.reshape(w2.shape[0], -1, *shapes(f"{module}.weight")[2:])
        whole = torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())
        out[module, part] = whole * scale(path, rank)
    return out


def krona(folder, shapes):
    """(A ⊗ B)ᵀ."""
    scale = folder.options.get("scale", 1)
    return {
        split_slice(path): torch.kron(leaves["A"].double(), leaves["B"].double()).t() * scale
        for path, leaves in folder.rule("krona")
    }


def kronecker_sum(rule, left, right):
    """H = Σ_i A_i ⊗ (L_i R_i), [in, out]; the rule's A are `full`, or products of `left` and `right`."""
    matrices = rule["full"].double() if "full" in rule else rule["left"].double() @ rule["right"].double()
    products = left.double() @ right.double()
    return sum(torch.kron(a.contiguous(), b.contiguous()) for a, b in zip(matrices, products))


def kadaptation(folder, shapes):
    """Hᵀ on queries and values, in the variant of the paper."""
    if folder.options.get("variant", "paper") != "paper":
        raise NotRead("kadaptation in the variant of its released code mixes tokens and samples: it does not merge; use attach")
    out = {}
    for part, shared in (("q", "phm_rule1"), ("v", "phm_rule2")):
        for path, leaves in folder.rule(part):
            where = split_slice(path)
            increment = kronecker_sum(folder.part(shared), leaves["factors.left"], leaves["factors.right"]).t()
            extra = len(shapes(f"{where[0]}.weight")) - 2
            out[where] = increment.reshape(*increment.shape, *[1] * extra) * folder.options.get("scale", 160)
    return out


def noah(folder, shapes, sizes):
    """b a of the leading rows that a block's sub-network has; `sizes(path)` says how many."""
    out = {}
    for path, leaves in folder.rule("lora"):
        rank = sizes(path)
        a, b = leaves["a.weight"].double()[:rank], leaves["b.weight"].double()[:, :rank]
        out[split_slice(path)] = b @ a
    return out


def fact(folder, shapes, layers):
    """Blocks V M U of all layers from shared U and V; `layers` are the layers in the model's order, as (path, stage, slices).

    `slices` are the names of the slices of a fused projection, empty for any other layer."""
    options, out = folder.options, {}
    own = {path: leaves for path, leaves in folder.rule("fact")}
    first = 0
    for path, stage, slices in layers:
        factors = folder.shared.get(f"factors_{stage}") or folder.part("factors")
        u, v = factors["u.weight"].double(), factors["v.weight"].double()
        (rank, width), shape = u.shape, shapes(f"{path}.weight")
        a, b = shape[1] // width, shape[0] // width
        if options.get("variant", "tt") == "tt":
            cores = own[path]
            names = slices if len(slices) == b else [next(iter(cores)).split(".")[1]]
            core = torch.cat([cores[f"cores.{name}.weight"].double() for name in names])
        else:
            shared = folder.part("core")
            slab = shared["c"].double() @ shared["p"].double()[:, first : first + a * b]
            if len(slices) == b:
                core = slab.permute(2, 1, 0).reshape(b * rank, rank)
            else:
                flat = slab.reshape(rank, rank * a * b)
                core = flat.t() if a == 1 else flat
        first += a * b
        if a == 1:
            increment = (v @ core.reshape(b, rank, rank)).reshape(b * width, rank) @ u
        else:
            increment = v @ (core.reshape(rank * a, rank) @ u).reshape(rank, a * width)
        out[path, None] = increment * options.get("scale", 1)
    return out


def _walsh_hadamard(x):
    length = x.numel()
    step = 1
    while step < length:
        pairs = x.reshape(-1, 2, step)
        x = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        step *= 2
    return x


def subspace(folder):
    """P θ, all increments of an intrinsic subspace in one vector: P is Fastfood (Le et al., ICML 2013)."""
    part = folder.part("subspace")
    theta, signs = part["theta"].double(), part["projection.signs"].double()
    gaussians, places = part["projection.gaussians"].double(), part["projection.permutation"]
    start = torch.zeros_like(gaussians)
    start[: theta.numel()] = theta * signs[: theta.numel()]
    mixed = _walsh_hadamard(start)[places] * gaussians
    return _walsh_hadamard(mixed), gaussians.square().sum()


def intrinsic_subspace(folder, layers):
    """Increments of weights and biases: `layers` are (path, shape of the weight, length of the bias or 0) in the model's order.

    Gives ({(path, None): D}, {path: summand})."""
    vector, squares = subspace(folder)
    size = sum(torch.Size(shape).numel() + bias for _, shape, bias in layers)
    vector = vector[:size] * (squares * size).rsqrt()
    weights, biases, at = {}, {}, 0
    for path, shape, bias in layers:
        count = torch.Size(shape).numel()
        weights[path, None] = vector[at : at + count].reshape(shape)
        if bias:
            biases[path] = vector[at + count : at + count + bias]
        at += count + bias
    return weights, biases
