"""Programs as the kernels are handed them: decoded and run again they give the same."""

import re
from pathlib import Path

import numpy as np
import pytest

import traced
from oxistep import rules
from oxistep.rules._encode import OPS, encode
from oxistep.rules._operations import OPERATIONS, REDUCTIONS
from oxistep.rules._source import Source

NAMES = {number: name for name, number in OPS.items()}
LEAVES = {"param": 0, "grad": 0, "state": 1, "input": 1, "constant": 1, "numel": 0}
ARITY = LEAVES | {name: o.arity for name, o in OPERATIONS.items()} | {"sum": 1, "dot": 2, "max_abs": 1, "fill": 1}


def decoded(encoded):
    """(operation, operands) of each node; operands of leaves are indices into tables."""
    flat, nodes = list(encoded.nodes), []
    while flat:
        name = NAMES[flat.pop(0)]
        n = 2 if name == "total" else ARITY[name]
        nodes.append((name, flat[:n]))
        del flat[:n]
    return nodes


class Decoded:
    """Runs an encoded program over arrays of float64, as its description says."""

    def __init__(self, encoded, streams, inputs, totals):
        self.encoded, self.values = encoded, []
        with np.errstate(all="ignore"):
            for name, operands in decoded(encoded):
                assert name in LEAVES or all(i < len(self.values) for i in operands[: 1 if name == "total" else None])
                self.values.append(self.compute(name, operands, streams, inputs, totals))

    def compute(self, name, operands, streams, inputs, totals):
        match name:
            case "param" | "grad":
                return streams["p" if name == "param" else "g"]
            case "state":
                return streams[self.encoded.states[operands[0]]]
            case "input":
                return inputs[self.encoded.inputs[operands[0]]]
            case "constant":
                return self.encoded.constants[operands[0]]
            case "numel":
                return float(streams["p"].size)
            case "total":
                return totals[operands[1]]
        args = [self.values[i] for i in operands]
        if name == "fill":
            return np.full_like(streams["p"], args[0])
        if name in REDUCTIONS:
            return float(REDUCTIONS[name](*args))
        args[: 1 if name == "where" else 0] = [args[0] != 0] if name == "where" else []
        result = OPERATIONS[name].numpy(*(np.asarray(x, np.float64) if name != "where" else x for x in args))
        return np.asarray(result, np.float64)

    def writes(self):
        streams = ("p", *self.encoded.states)
        pairs = zip(self.encoded.writes[::2], self.encoded.writes[1::2], strict=True)
        return {streams[stream]: self.values[node] for stream, node in pairs}


def lamb(p, g, s, lr=0.1, betas=(0.9, 0.99)):
    k = s.group.get("k", 2)
    s.group.k = k * 2
    s.m = betas[0] * s.m + (1 - betas[0]) * g
    s.d = s.get("d", 0.5) + rules.norm(g)
    u = np.where((s.m > 0) & (g > 0), s.m, s.d)
    s.flag = g > 0
    s.flat = s.flat + g
    s.flat = 3.0  # for each element
    ratio = rules.norm(p) / rules.maximum(rules.max_abs(u), 1e-3)
    return p - lr * k * ratio * u * rules.total(rules.sum(g)) + rules.total(g * g) + rules.mean(p)


@pytest.mark.parametrize(
    ("function", "hyperparameters"),
    [*((function, both | ours) for _, function, both, ours in traced.CASES), (lamb, {})],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_is_decoded_does_the_same(function, hyperparameters):
    random = np.random.default_rng(3)
    stepper = traced.Stepper(function, random.standard_normal((3, 4)), **hyperparameters)
    for _ in range(3):
        g = random.standard_normal((3, 4))
        program = stepper.find(g)
        given = stepper.given(program, g)
        totals = {key: 1.5 + n for n, key in enumerate(program.totals)}
        calls = {}
        encoded = encode(program, calls)
        tables = {
            "hyper": given.numbers,
            "group": given.of_group,
            "param": given.of_param,
            "step": {"step": given.step},
        }
        inputs = {(kind, name): tables[kind][name] for kind, name in encoded.inputs}
        ran = Decoded(encoded, given.streams, inputs, {calls[key]: value for key, value in totals.items()})
        run = traced.Run(program, given, totals)
        expected = dict(zip(program.writes, run.values(program.writes.values()), strict=True))
        assert ran.writes().keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(ran.writes()[name], np.asarray(value, np.float64), err_msg=name)
        numbers = run.values(program.numbers.values())
        told = [float(ran.values[i]) for i in encoded.wanted]
        assert told == [float(n) for n in (*numbers, *totals.values())]
        assert [name for _, name in encoded.kept] == list(program.numbers)
        if function is not lamb:
            stepper.count -= 1
            stepper.step(g)


def test_questions_are_numbers_that_are_wanted():
    def rule(p, g, s, lr=0.1):
        return p - lr * g if rules.norm(g) > s.step else p

    stepper = traced.Stepper(rule, np.ones(3))
    stepper.step(np.full(3, 2.0))
    (question, program) = stepper.tree.programs[:2]
    encoded = encode(question, {})
    (node,) = encoded.wanted
    assert encoded.writes == [] and encoded.kept == ()
    assert decoded(encoded)[node][0] == "lt"
    assert encoded.inputs == (("step", "step"),)
    after = encode(program, {})
    assert after.kept == () and after.asked == ((after.wanted[0], 1.0),)  # what it took for granted is looked at
    assert decoded(after)[after.wanted[0]][0] == "lt"


def test_calls_are_numbered_over_all_programs_of_a_rule():
    def rule(p, g, s):
        if p.ndim == 2:
            return p - rules.total(rules.sum(p))
        return p - rules.total(rules.sum(g)) - rules.total(rules.sum(p))

    calls, tree = {}, traced.Tree(rule, "rule", {})
    for shape in ((2, 2), (2,), (3, 3)):
        encode(tree.program(traced.Facts(shape), None), calls)
    assert sorted(calls.values()) == [0, 1, 2]


def test_a_rule_keeps_what_was_encoded():
    source = Source(lamb, "lamb")
    reading = source.read({"lr": 0.1, "betas": (0.9, 0.99)}, "")
    program = source.early_program(reading, (2, 2), 4)
    encoded = source.encoded(program)
    assert source.encoded(program) is encoded
    assert ("hyper", "betas[1]") not in encoded.inputs and ("hyper", "betas[0]") in encoded.inputs
    assert encoded.kept == (("param", "d"), ("group", "k"))
    assert len(encoded.wanted) == 2 + len(program.totals)


def test_too_many_states():
    def rule(p, g, s):
        for i in range(15):
            setattr(s, f"s{i}", g)
        return p

    program = traced.Tree(rule, "rule", {}).program(traced.Facts((2,)), None)
    with pytest.raises(TypeError, match="rule rule: it has 15 states of the parameter's shape, and no more than 14"):
        encode(program, {})


def test_the_kernels_have_the_same_numbers():
    source = Path(__file__).parents[1] / "rust" / "kernels" / "src" / "program" / "ops.rs"
    if not source.exists():
        pytest.skip("kernels without programs")
    listed = re.findall(r"= (\d+), \"(\w+)\",", source.read_text())
    assert {name: int(number) for number, name in listed} == OPS
