"""torch: tensors in the memory of the processor, by type, shape and bytes; types, sizes and devices by their names.

A tensor elsewhere is refused, as moving it is the caller's choice, and so is one that is part of a computed graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...errors import RemoteProtocolError
from ..forms import MARK_PACKAGE, Decoding, Encoding, NoForm, Reducer, expect, ints_of, items_of, writable

__all__ = ["BUILDERS", "reducer_of"]

_TYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
_NAMES = {kind: name for name, kind in _TYPES.items() if not name.startswith(("q", "bits"))}


def _tensor_box(encoder: Encoding, tensor: Any) -> list[Any]:
    if tensor.device.type != "cpu":
        raise NoForm(f"a tensor on {tensor.device} does not travel: send its .cpu()")
    if tensor.layout != torch.strided or tensor.dtype not in _NAMES or tensor.is_quantized:
        raise NoForm(f"a tensor of layout {tensor.layout} and type {tensor.dtype} has no form: send its .to_dense()")
    if tensor.grad_fn is not None:
        raise NoForm("a tensor that was computed with gradients is part of a graph: send its .detach()")
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain.dim() and plain.stride(-1) != 1:  # with one item in it this counts as contiguous
        plain = plain.clone(memory_format=torch.contiguous_format)
    data = memoryview(plain.reshape(-1).view(torch.uint8).numpy()).tobytes() if plain.numel() else b""
    kind = "torch.Parameter" if type(tensor) is torch.nn.Parameter else "torch.Tensor"
    name = _NAMES[tensor.dtype]
    return [MARK_PACKAGE, kind, name, list(tensor.shape), bool(tensor.requires_grad), encoder.place_memory(data)]


def _read(decoder: Decoding, name: Any, shape: Any, place: Any) -> Any:
    kind = _TYPES.get(expect(str, name))
    lengths = ints_of(*items_of(shape))
    if kind is None or kind not in _NAMES or len(lengths) > 64 or not all(0 <= each < 2**48 for each in lengths):
        raise RemoteProtocolError("a tensor of a type or shape that is not known here")
    data = decoder.take(place)
    if math.prod(lengths) * kind.itemsize != len(data):
        raise RemoteProtocolError("the bytes of a tensor do not fit its shape")
    if not len(data):
        return torch.empty(lengths, dtype=kind)
    return torch.frombuffer(writable(data), dtype=torch.uint8).view(kind).reshape(lengths)


def _make_tensor(decoder: Decoding, name: Any, shape: Any, grad: Any, place: Any) -> Any:
    tensor = _read(decoder, name, shape, place)
    return tensor.requires_grad_() if expect(bool, grad) else tensor


def _make_parameter(decoder: Decoding, name: Any, shape: Any, grad: Any, place: Any) -> Any:
    return torch.nn.Parameter(_read(decoder, name, shape, place), requires_grad=expect(bool, grad))


def _make_type(_: Decoding, name: Any) -> Any:
    return _TYPES[expect(str, name)]


def _make_device(_: Decoding, text: Any) -> Any:
    if len(expect(str, text)) > 64:
        raise RemoteProtocolError("the name of a device has at most 64 characters")
    return torch.device(text)


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a class of torch itself."""
    if cls is torch.Tensor or cls is torch.nn.Parameter:
        return _tensor_box
    if cls is torch.Size:
        return lambda _, value: [MARK_PACKAGE, "torch.Size", *value]
    if cls is torch.dtype:
        return lambda _, value: [MARK_PACKAGE, "torch.dtype", str(value).removeprefix("torch.")]
    if cls is torch.device:
        return lambda _, value: [MARK_PACKAGE, "torch.device", str(value)]
    return None


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch.Tensor": _make_tensor,
    "torch.Parameter": _make_parameter,
    "torch.Size": lambda _, *lengths: torch.Size(ints_of(*lengths)),
    "torch.dtype": _make_type,
    "torch.device": _make_device,
}
