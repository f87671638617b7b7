"""Writes nn.json: numbers of PyTorch's layers, initializers and losses from fixed seeds. Run: python make_nn.py"""
import importlib.util
import json
import pathlib

import torch
from torch import nn
from torch.nn import functional as F

out = {'torch': torch.__version__}


def timm_weight_init():
    """timm's initializers without the rest of timm, which needs torchvision."""
    root = pathlib.Path(importlib.util.find_spec('timm').submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location('weight_init', root / 'layers' / 'weight_init.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rounded(value):
    """Nine digits hold a float32 exactly."""
    if isinstance(value, float):
        return float(f'{value:.9g}')
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return value


def listed(value):
    return value.tolist() if isinstance(value, torch.Tensor) else value


# ---- initializers: seed 1, weight [6, 3, 2, 2] or [5, 4]
def init_of(fn, shape=(6, 3, 2, 2)):
    torch.manual_seed(1)
    return fn(torch.empty(shape)).tolist()


i = nn.init
out['init'] = {
    'kaimingUniform': init_of(i.kaiming_uniform_),
    'kaimingUniformRelu': init_of(lambda t: i.kaiming_uniform_(t, nonlinearity='relu', mode='fan_out')),
    'kaimingNormal': init_of(lambda t: i.kaiming_normal_(t, mode='fan_out', nonlinearity='relu')),
    'xavierUniform': init_of(i.xavier_uniform_),
    'xavierNormal': init_of(lambda t: i.xavier_normal_(t, gain=2.0)),
    'normal': init_of(lambda t: i.normal_(t, 1.0, 0.5)),
    'truncInverse': init_of(lambda t: timm_weight_init().trunc_normal_(t, std=0.8, a=-1, b=0.7)),
    'truncRejection': init_of(lambda t: i.trunc_normal_(t, std=0.8, a=-1, b=0.7)),
    'truncTail': init_of(lambda t: i.trunc_normal_(t, a=1.5, b=3)),
    'orthogonal': init_of(lambda t: i.orthogonal_(t, 0.5), (5, 4)),
    'orthogonalWide': init_of(i.orthogonal_, (3, 2, 3)),
    'dirac': init_of(lambda t: i.dirac_(t, 2), (4, 2, 3, 3)),
}

# ---- layers: seed 0, then the layer, then the input, then the output
x4 = lambda: torch.randn(2, 4, 4, 4)
LAYERS = {
    'linear': (lambda: nn.Linear(3, 4), lambda: torch.randn(2, 3)),
    'linearNoBias': (lambda: nn.Linear(3, 4, bias=False), lambda: torch.randn(2, 5, 3)),
    'conv': (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), x4),
    'convPair': (lambda: nn.Conv2d(4, 2, (3, 1), padding=(1, 0), dilation=(2, 1), bias=False), x4),
    'embedding': (lambda: nn.Embedding(5, 3, padding_idx=1), lambda: torch.tensor([[0, 1], [4, 2]])),
    'batchNorm': (lambda: nn.BatchNorm2d(4), x4),
    'batchNormCumulative': (lambda: nn.BatchNorm2d(4, momentum=None, affine=False), x4),
    'batchNormUntracked': (lambda: nn.BatchNorm2d(4, track_running_stats=False), x4),
    'layerNorm': (lambda: nn.LayerNorm(6, eps=1e-6), lambda: torch.randn(2, 3, 6)),
    'groupNorm': (lambda: nn.GroupNorm(2, 4), x4),
    'gelu': (lambda: nn.GELU(), x4),
    'geluTanh': (lambda: nn.GELU(approximate='tanh'), x4),
    'relu6': (lambda: nn.ReLU6(), x4),
    'silu': (lambda: nn.SiLU(), x4),
    'maxPool': (lambda: nn.MaxPool2d(3, 2, 1), x4),
    'avgPool': (lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), x4),
    'adaptiveAvgPool': (lambda: nn.AdaptiveAvgPool2d((2, 3)), x4),
    'dropout': (lambda: nn.Dropout(0.3), x4),
    'flatten': (lambda: nn.Flatten(), x4),
}
out['layers'] = {}
for name, (make, data) in LAYERS.items():
    torch.manual_seed(0)
    layer, case = make(), {}
    case['repr'] = repr(layer)
    case['initial'] = {k: listed(v.clone()) for k, v in layer.state_dict().items()}
    case['x'] = data().tolist()
    case['y'] = layer(torch.tensor(case['x'])).tolist()
    layer(torch.tensor(case['x']) * 2 if torch.tensor(case['x']).is_floating_point() else torch.tensor(case['x']))
    case['after'] = {k: listed(v) for k, v in layer.state_dict().items()}
    case['eval'] = layer.eval()(torch.tensor(case['x'])).tolist()
    out['layers'][name] = case

# ---- losses
torch.manual_seed(2)
logits, labels = torch.randn(4, 5), torch.tensor([1, 0, 4, 2])
maps, mapLabels = torch.randn(2, 5, 3), torch.tensor([[1, 0, 4], [2, -100, 3]])
soft, weight = torch.rand(4, 5).softmax(1), torch.rand(5)
binary, posWeight = torch.randint(0, 2, (4, 5)).float(), torch.rand(5) + 1
out['losses'] = {
    'logits': logits, 'labels': labels, 'maps': maps, 'mapLabels': mapLabels, 'soft': soft, 'weight': weight,
    'binary': binary, 'posWeight': posWeight,
    'plain': F.cross_entropy(logits, labels),
    'smooth': F.cross_entropy(logits, labels, label_smoothing=0.1),
    'weighted': F.cross_entropy(logits, labels, weight=weight, label_smoothing=0.2),
    'none': F.cross_entropy(logits, labels, reduction='none'),
    'sum': F.cross_entropy(logits, labels, reduction='sum'),
    'softTargets': F.cross_entropy(logits, soft, label_smoothing=0.1),
    'softWeighted': F.cross_entropy(logits, soft, weight=weight),
    'dense': F.cross_entropy(maps, mapLabels),
    'ignoring': F.cross_entropy(logits, labels, ignore_index=4),
    'mse': F.mse_loss(logits, soft),
    'bce': F.binary_cross_entropy_with_logits(logits, binary, pos_weight=posWeight),
    'kl': F.kl_div(logits.log_softmax(1), soft, reduction='batchmean'),
    'klLog': F.kl_div(logits.log_softmax(1), soft.log(), reduction='sum', log_target=True),
}
out['losses'] = {k: listed(v) for k, v in out['losses'].items()}

# ---- a tree
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.gamma = nn.Parameter(torch.ones(4))


class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.cls_token = nn.Parameter(torch.zeros(1))
        self.register_buffer('table', torch.arange(3))
        self.register_buffer('scratch', torch.arange(3), persistent=False)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.tied = self.head[0]


tree = Tree()
out['tree'] = {
    'state': list(tree.state_dict()),
    'parameters': [n for n, _ in tree.named_parameters()],
    'buffers': [n for n, _ in tree.named_buffers()],
    'modules': [n for n, _ in tree.named_modules()],
    'repr': repr(tree),
}
path = pathlib.Path(__file__).with_name('nn.json')
path.write_text(json.dumps(rounded(out), separators=(',', ':')) + '\n')
print(path.stat().st_size, 'bytes')
