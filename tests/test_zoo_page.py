"""docs/zoo.md and the page of each class: their tables say what is so."""

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
from oxistep import zoo  # noqa: E402
from oxistep.bench.originals import ORIGINALS  # noqa: E402
from oxistep.rules._listing import Listing  # noqa: E402
from oxistep.rules._optimizer import source_of  # noqa: E402

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "zoo.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| \[`(\w+)`\]\((zoo/\w+\.md)\) \| [^|]* \| (\d), (\d+) \| (\d)[^|]* "
    r"\| [^|]* \| ([^|]*\d{4}[^|]*) \| ([^|]*) \|$",
    re.M,
)
ROWS = {row[0]: row[1:] for row in ROW.findall(PAGE)}
WRAPPERS = sorted(set(zoo.__all__) - set(ORIGINALS))
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((DOCS / "zoo").glob("*.md"))}
PAGES = {name: PAGES.get(name.lower(), "there is none") for name in zoo.__all__}


def facts(name):
    """The table at the top of the page of a class."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGES[name], re.M))


def in_zoo(name, **settings):
    """An optimizer of the class that has been made as people make it."""
    original = ORIGINALS[name]
    given = {"lr": original.lr, **original.arguments, **settings}
    optimizer = getattr(zoo, name)([torch.nn.Parameter(torch.ones(256, 256))], **given)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def program(optimizer):
    """What its rule does in a step on its way."""
    source = source_of(type(optimizer))
    group = {key: value for key, value in optimizer.param_groups[0].items() if key in source.hyperparameters}
    return Listing.of(source, {**group, "step": 100.0})[-1]


def kept(optimizer):
    return sum(state.kind.has_elements for state in program(optimizer).states.values())


def test_every_class_is_in_the_table_that_helps_to_choose():
    assert set(ROWS) == set(ORIGINALS)
    assert all(f"| [`{name}`](zoo/{name.lower()}.md) |" in PAGE for name in WRAPPERS)


@pytest.mark.parametrize("name", ORIGINALS)
def test_states_bytes_and_passes_are_those_of_the_rule(name):
    page, states, size, passes, _, _ = ROWS[name]
    assert page == f"zoo/{name.lower()}.md"
    found = in_zoo(name)
    assert (int(states), int(size), int(passes)) == (kept(found), 4 * kept(found), len(program(found).passes))


@pytest.mark.parametrize("name", zoo.__all__)
def test_class_has_a_page(name):
    pages = (path.read_text(encoding="utf-8") for path in DOCS.glob("**/*.md"))
    assert sum(f".. autoclass:: oxistep.zoo.{name}\n" in page for page in pages) == 1
    assert f".. autoclass:: oxistep.zoo.{name}\n" in PAGES[name]
    assert (f".. autoclass:: oxistep.numpy.zoo.{name}\n" in PAGES[name]) == (name in ORIGINALS)
    assert f"\nzoo/{name.lower()}\n" in PAGE  # in the sidebar
    assert {"states", "passes over memory", "equals", "differs"} < facts(name).keys()


WITH_BYTES = {"": {}, "torch.bfloat16": {"state_dtype": torch.bfloat16}, '"8bit"': {"state_dtype": "8bit"}}


@pytest.mark.parametrize("name", ORIGINALS)
def test_page_says_states_and_bytes(name):
    said = facts(name)["states"]
    count, size = re.match(r"(\d); (\d+) bytes a float32 parameter", said).groups()
    assert (count, size) == ROWS[name][1:3]
    for setting, given in WITH_BYTES.items():
        group = oxistep.memory(in_zoo(name, **given)).groups[0]
        number = re.search(rf"([\d.]+) with `state_dtype={setting}`", said)
        expected = number[1] if setting and number else size  # of states that are weights the size does not change
        assert f"{group.states / group.elements:.2f}" == f"{float(expected):.2f}", setting


@pytest.mark.parametrize("name", ORIGINALS)
def test_page_says_passes(name):
    first, _, flagged = facts(name)["passes over memory"].partition("; ")
    assert first == ROWS[name][3] == str(len(program(in_zoo(name)).passes))
    flags = set(re.findall(r"`(\w+)`", flagged))
    for flag, value in {"caution": True, "clipping_threshold": 1.0, "cautious_factor": 0.5}.items():
        if flag not in inspect.signature(getattr(zoo, name)).parameters:
            assert flag not in flags
            continue
        passes = len(program(in_zoo(name, **{flag: value})).passes)
        assert (flag in flags) == (passes != int(first))
        assert flag not in flags or flagged.startswith(f"{passes} with ")


PINS = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (DOCS.parent / "requirements" / "zoo.in").read_text("utf-8"), re.M))


@pytest.mark.parametrize("name", ORIGINALS)
def test_page_names_the_package_that_is_compared(name):
    original = ORIGINALS[name]
    said = re.match(r"`([\w.]+)\.(\w+)` of ([\w-]+) ([\d.]+)$", facts(name)["equals"])
    assert said[2] == original.cls
    assert PINS[said[3]] == said[4]
    # AdEMAMix has the arguments of one package, and is compared with the rule of another
    assert said[3] == (original.pip or original.package) or original.package in facts(name)["differs"]


LINK = re.compile(r"\[[^]]+\]\((https://[^)]+)\)")


@pytest.mark.parametrize("name", zoo.__all__)
def test_both_pages_name_the_same_paper(name):
    (row,) = re.findall(rf"^\| \[`{name}`\]\(zoo/.*$", PAGE, re.M)
    of_page = [value for key, value in facts(name).items() if key in ("paper", "papers")]
    assert LINK.findall(row) == LINK.findall(of_page[0])[: len(LINK.findall(row))] != []


def zoo_tables():
    spec = importlib.util.spec_from_file_location("zoo_tables", DOCS / "zoo_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers():
    """The table of measured speeds."""
    _, _, rest = PAGE.partition("<!-- speed: begin")
    head, _, *rows = [line.strip("| ").split(" | ") for line in rest.partition("<!-- speed: end")[0].splitlines()[1:]]
    assert [row[0] for row in rows] == [f"`{name}`" for name in ORIGINALS]
    return {row[0].strip("`"): dict(zip(head[2:], map(float, row[2:]), strict=True)) for row in rows}


def test_what_was_measured_is_said_the_same_everywhere():
    tables = zoo_tables()
    assert tables.with_speeds(PAGE, numbers()) == PAGE
    assert tables.table(tables.missed_rows(numbers())) in PAGE
    assert {row[5] for row in ROWS.values()} == {
        f"{of_class['flat']}, {of_class['2,000 x 64']}" for of_class in numbers().values()
    }


def test_what_is_missed_is_what_the_benchmark_asks_for():
    tables = zoo_tables()
    found = {"SGDW": {"flat": 2.0, "of the probe": 0.84}, "ADOPT": {"flat": 3.9}, "Lion": {"flat": 1.9}, "Adan": {}}
    assert list(tables.missed_rows(found)) == [
        ["case", "wanted", "missed by"],
        ["flat", "2 or 4", "`ADOPT` 3.9, `Lion` 1.9"],
        ["of the probe", "0.85", "`SGDW` 0.84"],
    ]


def test_tables_are_written_where_they_belong(tmp_path, monkeypatch):
    tables = zoo_tables()
    page = tmp_path / "zoo.md"
    page.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(tables, "PAGE", page)
    rows = [
        {"workload": workload, "rule": "Lion", "against": against, "median": median}
        for workload, against, median in [
            ("flat", "timm, for-loop", 7.0),
            ("flat", "timm, foreach", 1.5),
            ("flat", "probe", 0.9),
            ("2,000 x 64", "timm, for-loop", 30.0),
            ("two scalars", "timm, for-loop", 12.0),
        ]
    ]
    results = tmp_path / "r.json"
    results.write_text(json.dumps({"zoo": rows}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["zoo_tables.py", "speed", str(results)])
    tables.main()
    text = page.read_text(encoding="utf-8")
    assert "| `Lion` | timm | 1.5 | 30.0 | 12.0 | 0.90 |" in text  # a column for each workload that was measured
    assert "| flat | 2 | `Lion` 1.5 |" in text
    rows = {row[0]: row[1:] for row in ROW.findall(text)}
    assert rows["Lion"][5] == "1.5, 30.0"
    assert {name: row for name, row in rows.items() if name != "Lion"} == {
        name: row for name, row in ROWS.items() if name != "Lion"
    }
    tables.main()
    assert page.read_text(encoding="utf-8") == text
