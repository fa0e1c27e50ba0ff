"""Storages and tensors inside objects, and by persistent ids of other forms. Each with what its refusal must say."""

from __future__ import annotations

import struct

from tests.untrusted.disguised import FOREIGN, HOOKS, NAMESPACE, SYSTEM, called, named, raw, within
from tests.untrusted.handmade import number, storage, tensor, text


def persistent(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"tQ"


_FLOATS = b"ctorch\nFloatStorage\n"
_USUAL = (text("storage"), _FLOATS, text("0"), text("cpu"), number(4))
_NAN, _INFINITY, _FOUR = (b"G" + struct.pack(">d", value) for value in (float("nan"), float("inf"), 4.0))


def other_tensor(offset: bytes, shape: bytes, stride: bytes, grad: bytes = b"\x89", hooks: bytes = HOOKS) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + offset + shape + stride + grad + hooks + b"tR"


_FOUR_LONG, _STEP = number(4) + b"\x85", number(1) + b"\x85"
_ODD = "a tensor with arguments"
STORAGES = {
    "an id of too few parts": (persistent(*_USUAL[:4]), "a persistent id that is not a storage"),
    "an id of too many parts": (persistent(*_USUAL, b"N", b"N"), "a persistent id that is not a storage"),
    "an id that is a list": (b"](" + b"".join(_USUAL) + b"eQ", "a persistent id that is not a storage"),
    "an id that is text": (text("storage") + b"Q", "a persistent id that is not a storage"),
    "an id that is nothing": (b"NQ", "a persistent id that is not a storage"),
    "an id of an object": (FOREIGN + b"Q", "a persistent id that is not a storage"),
    "an id of ids": (persistent(*_USUAL)[:-1] + b"\x85Q", "a persistent id that is not a storage"),
    "an id of a module": (persistent(text("module"), SYSTEM, text("x"), text("y")), "global os.system"),
    "an id with a view": (persistent(*_USUAL, text("1") + number(0) + number(4) + b"\x87"), "a part of another"),
    "a class by its name": (persistent(_USUAL[0], text("FloatStorage"), *_USUAL[2:]), "a persistent id that is not"),
    "a stranger's class": (persistent(_USUAL[0], named("trainer.Storage"), *_USUAL[2:]), "a persistent id that is not"),
    "a key of bytes": (persistent(*_USUAL[:2], raw(b"0"), *_USUAL[3:]), "with the key b'0'"),
    "a key of a number": (persistent(*_USUAL[:2], number(0), *_USUAL[3:]), "with the key 0"),
    "a key of other digits": (persistent(*_USUAL[:2], text("٠"), *_USUAL[3:]), "with the key"),
    "a key of a path": (persistent(*_USUAL[:2], text("0/../../x"), *_USUAL[3:]), "with the key"),
    "a place of an object": (persistent(*_USUAL[:3], FOREIGN, number(4)), "on the device"),
    "a place on the disk": (persistent(*_USUAL[:3], text("/dev/sda"), number(4)), "on the device"),
    "a size of text": (persistent(*_USUAL[:4], text("4")), "storage '0' of '4'"),
    "a size of truth": (persistent(*_USUAL[:4], b"\x88"), "storage '0' of True"),
    "a size that is not a number": (persistent(*_USUAL[:4], _NAN), "storage '0' of nan"),
    "a size of a fraction": (persistent(*_USUAL[:4], _FOUR), "storage '0' of 4.0"),
    "a size of infinity": (persistent(*_USUAL[:4], _INFINITY), "storage '0' of inf"),
    "a size of none": (persistent(*_USUAL[:4], b"N"), "storage '0' of None"),
    "a size of 600 digits": (persistent(*_USUAL[:4], number(2**2000)), "storage '0' of 11"),
    "an offset that is not a number": (other_tensor(_NAN, _FOUR_LONG, _STEP), _ODD),
    "an offset of truth": (other_tensor(b"\x88", number(1) + b"\x85", _STEP), _ODD),
    "a shape that is not a number": (other_tensor(number(0), _NAN + b"\x85", _STEP), _ODD),
    "a shape of truth": (other_tensor(number(0), b"\x88\x85", _STEP), _ODD),
    "a shape of text": (other_tensor(number(0), text("4") + b"\x85", _STEP), _ODD),
    "a shape of an object": (other_tensor(number(0), FOREIGN, _STEP), _ODD),
    "a shape of a number": (other_tensor(number(0), number(4), number(1)), _ODD),
    "a stride that is not a number": (other_tensor(number(0), _FOUR_LONG, _NAN + b"\x85"), _ODD),
    "strides of zero": (tensor(storage(), shape=(2**30, 2**30), stride=(0, 0)), "a tensor of shape"),
    "strides that overlap": (tensor(storage(), shape=(3, 3), stride=(1, 0)), "a tensor of shape (3, 3)"),
    "strides that overlap far": (tensor(storage(), shape=(2,) * 40, stride=(0,) * 39 + (1,)), "a tensor of shape"),
    "strides that run over": (tensor(storage(), shape=(2, 2), stride=(2**62, 2**62)), "a tensor of shape (2, 2)"),
    "a gradient of an object": (other_tensor(number(0), _FOUR_LONG, _STEP, FOREIGN), _ODD),
    "hooks of a dict": (other_tensor(number(0), _FOUR_LONG, _STEP, hooks=b"}"), _ODD),
    "hooks of an object": (other_tensor(number(0), _FOUR_LONG, _STEP, hooks=FOREIGN), _ODD),
    "hooks with a function": (
        other_tensor(number(0), _FOUR_LONG, _STEP, hooks=HOOKS + number(0) + named("trainer.run") + b"s"),
        _ODD,
    ),
    "metadata with a call": (
        other_tensor(number(0), _FOUR_LONG, _STEP, hooks=HOOKS + SYSTEM + text("id") + b"\x85R"),
        "global os.system",
    ),
    "a large tensor in a Namespace": (within(tensor(storage(), shape=(2**28,)), NAMESPACE), "a tensor of shape"),
    "a large tensor in an object's list": (FOREIGN + tensor(storage(), shape=(2**28,)) + b"a", "a tensor of shape"),
    "a large tensor at the making": (
        named("trainer.State") + tensor(storage(count=2**40), shape=(2**40,)) + b"\x85\x81",
        "storage '0' of 1099511627776",
    ),
    "tensors of objects": (within(b"](" + other_tensor(FOREIGN, _FOUR_LONG, _STEP) + b"e"), _ODD),
    "a tensor of a stranger's kind with an object": (
        called("torch._tensor._rebuild_from_type_v2", named("trainer.build"), named("trainer.T"), b")", b"N"),
        "_rebuild_from_type_v2 with",
    ),
    "a tensor of another device": (
        called("torch._utils._rebuild_device_tensor_from_numpy", FOREIGN),
        "global torch._utils",
    ),
    "a sparse tensor": (called("torch._utils._rebuild_sparse_tensor", FOREIGN, b")"), "_rebuild_sparse_tensor with"),
    "a subclass that unwraps": (called("torch._utils._rebuild_wrapper_subclass", FOREIGN), "global torch._utils"),
    "a parameter with a state that runs": (
        called("torch._utils._rebuild_parameter_with_state", tensor(storage()), b"\x88", HOOKS, SYSTEM),
        "global os.system",
    ),
}
