"""Tables of the benchmark fit 100 columns, and no word in them is broken."""

import io

import pytest

pytest.importorskip("rich")
pytest.importorskip("torch")

from rich.console import Console

from oxistep.bench import beside, compact, originals, rules, zoo
from oxistep.bench.packages import PACKAGES
from oxistep.bench.tables import COLUMNS, plain, show


def printed(print_to):
    """What is printed to a pipe."""
    file = io.StringIO()
    print_to(Console(file=file, highlight=False, soft_wrap=True))
    return file.getvalue()


def row(floor=None, median=0.5, **others):
    return {"median": median, "q1": 0.4, "q3": 0.62, "floor": floor, "rule_ns": 123e3, "own_ns": 123e3, **others}


def fits(output, *words):
    assert max(map(len, output.splitlines())) <= COLUMNS
    assert all(word in output for word in words)


def test_rules():
    rivals = (rules.COMPILED, rules.LOOP, rules.FOREACH, rules.PROBE)
    rows = [
        row(0.9, 99.9, workload=workload, rule=name, against=rival)
        for workload in ("two scalars", "2,000 x 64", "flat")
        for name in rules.RULES
        for rival in rivals
    ]
    labels = {"workload": lambda row: row["workload"], "rule": lambda row: row["rule"]}
    fits(printed(lambda out: beside.show_beside(out, rows, labels, "rule_ns")), "two scalars", *rivals, *rules.RULES)


def test_zoo():
    rows = []
    for name, original in originals.ORIGINALS.items():
        ways = [f"{original.package}, {way}" for way in originals.WAYS] if original.package == "timm" else []
        for rival in [*(ways or [original.package]), "probe"]:
            rows.append(row(15.0, 12.3, workload="2,000 x 64", rule=name, against=rival))
    output = printed(lambda out: zoo.show_all(out, rows))
    fits(output, "2,000 x 64", "for-loop", "foreach", "probe", *originals.ORIGINALS, "adam_atan2_pytorch")
    # a package that has one way to step stands in the column of loops
    [line] = [line for line in output.splitlines() if line.split()[:1] == ["AdaBound"] and "µs" in line]
    assert line.count("±") == 2


def test_compact():
    rows = [
        row(None, 222.2, setting=name, elements=elements, against=rival)
        for elements in (2**16, 2**27)
        for name in compact.SETTINGS
        for rival in (compact.FLOAT32, *compact.TORCH, *PACKAGES)
    ]
    output = printed(lambda out: compact.show_speed(out, rows))
    fits(output, "134,217,728 elements", "residual16", "torch for-loop", "AdamW8bit", "FlashAdamW")
    lines = [line.split()[:2] for line in output.splitlines()]
    assert ["residual8", "8bit"] in lines and ["bfloat16", "bfloat16"] in lines
    kept = {(setting.weights, setting.states) for setting in compact.SETTINGS.values()}
    assert len(kept) == len(compact.SETTINGS), "two settings look alike"


def test_accuracy():
    names = ('state_dtype="8bit"', "state_dtype=torch.bfloat16", *PACKAGES)
    rows = [
        {"format": name, "gradients": gradients, "error": 0.996, "largest": 220000.0}
        for name in names
        for gradients in compact.GRADIENTS
    ]
    words = {word for gradients in compact.GRADIENTS for word in gradients.split()}
    fits(printed(lambda out: compact.show_accuracy(out, rows)), "8bit", "bfloat16", "AdamW8bit", *words)


def test_floors_that_are_missed_are_marked_and_named():
    rows = [
        row(0.6, rule="a", against="x"),
        row(0.5, rule="a", against="y"),
        row(None, 0.1, rule="a", against="z"),
        row(0.9, 1.0, rule="b", against="x"),
    ]
    output = printed(lambda out: beside.show_beside(out, rows, {"rule": lambda row: row["rule"]}, "rule_ns"))
    [line] = [line for line in output.splitlines() if line.strip().startswith("a ")]
    assert line.split() == ["a", "123", "µs", "0.50", "±0.11", "!", "0.50", "±0.11", "0.10", "±0.11"]
    output = printed(lambda out: beside.show_floors(out, rows, lambda row: row["rule"]))
    assert "2 of 3 met; missed (marked !):" in output
    assert "a, against x: 0.50, the floor is 0.6" in output and "against y" not in output


@pytest.mark.parametrize("median,said", [(0.123, "0.12 ±0.11"), (12.34, "12.3 ±0.1"), (1234.5, "1234 ±0")])
def test_digits(median, said):
    assert beside.spread(row(median=median)) == said


def test_a_word_is_never_broken():
    table = plain("incomprehensible heading", "another", "1", left=2)
    table.add_row("a few short words", "electroencephalogram", "0")  # LONG letters
    file = io.StringIO()
    show(Console(file=file, force_terminal=True, width=30, no_color=True), table)
    output = file.getvalue()
    assert "incomprehensible" in output and "electroencephalogram" in output
