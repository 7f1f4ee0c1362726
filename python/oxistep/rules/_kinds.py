"""Of what kind the states of a rule are: what a state must be able to hold that is kept in 8 bits, or in bfloat16.

A state is told from all branches of its rule at once, so that it is of one kind from the first step to the last.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Literal, NamedTuple

import numpy as np

from oxistep.rules._graph import Kind as KindOfValue
from oxistep.rules._graph import Node
from oxistep.rules._listing import SHAPE
from oxistep.rules._operations import OPERATIONS
from oxistep.rules._program import Program
from oxistep.rules._source import MISSING, Source
from oxistep.rules._trace import Facts, Trace, Undecided
from oxistep.rules._tracing import run

__all__ = ["Kind", "kinds_of", "kinds_of_rule"]

MOST = 256
"""So often a rule is run to see its branches: seven questions that hang together in no way."""

Name = tuple[str, Any]
"""What is kept from step to step: ``("state", name)`` or ``("group", name)``."""


class Kind(NamedTuple):
    """What a state holds.

    ``"magnitude"``: nothing below zero, whatever the gradients are.
    ``"fine"``: a magnitude that goes on in itself times something that hangs on the gradient, or by which such a state
    is divided or multiplied: errors grow there.
    ``"relative"``: numbers of either sign that the update divides by the root of the magnitude ``of``, or what hangs on
    that.
    ``"signed"``: other numbers of either sign, which start at zero.
    ``"exact"``: what must stay as it is: weights, and what lost digits would turn into NaN.
    """

    name: Literal["magnitude", "fine", "signed", "relative", "exact"]
    of: str | None = None


EXACT = Kind("exact")


def kinds_of_rule(
    rule: Any, hyperparameters: Mapping[str, Any] | None = None, shape: tuple[int, ...] = SHAPE
) -> dict[str, Kind]:
    """The kinds of a rule's states, from all branches that it has.

    Both ways are followed at every `if` on a number: a step, a norm, and a hyperparameter too, whatever it is now. (A
    learning rate may be zero in the first step of a schedule.) So the answer hangs on nothing that changes within a
    run: on the rule, on hyperparameters that are no numbers, on how many numbers a tuple has, and on the shape where
    the rule asks for it; not on what was traced before. It may name states that other numbers would bring.

    A branch that raises takes no step, and counts for nothing. Where branches do not come to an end, in a rule that
    asks for a whole number (``int(s.step)``) or has too many `if`, all states are exact; those that were not seen on
    the way are missing, so what is missing is exact.

    Args:
        rule: a `Source`, a class of NumPy's that has one, or what ``oxistep.rule`` made.
        hyperparameters: by name; a param group does. The others have their defaults.
        shape: of the parameter.

    Returns:
        the kind of each state of the parameter's shape, by name.

    Raises:
        TypeError: for a class without a rule; for a hyperparameter that is missing, or of another kind than its
            default. What every branch raises is raised.
    """
    source = _source_of(rule)
    given = hyperparameters or {}
    values = {name: given.get(name, one.default) for name, one in source.hyperparameters.items()}
    if lacks := [name for name, value in values.items() if value is MISSING]:
        raise TypeError(f"rule {source.name}: {lacks[0]} has no default: give it")
    programs, seen, ended = _branches(source, source.read(values, "").values, Facts(shape))
    return kinds_of(programs) if ended else dict.fromkeys(seen, EXACT)


def kinds_of(programs: Iterable[Program]) -> dict[str, Kind]:
    """The kinds of the states that some programs have together: each is a step that may come after any other.

    Args:
        programs: of one rule, as ``rule.program()`` lists them. (Which follows hyperparameters the way that they lead
            now; ``kinds_of_rule`` follows all ways.) Those that were left at a question count for nothing.

    Returns:
        the kind of each state of the parameter's shape, by name.
    """
    programs = [program for program in programs if program.question is None]
    starts: dict[Name, list[float | str]] = {}
    names: dict[str, None] = {}
    for program in programs:
        for op, table in (("state", program.states), ("group", program.of_group)):
            for name, state in table.items():
                starts.setdefault((op, name), []).append(state.initial)
                if state.kind.has_elements:
                    names[name] = None
    ranges, never_negative = _proven(programs, starts)
    weights = {name for name in names if any(isinstance(start, str) for start in starts["state", name])}
    while more := {name for program in programs for name in _copies(program, weights)} - weights:
        weights |= more
    exact = weights | {
        name for name in names if not _is_plain(starts["state", name], ("state", name) in never_negative)
    }
    for program, known in zip(programs, ranges, strict=True):
        exact |= _under_roots(program, known)
    magnitudes = [name for name in names if ("state", name) in never_negative and name not in exact]
    magnitudes.sort(key=lambda name: not name.endswith("exp_avg_sq"))  # the rest stays in order
    fine = set[str]().union(*_grown(set(magnitudes), programs))
    divided = _divided(names.keys() - exact, set(magnitudes), programs)
    kinds: dict[str, Kind] = {}
    for name in names:
        by = [other for other in magnitudes if (name, other) in divided]
        if name in exact:
            kinds[name] = EXACT
        elif name in magnitudes:
            kinds[name] = Kind("fine" if name in fine else "magnitude")
        else:
            kinds[name] = Kind("relative", by[0]) if by else Kind("signed")
    return kinds


def _source_of(rule: Any) -> Source:
    if isinstance(rule, Source):
        return rule
    source = getattr(rule, "_source", None) or getattr(rule, "_oxistep_source", None)  # of oxistep.rule, of NumPy's
    if isinstance(source, Source):
        return source
    raise TypeError(f"{rule!r} has no rule")


def _branches(source: Source, values: Mapping[str, Any], facts: Facts) -> tuple[list[Program], dict[str, None], bool]:
    """The programs of all branches, the states that were seen on the way, and whether these are all branches."""
    programs: list[Program] = []
    seen: dict[str, None] = {}
    left: list[tuple[float, ...]] = [()]
    ended, wrong = True, None
    for _ in range(MOST):
        if not left:
            break
        answers = left.pop()
        try:
            trace: Trace = run(source.function, source.name, values, facts, answers)
            programs.append(Program(trace))
        except Undecided as undecided:
            trace = undecided.trace  # type: ignore[attr-defined]
            if trace.graph.nodes[undecided.node].kind is KindOfValue.FLAG:
                left += [(*answers, 1.0), (*answers, 0.0)]
            else:
                ended = False  # a whole number: as many ways as there are numbers
        except Exception as error:  # as the step does that comes this way
            wrong = error
            continue
        seen |= {name: None for name, state in trace.states.items() if state.kind.has_elements}
    if wrong is not None and not programs:
        raise wrong
    return programs, seen, ended and not left


def _is_plain(starts: list[float | str], never_negative: bool) -> bool:
    """Whether a state starts as something that few bits hold: zeros; another number only where signs are not wanted."""
    return len(set(starts)) == 1 and (starts[0] == 0 or never_negative)


# ---- signs ----


class Range(NamedTuple):
    """What is known of a value: its bounds, and whose product it has the sign of.

    NaN is within every range: it comes of gradients that are not finite. So is the wrong sign of a zero.
    """

    low: float = -math.inf
    high: float = math.inf
    factors: frozenset[int] | None = None
    """Nodes of unknown sign, the product of whose signs is the value's; None: nobody knows."""
    flipped: bool = False
    """Whether it is minus that product."""

    @property
    def never_negative(self) -> bool:
        return self.low >= 0


SHARE = Range(0.0, 1.0)
UNKNOWN = Range()


def _settled(low: float, high: float, factors: frozenset[int] | None = None, flipped: bool = False) -> Range:
    """A range, with what bounds and signs tell of each other."""
    low, high = (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)
    if factors is not None and not factors:
        low, high = (low, min(high, 0.0)) if flipped else (max(low, 0.0), high)
    if low >= 0 or high <= 0:
        return Range(low, high, frozenset(), low < 0)
    return Range(low, high, factors, flipped)


def _add(a: Range, b: Range) -> Range:
    return _settled(a.low + b.low, a.high + b.high)


def _neg(a: Range) -> Range:
    return _settled(-a.high, -a.low, a.factors, not a.flipped)


def _mul(a: Range, b: Range) -> Range:
    corners = [x * y if x and y else 0.0 for x in (a.low, a.high) for y in (b.low, b.high)]
    if a.factors is None or b.factors is None:
        return _settled(min(corners), max(corners))
    # what is there twice is a square
    return _settled(min(corners), max(corners), a.factors ^ b.factors, a.flipped != b.flipped)


def _inverse(a: Range) -> Range:
    if a.low >= 0:
        return a._replace(low=1 / a.high if a.high else math.inf, high=1 / a.low if a.low else math.inf)
    if a.high <= 0:
        return _neg(_inverse(_neg(a)))
    return a._replace(low=-math.inf, high=math.inf)


def _either(a: Range, b: Range) -> Range:
    alike = a.factors == b.factors and a.flipped == b.flipped
    return _settled(min(a.low, b.low), max(a.high, b.high), a.factors if alike else None, a.flipped)


def _lerp(start: Range, end: Range, weight: Range) -> Range:
    if weight.low >= 0 and weight.high <= 1:
        return _either(start, end)
    return _add(start, _mul(weight, _add(end, _neg(start))))


def _pow(a: Range, b: Range) -> Range:
    if a.low >= 0:
        small = (a.high <= 1 and b.low >= 0) or (a.low >= 1 and b.high <= 0)
        return _settled(1.0 if a.low >= 1 and b.low >= 0 else 0.0, 1.0 if small else math.inf)
    if not _is_whole(b):
        return UNKNOWN
    return _settled(-math.inf, math.inf, a.factors, a.flipped) if b.low % 2 else _settled(0.0, math.inf)


def _is_whole(a: Range) -> bool:
    """Whether it is one whole number."""
    return a.low == a.high and a.low % 1 == 0


def _rising(name: str, low: float = -math.inf, *, odd: bool = False) -> Callable[[Range], Range]:
    """Of an operation that grows with its operand, which is no less than ``low``; odd: it keeps the sign."""

    def call(a: Range) -> Range:
        with np.errstate(all="ignore"):
            least, most = (float(OPERATIONS[name].numpy(np.float64(max(x, low)))) for x in (a.low, a.high))
        return _settled(least, most, a.factors if odd else None, a.flipped)

    return call


def _abs(a: Range) -> Range:
    low = 0.0 if a.low < 0 < a.high else min(abs(a.low), abs(a.high))
    return _settled(low, max(abs(a.low), abs(a.high)))


RANGES: dict[str, Callable[..., Range]] = {
    "add": _add,
    "sub": lambda a, b: _add(a, _neg(b)),
    "mul": _mul,
    "div": lambda a, b: _mul(a, _inverse(b)),
    "pow": _pow,
    "neg": _neg,
    "abs": _abs,
    "sqrt": _rising("sqrt", 0.0),
    "exp": _rising("exp"),
    "log": _rising("log", 0.0),
    "cos": lambda a: _settled(-1.0, 1.0),
    "tanh": _rising("tanh", odd=True),
    "cbrt": _rising("cbrt", odd=True),
    "sign": _rising("sign", odd=True),
    "floor": _rising("floor"),
    "minimum": lambda a, b: _settled(min(a.low, b.low), min(a.high, b.high)),
    "maximum": lambda a, b: _settled(max(a.low, b.low), max(a.high, b.high)),
    "fma": lambda a, b, c: _add(_mul(a, b), c),
    "lerp": _lerp,
    "addcmul": lambda a, b, c, value: _add(a, _mul(value, _mul(b, c))),
    "addcdiv": lambda a, b, c, value: _add(a, _mul(value, _mul(b, _inverse(c)))),
    "where": lambda condition, a, b: _either(a, b),
    "mod": lambda a, b: _settled(0.0, b.high) if b.low >= 0 else UNKNOWN,
    "fill": lambda a: a,
}
"""Of each operation on ranges; what is not here is unknown."""


def _ranges(program: Program, never_negative: Set[Name]) -> list[Range]:
    """The range of each node, if what is kept under these names is not negative."""
    nodes = program.graph.nodes
    ranges: list[Range] = []
    for i, node in enumerate(nodes):
        of = [ranges[k] for k in node.args]
        if node.op in RANGES:
            one = RANGES[node.op](*of)
        elif node.op in OPERATIONS and OPERATIONS[node.op].is_flag:
            one = SHARE
        elif node.op == "reduce":
            sign = _mul(of[0], of[-1]) if node.what == "dot" else _abs(of[0]) if node.what == "max_abs" else of[0]
            one = _settled(0.0 if sign.low >= 0 else -math.inf, 0.0 if sign.high <= 0 else math.inf)
        else:
            one = _given(node, never_negative)
        if node.op in ("sub", "div"):
            one = _compared(one, node, nodes, ranges)
        ranges.append(one if one.factors is not None else one._replace(factors=frozenset((i,)), flipped=False))
    return ranges


def _given(node: Node, never_negative: Set[Name]) -> Range:
    """What is known of something that is given.

    Nobody knows what a hyperparameter will be. Most are rates, weights of means or small numbers, and optimizers check
    betas: each is taken for 0 to 1, so that it, ``1 - beta`` and ``1 - beta**s.step`` are not negative.
    """
    match node.op:
        case "hyper":
            return SHARE
        case "constant":
            value = float.fromhex(node.what)
            return UNKNOWN if math.isnan(value) else _settled(value, value)
        case "step":
            return _settled(1.0, math.inf)
        case "numel":
            return _settled(0.0, math.inf)
        case "state" | "group" if (node.op, node.what) in never_negative:
            return _settled(0.0, math.inf)
    return UNKNOWN  # a total too: other parameters may come another way


def _compared(one: Range, node: Node, nodes: list[Node], ranges: list[Range]) -> Range:
    """What a difference or a quotient is besides if its operands are one above the other."""
    a, b = node.args
    least, most = _is_at_most(a, b, nodes, ranges), _is_at_most(b, a, nodes, ranges)
    if node.op == "sub" and (least or most):
        return _settled(max(one.low, 0.0) if most else one.low, min(one.high, 0.0) if least else one.high)
    of, by = ranges[a], ranges[b]
    if node.op == "div" and ((least and of.low >= 0 and by.low >= 0) or (most and of.high <= 0 and by.high <= 0)):
        return _settled(0.0, min(one.high, 1.0))
    return one


def _is_at_most(a: int, b: int, nodes: list[Node], ranges: list[Range], depth: int = 4) -> bool:
    """Whether one value is never more than another, as far as bounds and the last operations tell.

    That is enough for the weights of means that correct themselves: (beta**step - beta) / (beta**step - 1), or
    beta * (1 - beta**(step - 1)) / (1 - beta**step), is never more than 1.
    """
    if a == b or ranges[a].high <= ranges[b].low:
        return True
    if depth == 0:
        return False

    def at_most(a: int, b: int) -> bool:
        return _is_at_most(a, b, nodes, ranges, depth - 1)

    def is_share(i: int) -> bool:
        return ranges[i].low >= 0 and ranges[i].high <= 1

    match nodes[a], nodes[b]:
        case Node(op="sub", args=(x, u)), Node(op="sub", args=(y, v)) if x == y:
            return at_most(v, u)
        case Node(op="pow", args=(x, u)), Node(op="pow", args=(y, v)) if x == y and is_share(x):
            return at_most(v, u)
        case Node(op="pow", args=(x, u)), _ if x == b and is_share(x):
            return ranges[u].low >= 1
        case Node(op="sub", args=(x, u)), _ if x == b:
            return ranges[u].low >= 0
        case Node(op="mul", args=(x, y)), _:
            return any(is_share(u) and ranges[v].low >= 0 and at_most(v, b) for u, v in ((x, y), (y, x)))
    return False


def _proven(programs: list[Program], starts: Mapping[Name, list[float | str]]) -> tuple[list[list[Range]], set[Name]]:
    """What is never negative, and the ranges that follow: by induction over steps, for all that is kept together."""
    assumed = {
        name
        for name, ones in starts.items()
        if all(isinstance(one, float | int) and 0 <= one < math.inf for one in ones)
    }
    while True:
        ranges = [_ranges(program, assumed) for program in programs]
        wrong = {
            (op, name)
            for program, known in zip(programs, ranges, strict=True)
            for op, table in (("state", program.states), ("group", program.of_group))
            for name, state in table.items()
            if not known[state.value].never_negative
        }
        if not wrong & assumed:
            return ranges, assumed
        assumed -= wrong


# ---- what must not be compressed ----


def _under_roots(program: Program, ranges: list[Range]) -> set[str]:
    """States of which a root or logarithm is taken that is defined only while they fit each other: a variance, as the
    mean of squares less the square of the mean, is negative once they are rounded, and its root NaN."""
    nodes = program.graph.nodes
    found: set[str] = set()
    for node in nodes:
        is_root = node.op in ("sqrt", "log") or (node.op == "pow" and not _is_whole(ranges[node.args[1]]))
        if is_root and ranges[node.args[0]].low < 0:
            cone = program.graph.cone([node.args[0]], elements=True)
            found |= {nodes[i].what for i in cone if nodes[i].op == "state"}
    return found


# Operands that a value goes on in as itself, plus or less something.
CARRIED = {
    "add": (0, 1),
    "sub": (0, 1),
    "neg": (0,),
    "minimum": (0, 1),
    "maximum": (0, 1),
    "lerp": (0, 1),
    "where": (1, 2),
    "fma": (2,),
    "addcmul": (0,),
    "addcdiv": (0,),
}


def _copies(program: Program, weights: Set[str]) -> set[str]:
    """States that become the parameter, or one of the states that are weights, plus or less something.

    The parameter comes into a gradient as weight decay does, times a small number; into a copy or a mean of weights
    as itself. Decayed by ``1 - lr * weight_decay`` it still is, and so is it times a mean's ``1 - beta``.
    """
    nodes = program.graph.nodes
    copy: list[bool] = []
    near_one: list[bool] = []
    for node in nodes:
        args = node.args
        is_one = node.op == "constant" and float.fromhex(node.what) == 1
        if node.op in ("add", "sub"):
            is_one = any(nodes[i].op == "constant" and near_one[i] for i in args)
        elif node.op in ("mul", "div", "fill", "where"):
            is_one = all(near_one[i] for i in args[node.op == "where" :])
        near_one.append(is_one)
        comes = node.op == "param" or (node.op == "state" and node.what in weights)
        if node.op in ("mul", "div", "fma"):
            a, b = args[:2]
            comes = (copy[a] and near_one[b]) or (copy[b] and near_one[a] and node.op != "div")
        copy.append(comes or any(copy[args[i]] for i in CARRIED.get(node.op, ())))
    return {name for name, state in program.states.items() if state.kind.has_elements and copy[state.value]}


# ---- what is divided by what ----

# Of operations that multiply or divide elements: the factors, and the divisor.
PRODUCTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "mul": ((0, 1), None),
    "fma": ((0, 1), None),
    "addcmul": ((1, 2, 3), None),
    "div": ((0,), 1),
    "addcdiv": ((1, 3), 2),
    "atan2": ((0,), 1),
}


ROOTS = ("sqrt", "cbrt")
"""What is divided by a root of a magnitude is kept relative to its square root: whichever it is, no quotient becomes
larger than the block's others by more than the roots differ."""


GRADIENT = ""
"""Among names of states, which are never empty."""


def _grown(magnitudes: set[str], programs: list[Program]) -> tuple[set[str], set[str]]:
    """The magnitudes into which they go themselves times something that hangs on the gradient, and by which others.

    As Adadelta's mean of its own updates, each of which is in proportion to its root, by the mean of squares. An error
    is in all that comes then, and errors multiply.
    """
    grown: set[str] = set()
    by: set[str] = set()
    for program in programs:
        holds: list[set[str]] = []
        products: list[set[tuple[str, str]]] = []
        """Pairs of something, and what else was in a product of it."""
        for node in program.graph.nodes:
            is_condition = node.op in OPERATIONS and OPERATIONS[node.op].is_flag
            args = node.args if node.kind is KindOfValue.ELEMENTS and not is_condition else ()
            through = args[node.op == "where" :]
            own = {node.what} & magnitudes if node.op == "state" else {GRADIENT} if node.op == "grad" else set()
            holds.append(own.union(*(holds[k] for k in through)))
            places, divisor = PRODUCTS.get(node.op, ((), None))
            factors = [args[k] for k in places] if args else []
            operands = factors if divisor is None or not args else [*factors, args[divisor]]
            pairs = {
                (name, other)
                for k, factor in enumerate(factors)
                for name in holds[factor] - {GRADIENT}
                for j, operand in enumerate(operands)
                if j != k and GRADIENT in holds[operand]
                for other in holds[operand]
            }
            products.append(pairs.union(*(products[k] for k in through)))
        for name in magnitudes & program.states.keys():
            others = {other for own, other in products[program.states[name].value] if own == name}
            if others:
                grown.add(name)
                by |= others - {name, GRADIENT}
    return grown, by - grown


def _divided(names: set[str], magnitudes: set[str], programs: list[Program]) -> set[tuple[str, str]]:
    """Pairs of a mean and a magnitude by whose root the update of some program divides it, element by element."""
    pairs: set[tuple[str, str]] = set()
    means: set[str] = set()  # what holds the last gradient is none: nothing of it stays
    for program in programs:
        update = program.graph.cone([i for name, i in program.writes.items() if name == "p"], elements=True)
        holds: list[set[str]] = []
        """The states that each value hangs on, other than by conditions and by sums over all elements."""
        roots: list[set[str]] = []
        """Those on whose roots it hangs."""
        under: list[set[str]] = []
        """The magnitudes that something in it was divided by."""
        for i, node in enumerate(program.graph.nodes):
            args = node.args if node.kind is KindOfValue.ELEMENTS else ()
            through = args[node.op == "where" :]
            own = {node.what} if node.op == "state" else set()
            holds.append((own & names).union(*(holds[k] for k in through)))
            factors, divisor = PRODUCTS.get(node.op, ((), None)) if args else ((), None)
            rooted = holds[args[0]] if node.op in ROOTS and args else set()
            roots.append(rooted.union(*(roots[k] for k in through)))
            by = roots[args[divisor]] & magnitudes if divisor is not None else set()
            under.append(by.union(*(under[k] for k in through)))
            for k in factors if i in update else ():
                others = by.union(*(under[args[other]] for other in factors if other != k))
                pairs.update((name, other) for name in holds[args[k]] for other in others)
        means |= {
            name for name, state in program.states.items() if state.value != state.given and name in holds[state.value]
        }
    return {(name, other) for name, other in pairs if name in means}
