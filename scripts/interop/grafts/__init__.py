"""Adapter folders of torchgraft in Python: what `adapters.py` is made of.

folder.py      the files of a folder, and which tensor belongs to what
increments.py  changes of weights, method by method
merge.py       folding them, and affine maps, into a state dict
forms.py       what stands beside the layers of a network
attention.py   learned keys and values in the attention of timm's transformers
prompts.py     learned tokens and pixels
hosts.py       where things are in the models of timm and transformers
plans.py       what a method sets where
attach.py      doing so, by hooks
"""

from .attach import attach
from .folder import Folder, NotRead, read
from .merge import merged_state_dict

__all__ = ["Folder", "NotRead", "attach", "merged_state_dict", "read"]
