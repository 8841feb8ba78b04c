"""Why a network does not export, in one sentence: the operator, and the line of the network's own code that it is on.

torch's tracers raise a dozen kinds of exceptions, some of many pages, some without any place. Files are named from their package
on, never with a folder of this machine.
"""

import contextlib
import linecache
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

import torch
from torch import nn

from shared.errors import Malformed, ShoalError

_TOOLS = frozenset({"torch", "torchao", "torch_pruning", "onnx", "onnxscript", "onnx_ir", *sys.stdlib_module_names})
_OURS, _OUR_NETWORKS = "shared", "shared.learning.networks"
_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'|torch\.ops\.([\w.]+)|\b((?:aten|prims)[.:]+\w+)")
_ON_VALUES = re.compile(r"data-dependent|control flow|DataDependent|cannot be used as inputs", re.IGNORECASE)
_TRACE_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_BRANCH = "aten.item"  # what torch makes of a tensor's value becoming a number of Python
_MAX_CODE = 80
_MAX_DETAIL = 200


@contextlib.contextmanager
def explained(what: str = "the network does not export") -> Iterator[None]:
    """Raises `Malformed` for whatever torch raises inside."""
    try:
        yield
    except (ShoalError, MemoryError):
        raise
    except Exception as error:  # the tracers' kinds have no common base, and run the network's own code
        raise explain(error, what) from error


def explain(error: BaseException, what: str, *, line: str = "") -> Malformed:
    """`line` is the place if the caller knows it; otherwise it is looked for in the error."""
    root = list(_chain(error))[-1]  # what the others only wrap
    detail = str(root).strip().partition("\n")[0][:_MAX_DETAIL]
    return Malformed(_sentence(what, operator_in(error), line or _line_in(error)), detail=detail)


def operator_in(error: BaseException) -> str:
    """Such as "aten.erfinv"; empty if none is named."""
    for part in _chain(error):
        text = str(part)
        if found := _OPERATOR.search(text):
            return _plain(next(filter(None, found.groups())))
        if _ON_VALUES.search(text) or _ON_VALUES.search(type(part).__name__):
            return f"{_BRANCH} (the way on depends on a tensor's values)"
    return ""


def line_of_operator(network: nn.Module, example: torch.Tensor, operator: str) -> str:
    """Where `network` calls `operator` (an ATen or prims name, as `operator_in` has it); empty if that cannot be told.

    An int8 network has lost the lines of the code that it was made from, so the plain one is traced once more.
    """
    wanted = _letters(operator)
    with contextlib.suppress(Exception):  # the sentence does without the line
        program = torch.export.export(network.eval(), (example,))
        for graph in (program.graph, program.run_decompositions().graph):
            for node in graph.nodes:
                if node.op == "call_function" and _letters(_plain(str(node.target))) == wanted:
                    return line_in_trace(node.meta.get("stack_trace") or "")
    return ""


def line_in_trace(trace: str) -> str:
    """The innermost line of the network's own code in a stack trace as torch keeps it with an operator: of `forward` methods
    only, so an operator in a function that one calls is found at the call.
    """
    for path, number in reversed(_TRACE_LINE.findall(trace)):
        names = [name for name, module in list(sys.modules.items()) if getattr(module, "__file__", None) == path]
        name = min(names, key=len, default="")
        if not path.startswith("<") and not _is_tool(name or path):
            return _place(name, path, int(number))
    return ""


def with_line(error: Malformed, line: str) -> Malformed:
    return Malformed(_sentence("the network does not export", "", line, error.message), detail=error.detail)


def _sentence(what: str, operator: str, line: str, reason: str = "") -> str:
    parts = [reason, f"operator {operator}" if operator else "", line]
    return f"{what}: {', '.join(filter(None, parts)) or 'torch does not say where'}"


def _line_in(error: BaseException) -> str:
    for part in _chain(error):
        for frame, number in reversed(list(traceback.walk_tb(_trace(part)))):
            name, path = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
            if not path.startswith("<") and not _is_tool(name):
                return _place(name, path, number)
        if line := line_in_trace(str(part)):
            return line
    return ""


def _trace(error: BaseException) -> TracebackType | None:
    return error.__traceback__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_tool(name: str) -> bool:
    if "/" in name or "\\" in name:  # a file of no module: torch's generated code, or a script
        return any(f"{tool}/" in name.replace("\\", "/") for tool in ("torch", "torchao"))
    top = name.partition(".")[0]
    return top in _TOOLS or (top == _OURS and not name.startswith(_OUR_NETWORKS))


def _place(name: str, path: str, number: int) -> str:
    parts = path.replace("\\", "/").split("/")
    depth = 1 if name in ("", "__main__") else name.count(".") + 1 + (parts[-1] == "__init__.py")
    code = linecache.getline(path, number).strip()[:_MAX_CODE]
    return f"{'/'.join(parts[-depth:])} line {number}" + (f": {code}" if code else "")


def _plain(operator: str) -> str:
    """Without the overload: "aten.erfinv.default" and "aten::erfinv" are "aten.erfinv"."""
    return ".".join(operator.replace("::", ".").split(".")[:2])


def _letters(operator: str) -> str:
    """ATen's erfinv is prims' erf_inv."""
    return operator.rpartition(".")[2].replace("_", "")
