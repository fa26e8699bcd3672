"""Raw pointers to columns for numba: the one place that speaks to its internals.

Imported by `memdesc.model.compiled` where compilation is on, and by nobody else.

Reading through a pointer gives an int64, whatever the width of the column (uint64 for uint64),
because numba turns a sum of two uint32 into uint64, and that with an int64 into a float.
"""

# mypy: disable-error-code="no-untyped-call, misc, untyped-decorator, import-untyped"

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = ["PointerType", "keep_apart", "pointers"]


class PointerType(types.Type):
    """A pointer to integers of `dtype`, the column `column` of a named tuple.

    Columns of different names do not overlap; the optimiser is told so.
    """

    def __init__(self, dtype: Any, column: str) -> None:
        self.dtype = dtype
        self.column = column
        super().__init__(name=f"memdesc.pointer({dtype}, {column})")

    @property
    def key(self) -> Any:
        return self.dtype, self.column

    @property
    def element(self) -> Any:
        """What reading gives."""
        return types.uint64 if self.dtype == types.uint64 else types.int64


@register_model(PointerType)
class _PointerModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: PointerType) -> None:
        inner = manager.lookup(kind.dtype).get_data_type()
        super().__init__(manager, kind, inner.as_pointer())


@infer_global(operator.getitem)
class _ReadTemplate(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], PointerType):
            return signature(args[0].element, args[0], types.intp)
        return None


@infer_global(operator.setitem)
class _WriteTemplate(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 3 and isinstance(args[0], PointerType):
            return signature(types.void, args[0], types.intp, args[0].element)
        return None


@lower_builtin(operator.getitem, PointerType, types.intp)
def _read(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    value = builder.load(builder.gep(args[0], [args[1]]))
    value.set_metadata("tbaa", _tag(builder, kind.column))
    return context.cast(builder, value, kind.dtype, kind.element)


@lower_builtin(operator.setitem, PointerType, types.intp, types.Integer)
def _write(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    value = context.cast(builder, args[2], sig.args[2], kind.dtype)
    store = builder.store(value, builder.gep(args[0], [args[1]]))
    store.set_metadata("tbaa", _tag(builder, kind.column))
    return context.get_dummy_value()


def _tag(builder: Any, column: str) -> Any:
    """What type-based alias analysis is told of an access to `column`."""
    module, zero = builder.module, ir.Constant(ir.IntType(64), 0)
    root = module.add_metadata(["memdesc columns"])
    kind = module.add_metadata([column, root, zero])
    return module.add_metadata([kind, kind, zero])


@intrinsic
def pointers(typingctx: Any, state: Any) -> Any:
    """Columns as pointers: a named tuple of arrays becomes one of pointers."""
    if not isinstance(state, types.BaseNamedTuple):
        raise TypeError(f"not a named tuple of columns: {state}")
    named: Any = state
    columns = list(named)
    for name, column in zip(named.fields, columns, strict=True):
        if not (isinstance(column, types.Array) and column.layout == "C"):
            raise TypeError(f"{name} is not a C-contiguous array: {column}")
    owner = named.instance_class
    kinds = [
        PointerType(column.dtype, f"{owner.__name__}.{name}")
        for name, column in zip(named.fields, columns, strict=True)
    ]
    result = types.NamedTuple(kinds, owner)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = cgutils.unpack_tuple(builder, args[0], len(columns))
        data = [
            context.make_array(column)(context, builder, value).data
            for column, value in zip(columns, arrays, strict=True)
        ]
        return context.make_tuple(builder, sig.return_type, data)

    return result(state), codegen


@intrinsic
def keep_apart(typingctx: Any) -> Any:
    """Tell the optimiser not to copy the calling function into its callers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen
