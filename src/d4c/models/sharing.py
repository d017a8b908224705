"""Copies of models that share their tensors: as changeable as any other, at the cost of the modules alone."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def sharing_copy(model: Model) -> Model:
    """A copy whose parameters and buffers are the model's own, until one of them is replaced.

    Nothing may write into the shared tensors; put others in their place (`replace_parameter`, or assignment of a
    buffer).
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module another parameter of a name; who shared the old one keeps it."""
    setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))
