"""Which names a pickle may use, and for what: the policy of `pickle_walk`, as tables to read.

Our reader calls nothing, so nothing that a file names can harm it. But its answer "this can be looked at" is taken for
"this can be loaded", so whatever would run code in a program that unpickles the file is refused. A name can be used in
four ways, from harmless to dangerous:

1. It stands as a value (a class in a configuration). Unpickling imports its module, no more. Of Python's own modules,
   torch and numpy only `VALUES` and what lies below `VALUE_PREFIXES` may; of other programs any.
2. An object of it is made empty and given its state (NEWOBJ, BUILD), as unpickling makes objects of ordinary classes.
   Only the class's own `__new__` and `__setstate__` could run. Of Python's own modules, torch and numpy only `OBJECTS`
   and what lies below `OBJECT_PREFIXES` may, of other programs any class: `ForeignObject` stands for it.
   Never with a function or a class as an argument of its making.
3. It is called with arguments (REDUCE). Of Python's own modules, torch and numpy only what `pickle_arguments` names
   may, each with the arguments that its own module gives it.
4. A class of another program is called, as pickling writes the members of enumerations, kinds of containers and small
   objects. Which may, and with what, stands in `foreign_calls`. A function of another program never is.

`functools.partial` keeps a call for later. It may hold what is named for a value, and no known way to run a command.

Names with dots in them reach through modules to what those import (`torch.serialization` `os.system`); only those that
reach through classes may be (`Config.Mode`), which pickles of protocol 2 and 3 write as a call of `getattr`.
"""

from __future__ import annotations

import _compat_pickle
import re
from functools import lru_cache

from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.refusal import OF_PYTHON
from dittool.untrusted.tensor_spec import DTYPE_BYTES

STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.QInt8Storage": "int8",
    "torch.QUInt8Storage": "uint8",
    "torch.QInt32Storage": "int32",
    "torch.storage.UntypedStorage": "uint8",
}
DTYPES = {f"torch.{name}": name for name in DTYPE_BYTES}
_PACKED = {f"{sign}{bits}" for sign in ("int", "uint") for bits in range(1, 8)}
DTYPES_WITHOUT_NUMBERS_HERE = {
    f"torch.{name}"
    for name in (*_PACKED, "quint8", "qint8", "qint32", "quint4x2", "quint2x4", "float4_e2m1fn_x2", "bits8", "bits16")
}
PARTIAL = "functools.partial"
ORDERED_DICT, SIZE = "collections.OrderedDict", "torch.Size"
TENSOR_OLDEST, TENSOR = "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"
TENSOR_WITH_DTYPE = "torch._utils._rebuild_tensor_v3"
PARAMETER, PARAMETER_WITH_STATE = "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"
TENSOR_OF_A_KIND = "torch._tensor._rebuild_from_type_v2"
TENSORS = {TENSOR_OLDEST, TENSOR, TENSOR_WITH_DTYPE}
SPARSE, META = "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_meta_tensor_no_storage"
QUANTIZED, NESTED = "torch._utils._rebuild_qtensor", "torch._utils._rebuild_nested_tensor"
FROM_A_DEVICE = "torch._utils._rebuild_device_tensor_from_cpu_tensor"
# tensors whose values are not plain numbers, and what kind each is
WITHOUT_PLAIN_VALUES = {SPARSE: "sparse", META: "meta", QUANTIZED: "quantized", NESTED: "nested"}
REBUILT_BY_TORCH = {
    *(*TENSORS, *WITHOUT_PLAIN_VALUES),
    *(PARAMETER, PARAMETER_WITH_STATE, TENSOR_OF_A_KIND, FROM_A_DEVICE),
}
# What `torch.save` writes for tensors and plain values. A file with other names is no checkpoint of ours.
PLAIN = {ORDERED_DICT, SIZE, TENSOR, TENSOR_WITH_DTYPE, PARAMETER, *STORAGES, *DTYPES}

_BUILT_IN = ("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "str", "tuple")
_OF_NUMBERS = ("abs", "all", "any", "len", "max", "min", "round", "sorted", "sum")
# of a defaultdict's values
FACTORIES = {f"builtins.{name}" for name in _BUILT_IN} | {
    *(ORDERED_DICT, "collections.defaultdict", "collections.deque", "collections.Counter"),
    "torch.amp.grad_scaler._refresh_per_optimizer_state",
}
NUMPY_ARRAY, NUMPY_DTYPE = "numpy.ndarray", "numpy.dtype"
_NUMPY_SCALARS = {f"numpy.{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)}
_NUMPY_KINDS = {f"numpy.{name}" for name in ("bool_", "bool", "str_", "bytes_", "generic", "number", "floating")}
_NUMPY_KINDS |= {f"numpy.{name}" for name in ("integer", "complex64", "complex128", "longdouble")}
NUMPY_RANDOM = "numpy.random._pickle."
BIT_GENERATORS = {
    *("numpy.random._pcg64.PCG64", "numpy.random._pcg64.PCG64DXSM", "numpy.random._mt19937.MT19937"),
    *("numpy.random._philox.Philox", "numpy.random._sfc64.SFC64"),
}
SEED_SEQUENCE = "numpy.random.bit_generator.SeedSequence"
_NUMPY_FUNCTIONS = {
    f"numpy.{name}"
    for name in (
        *("abs", "absolute", "add", "clip", "cos", "divide", "exp", "log", "log1p", "max", "maximum", "mean", "median"),
        *("min", "minimum", "multiply", "prod", "sin", "sqrt", "square", "std", "subtract", "sum", "tanh", "var"),
    )
}
_QUANTIZATION = {f"torch.per_{what}_affine" for what in ("tensor", "channel")} | {"torch.per_channel_symmetric"}
VALUES = {
    *(
        *FACTORIES,
        *_NUMPY_SCALARS,
        *_NUMPY_KINDS,
        *DTYPES,
        NUMPY_ARRAY,
        "torch.Tensor",
        *_QUANTIZATION,
        *_NUMPY_FUNCTIONS,
    ),
    *(*BIT_GENERATORS, SEED_SEQUENCE, *DTYPES_WITHOUT_NUMBERS_HERE),
    *("torch._tensor.Tensor", "torch.nn.parameter.Parameter", "argparse.Namespace"),
    *(f"pathlib.{pure}{kind}Path" for pure in ("", "Pure") for kind in ("", "Posix", "Windows")),
    *("builtins.NoneType", "builtins.Ellipsis", "builtins.NotImplemented"),
    *(f"builtins.{name}" for name in _OF_NUMBERS),
}
VALUE_PREFIXES = (
    *("typing.", "torch.nn.", "torch._C._nn.", "torch.optim.", "math."),
    *("torch._C._VariableFunctionsClass.", "torch._C.TensorBase."),  # torch.sigmoid, torch.Tensor.add
)
OBJECTS = {
    *("argparse.Namespace", "uuid.UUID", "types.SimpleNamespace", "torch.torch_version.TorchVersion"),
    *("collections.UserDict", "collections.UserList", "collections.UserString", "collections.ChainMap"),
    *("torch.amp.grad_scaler.GradScaler", "torch.cuda.amp.grad_scaler.GradScaler"),
}
# What is made by a call, and then given a state that its own module writes
FILLED_BY_STATE = {
    *(NUMPY_DTYPE, PARTIAL, "random.Random", "torch._C.Generator"),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *(f"{NUMPY_RANDOM}__{kind}_ctor" for kind in ("generator", "bit_generator", "randomstate")),
}
OBJECT_PREFIXES = (
    *("torch.nn.modules.", "torch.nn.utils.", "torch.optim.", "torch.distributions."),
    *("torch.utils.data.sampler.", "torch.utils.data.dataset.", "torch.utils.data.distributed."),
)
GETATTR, UNION = "builtins.getattr", "_functools.reduce"
_GETATTR_OF = {"torch._C._VariableFunctionsClass", "torch._C.TensorBase"}
HANDED_OVER = {"_operator.or_", *_GETATTR_OF}  # may be an argument of a call that `pickle_arguments` names, no more
_GUARDED = OF_PYTHON | {"torch", "numpy"}  # packages of which only the tables' names may be used
_RENAMED = (
    ("builtins.long", "builtins.int"),
    ("numpy._core.", "numpy.core."),
    ("operator.", "_operator."),
    ("functools.reduce", UNION),
    ("pathlib._local.", "pathlib."),
)

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_OF_A_CLASS = re.compile(r"_*[A-Z]\w*", re.ASCII)
_NAME = re.compile(r"(_*[A-Z]\w*\.){0,4}(?!__)[A-Za-z_]\w*|__\w*", re.ASCII)
_LONGEST = 200  # characters of a name


def canonical(kind: ClassName) -> str:
    """Module and name by one spelling, whichever version of Python or numpy wrote it."""
    return _canonical(kind.module, kind.name)


@lru_cache(1024)
def _canonical(module: str, name: str) -> str:
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    full = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
    for old, new in _RENAMED:
        if full.startswith(old):
            full = new + full.removeprefix(old)
    return full


def is_plain(kind: ClassName) -> bool:
    """Whether it is written as a module and a name in it are, without a way through other modules."""
    short = len(kind.module) <= _LONGEST and len(kind.name) <= _LONGEST
    return short and bool(_MODULE.fullmatch(kind.module) and _NAME.fullmatch(kind.name))


def is_foreign(kind: ClassName) -> bool:
    """Whether another program than Python, torch and numpy defines it."""
    return kind.module.split(".")[0] not in _GUARDED


def is_class(kind: ClassName) -> bool:
    """Whether it is written as names of classes are: `Mode`, `Config.Mode`, not `mode`."""
    return all(_OF_A_CLASS.fullmatch(part) for part in kind.name.split("."))


def may_stand_as_value(kind: ClassName) -> bool:
    return canonical(kind) in VALUES or is_foreign(kind) or canonical(kind).startswith(VALUE_PREFIXES)


def may_be_made(kind: ClassName) -> bool:
    """Whether an object of it may be made empty and given a state."""
    if not is_foreign(kind):
        return canonical(kind) in OBJECTS or (canonical(kind).startswith(OBJECT_PREFIXES) and is_class(kind))
    return True


def attribute(of: object, name: object) -> ClassName | None:
    """What `getattr(of, name)` gives where it is a class in a class, or a function of torch's; else None."""
    if type(of) is not ClassName or type(name) is not str or name.startswith("__"):
        return None
    inside = ClassName(of.module, f"{of.name}.{name}")
    below = canonical(of) in _GETATTR_OF or canonical(of).startswith(OBJECT_PREFIXES)
    return inside if is_plain(inside) and is_class(of) and (is_foreign(of) or below) else None


def is_callable(value: object) -> bool:
    """Whether a value may be one that can be called: a class, a function, a call that is kept for later."""
    return type(value) is ClassName or is_object(value, PARTIAL)


def is_object(value: object, prefix: str) -> bool:
    return type(value) is ForeignObject and canonical(value.kind).startswith(prefix)
