"""Each node of a program as a function that computes it over whole arrays, NumPy's or torch's."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from oxistep.rules._graph import Graph, Kind
from oxistep.rules._operations import OPERATIONS, REDUCTIONS

__all__ = ["Instruction", "instruction"]

Instruction = Callable[[dict[int, Any], Any], Any]
"""``instruction(values, run)``: the values of its operands are there."""

LOGICAL = ("and", "or", "not")

# Python's own floats do the same as NumPy's where nothing can be divided by zero, and several times as fast.
PLAIN: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "abs": operator.abs,
}


def instruction(graph: Graph, i: int, torch: Any) -> Instruction:
    """What computes a node.

    Args:
        graph: of the program.
        i: the node.
        torch: the module, if arrays are its tensors.
    """
    node = graph.nodes[i]
    what, args, has_elements = node.what, node.args, node.kind.has_elements
    match node.op:
        case "constant":
            number = float.fromhex(what)
            return lambda values, run: number
        case "param":
            return lambda values, run: run.given.streams["p"]
        case "grad":
            return lambda values, run: run.given.streams["g"]
        case "hyper":
            return lambda values, run: run.given.numbers[what]
        case "step":
            return lambda values, run: run.given.step
        case "numel":
            return lambda values, run: run.given.numel
        case "group":
            return lambda values, run: run.given.of_group[what]
        case "state" if has_elements:
            return lambda values, run: run.given.streams[what]
        case "state":
            return lambda values, run: run.given.of_param[what]
        case "total":
            return lambda values, run: run.totals[what]
        case "fill":
            return lambda values, run: run.given.full(torch, float(values[args[0]]))
        case "reduce":
            reduce = _reduce_by_torch(torch) if torch is not None else _reduce_by_numpy
            return lambda values, run: reduce(what, [_plain(graph, k, values, run, torch) for k in args])
    if not has_elements:
        return _of_numbers(node.op, args, node.kind)
    return _of_elements(graph, node.op, args, torch)


def _of_numbers(op: str, args: tuple[int, ...], kind: Kind) -> Instruction:
    plain, operate = PLAIN.get(op), OPERATIONS[op].numpy
    if plain is not None and len(args) == 2:
        a, b = args
        return lambda values, run: plain(float(values[a]), float(values[b]))
    if plain is not None:
        return lambda values, run: plain(float(values[args[0]]))
    if kind is Kind.FLAG:
        return lambda values, run: bool(operate(*(np.float64(values[k]) for k in args)))
    return lambda values, run: float(operate(*(np.float64(values[k]) for k in args)))


def _of_elements(graph: Graph, op: str, args: tuple[int, ...], torch: Any) -> Instruction:
    operation = OPERATIONS[op]
    conditions = args if op in LOGICAL else args[:1] if op == "where" else ()
    plain = all(graph.nodes[k].kind in (Kind.ELEMENTS, Kind.NUMBER) for k in args)
    if torch is not None and plain and op not in (*LOGICAL, "where"):
        return lambda values, run: operation.torch(torch, *[values[k] for k in args])

    def operands(values: dict[int, Any], run: Any) -> list[Any]:
        found = [
            _condition(graph, k, values)
            if k in conditions and n < len(conditions)
            else _plain(graph, k, values, run, torch)
            for n, k in enumerate(args)
        ]
        if torch is None:
            dtype = np.dtype(run.given.type_of_arithmetic()).type
            return [dtype(v) if isinstance(v, float) else v for v in found]
        if op == "where":  # torch would take the type of two numbers from elsewhere
            dtype, device = run.given.type_of_arithmetic(), next(v.device for v in found if hasattr(v, "device"))
            found = [torch.full((), v, dtype=dtype, device=device) if type(v) is float else v for v in found]
            found[0] = torch.as_tensor(found[0], device=device)
        return found

    if torch is None:
        return lambda values, run: operation.numpy(*operands(values, run))
    return lambda values, run: operation.torch(torch, *operands(values, run))


def _condition(graph: Graph, k: int, values: dict[int, Any]) -> Any:
    """What is true of a value: that it is not zero."""
    return values[k] if graph.nodes[k].kind in (Kind.MASK, Kind.FLAG) else values[k] != 0


def _plain(graph: Graph, k: int, values: dict[int, Any], run: Any, torch: Any) -> Any:
    """A value as a number, or numbers: what is true counts as one."""
    value, kind = values[k], graph.nodes[k].kind
    if kind is Kind.FLAG:
        return float(value)
    if kind is Kind.MASK:
        dtype = run.given.type_of_arithmetic()
        return value.to(dtype) if torch is not None else value.astype(dtype)
    return value


def _reduce_by_numpy(name: str, arrays: list[Any]) -> float:
    return float(REDUCTIONS[name](*arrays))


def _reduce_by_torch(torch: Any) -> Callable[[str, list[Any]], float]:
    def reduce(name: str, arrays: list[Any]) -> float:
        doubles = [x.double() if isinstance(x, torch.Tensor) else x for x in arrays]
        if name == "max_abs":
            return float(doubles[0].abs().max()) if doubles[0].numel() else 0.0
        product = doubles[0] if name == "sum" else doubles[0] * doubles[1]
        return float(product.sum())

    return reduce
