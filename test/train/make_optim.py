"""Writes optim.json: parameters after 20 steps of PyTorch's optimizers on a small regression. Run: python make_optim.py"""
import json
import pathlib

import torch

CASES = [
    ('SGD', {'lr': 0.1}),
    ('SGD', {'lr': 0.1, 'weight_decay': 0.01}),
    ('SGD', {'lr': 0.05, 'momentum': 0.9}),
    ('SGD', {'lr': 0.05, 'momentum': 0.9, 'dampening': 0.3, 'weight_decay': 0.02}),
    ('SGD', {'lr': 0.05, 'momentum': 0.9, 'nesterov': True, 'weight_decay': 0.01}),
    ('SGD', {'lr': 0.01, 'momentum': 0.5, 'maximize': True}),
    ('Adam', {'lr': 0.01}),
    ('Adam', {'lr': 0.01, 'weight_decay': 0.1}),
    ('Adam', {'lr': 0.02, 'betas': [0.8, 0.95], 'eps': 1e-4}),
    ('AdamW', {'lr': 0.01}),
    ('AdamW', {'lr': 0.01, 'weight_decay': 0.1, 'betas': [0.7, 0.9]}),
    ('AdamW', {'lr': 0.005, 'maximize': True}),
]


def loss_of(w, b, x, y):
    return ((x @ w + b).tanh() - y).square().mean()


def main():
    torch.manual_seed(0)
    start = {'w': torch.randn(4, 3), 'b': torch.randn(3), 'x': torch.randn(8, 4), 'y': torch.randn(8, 3)}
    out = {'torch': torch.__version__, **{k: v.tolist() for k, v in start.items()}, 'cases': []}
    for name, options in CASES:
        w, b = (start[k].clone().requires_grad_() for k in 'wb')
        # The bias has a group of its own with another rate and no decay; it gets its first gradient at step 5.
        groups = [{'params': [w]}, {'params': [b], 'lr': options['lr'] / 2, 'weight_decay': 0}]
        optimizer = getattr(torch.optim, name)(groups, **options)
        for step in range(20):
            optimizer.zero_grad()
            loss_of(w, b if step >= 5 else b.detach(), start['x'], start['y']).backward()
            optimizer.step()
        out['cases'].append({'name': name, 'options': options, 'w': w.tolist(), 'b': b.tolist()})

    grads = [torch.randn(4, 3), torch.randn(3) * 3]
    tensors = [torch.zeros_like(g, requires_grad=True) for g in grads]
    clip = {'grads': [g.tolist() for g in grads], 'max': 1.5}
    for t, g in zip(tensors, grads):
        t.grad = g.clone()
    clip['norm'] = torch.nn.utils.clip_grad_norm_(tensors, clip['max']).item()
    clip['clipped'] = [t.grad.tolist() for t in tensors]
    out['clip'] = clip
    pathlib.Path(__file__).with_name('optim.json').write_text(json.dumps(out) + '\n')


main()
