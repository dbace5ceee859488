"""pydantic: models by their fields, URLs by their text; secrets are refused.

A model travels as what it holds, not as what its serializers make of it: each field's own value, so that a subclass in
a field stays one, and beside them which fields were set, extra fields and private attributes. The receiver's validator
makes the model again; what would come out changed is refused.
"""

from __future__ import annotations

import collections
import enum
import inspect
from decimal import Decimal
from typing import Any

import pydantic
import pydantic.networks
import pydantic_core

from ...errors import RemoteProtocolError
from ..forms import (
    FLAT_TYPES,
    MARK_PACKAGE,
    MAX_NUMBER_BYTES,
    Decoding,
    Encoding,
    NoForm,
    Reducer,
    all_str,
    expect,
    name_of,
)
from ..shapes import Shape, check_unchanged, is_same

__all__ = ["BUILDERS", "model_shape", "reducer_of"]

MAX_URL_CHARS = 65_536
MAX_VALIDATED_ITEMS = 1 << 20  # of a range, or an array of empty rows, that pydantic gets: it may make a list of it

_SECRETS = (pydantic.SecretStr, pydantic.SecretBytes, *filter(None, [getattr(pydantic, "Secret", None)]))
_URL_BASES = tuple(cls for module in (pydantic.networks,) for name in ("_BaseUrl", "_BaseMultiHostUrl")
                   if isinstance(cls := getattr(module, name, None), type))  # fmt: skip
_URLS: dict[str, Any] = {
    f"{module.__name__}:{name}": cls
    for module in (pydantic.networks, pydantic_core)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and (cls in (pydantic_core.Url, pydantic_core.MultiHostUrl) or issubclass(cls, _URL_BASES))
}
_URL_NAMES = {cls: name for name, cls in _URLS.items()}
_BY_NAME = "by_name" in inspect.signature(pydantic.BaseModel.model_validate).parameters  # from pydantic 2.11 on


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of an URL or a secret; models have a shape instead."""
    if issubclass(cls, _SECRETS):
        return _refuse_secret
    name = _URL_NAMES.get(cls)
    return None if name is None else lambda _, value: [MARK_PACKAGE, "pydantic.url", name, str(value)]


def _refuse_secret(_: Encoding, value: Any) -> Any:
    name = type(value).__name__
    raise NoForm(
        f"a {name} is not sent unasked: send its get_secret_value(), or allow it on both sides by "
        f"register_type({name}, to_data={name}.get_secret_value, from_data={name})"
    )


def _make_url(_: Decoding, name: Any, text: Any) -> Any:
    cls = _URLS.get(expect(str, name))
    if cls is None or len(expect(str, text)) > MAX_URL_CHARS:
        raise RemoteProtocolError("an URL of a class that is not known here, or one that is too long")
    return cls(text)


BUILDERS = {"pydantic.url": _make_url}


# ---------------------------------------------------------------- models


def model_shape(cls: Any) -> Shape | None:
    """The shape of a pydantic model, None for any other class."""
    if not issubclass(cls, pydantic.BaseModel):
        return None
    fields = cls.__pydantic_fields__
    is_root = issubclass(cls, pydantic.RootModel)

    def take(value: Any) -> tuple[Any, ...]:
        held = value.__dict__
        missing = [name for name in fields if name not in held]
        if missing:  # made by model_construct
            raise NoForm(f"this {name_of(cls)} has no {', '.join(missing)}")
        plain = {name: held[name] for name in fields}
        more: dict[str, Any] = {}
        if value.__pydantic_fields_set__ != fields.keys():
            more["set"] = sorted(value.__pydantic_fields_set__)
        private = value.__pydantic_private__ or {}
        if private:
            undefined = pydantic_core.PydanticUndefined
            more["private"] = {name: item for name, item in private.items() if item is not undefined}
        plain |= value.__pydantic_extra__ or {}
        if is_root:
            plain = plain["root"]
        return (plain, more) if more else (plain,)

    def make(data: Any, more: Any = None) -> Any:
        _check_effort([[data]])
        held = {} if more is None else expect(dict, more)
        given = _names_given(held)
        value = cls.__new__(cls)
        if is_root:
            named = {"root": data}
            cls.__pydantic_validator__.validate_python(data, self_instance=value)
        else:
            named = expect(dict, data)
            _validate(value, _to_validate(fields, named, given))
        _check_model(value, named)
        _set_more(value, held, named, given)
        return value

    return Shape(take, make)


def _names_given(more: dict[Any, Any]) -> set[str] | None:
    """The fields that were set, None: all. Only texts: numbers of one hash would make a set of them slow."""
    names = more.get("set")
    if names is None:
        return None
    if not all_str(expect(list, names)):
        raise ValueError(_NO_FIELD)
    return set(names)


_NO_FIELD = "a field was set that is not there"


def _to_validate(fields: Any, named: dict[str, Any], given: set[str] | None) -> dict[str, Any]:
    """The fields to make a model of: without those that have their default, which need not be what the type says."""
    if given is None:
        return dict(named)  # which a validator may change
    return {
        name: item
        for name, item in named.items()
        if name in given or name not in fields or not is_same(fields[name].default, item)
    }


def _validate(value: Any, named: dict[str, Any]) -> None:
    cls = type(value)
    if _BY_NAME:
        cls.__pydantic_validator__.validate_python(named, self_instance=value, by_name=True)
        return
    aliased = {_alias_of(cls.__pydantic_fields__, name): item for name, item in named.items()}
    cls.__pydantic_validator__.validate_python(aliased, self_instance=value)


def _alias_of(fields: Any, name: str) -> str:
    alias = fields[name].validation_alias if name in fields else None
    if alias is not None and not isinstance(alias, str):
        raise ValueError(f"field {name} has more than one alias: this needs pydantic 2.11 or newer")
    return alias or name


def _check_model(value: Any, sent: dict[str, Any]) -> None:
    held = value.__dict__ | (value.__pydantic_extra__ or {})
    for name, item in sent.items():
        if name not in held:
            raise ValueError(f"the model has no field {name!r}")
        if isinstance(item, enum.Enum) and is_same(held[name], item.value) and _uses_values(value):
            value.__dict__[name] = item  # it was assigned, or is a default: neither is validated
        else:
            check_unchanged(name, held[name], item)


def _uses_values(model: Any) -> bool:
    return bool(type(model).model_config.get("use_enum_values"))


def _set_more(value: Any, more: dict[str, Any], sent: dict[str, Any], given: set[str] | None) -> None:
    if given is not None:
        if not given <= sent.keys():
            raise ValueError(_NO_FIELD)
        object.__setattr__(value, "__pydantic_fields_set__", given)
    private = expect(dict, more.get("private", {}))
    for name, item in private.items():
        if name not in type(value).__private_attributes__:
            raise ValueError(f"the model has no private attribute {name!r}")
        value.__pydantic_private__[name] = item


_CONTAINERS = frozenset({list, dict, tuple, set, frozenset, collections.deque})


def _check_effort(pending: list[Any]) -> None:
    """Refuse what pydantic, which converts by itself, would make large: 10**999999999 of a Decimal, a list of a range.

    ``pending``: containers of what is looked at, at every depth.
    """
    while pending:
        box = pending.pop()
        items = (*box, *box.values()) if type(box) is dict else box
        for kind in set(map(type, items)) - FLAT_TYPES:
            if kind in _CONTAINERS:
                pending += [item for item in items if type(item) is kind]
            elif any(type(item) is kind and _would_grow(item) for item in items):
                raise RemoteProtocolError(f"a {name_of(kind)} too large for a field of another type")


def _would_grow(item: Any) -> bool:
    kind = type(item)
    if kind is Decimal:
        return bool(item.is_finite() and abs(item.adjusted()) > MAX_NUMBER_BYTES)
    if kind is range:
        return bool(item != item[:MAX_VALIDATED_ITEMS])
    # An array of 2**40 empty rows takes no memory.
    return kind.__name__ == "ndarray" and not item.size and bool(max(item.shape) > MAX_VALIDATED_ITEMS)
