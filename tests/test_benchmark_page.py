"""The page that the benchmark writes: complete, self-contained, and drawn from whatever there is."""

import re
from html.parser import HTMLParser

import pytest

from oxistep.bench import page, results
from oxistep.bench.wording import duration, ratio, size
from oxistep.bench.workloads import SIZES, TENSORS
from results_of_benchmarks import content, record

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed and was not opened."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


@pytest.fixture(scope="module")
def full():
    made = content(
        record("seven", for_loop=300.0, fused=400.0),
        record("small_2000", for_loop=300.0, fused=900.0),
        record("flat", ours=60e6, probe=55e6, for_loop=400e6, fused=66e6),
        record("flat", "Adam", "bfloat16", ours=30e6, probe=27e6, for_loop=400e6, fused=60e6),
        *(record(name, ours=500.0 + n, for_loop=9000.0 * n, fused=3000.0 * n) for name, n in TENSORS.items()),
        *(record(name, ours=500.0 + 2**k, for_loop=9e4 + 2**k, fused=2e4 + 2**k) for name, k in SIZES.items()),
    )
    quartiles = {"median": 1.1, "q1": 1.0, "q3": 1.2}
    made["threads"] = [
        {
            "threads": n,
            "speedup": {"oxistep": n, "fused": n, "probe": n},
            "ratio": quartiles,
            "scaling": 1.0,
            "met": True,
        }
        for n in (1, 2)
    ]
    made["memory"] = [
        {"optimizer": "Adam", "extra": {"oxistep": 0.001, "fused": None}, "state_bytes": 2**28, "met": True}
    ]
    row = {
        "iteration_ns": 2e6,
        "rest_ns": 1e6,
        "step_ns": 1e6,
        "step_share": 0.5,
        "ratio": quartiles,
        "step_ratio": quartiles,
        "loss_difference": 1e-6,
    }
    made["end_to_end"] = [{"model": "MLP", "rows": {"torch default": row, "oxistep": row}}]
    return made


@pytest.fixture(scope="module")
def rendered(full):
    return page.render(full)


def test_it_is_well_formed(rendered):
    parser = Balanced()
    parser.feed(rendered)
    assert parser.open == []


def test_nothing_is_fetched(rendered):
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', rendered)
    assert all(address.startswith("#") for address in addresses)
    assert "<script" not in rendered


def test_it_says_where_and_when(rendered):
    for text in ("a processor", "2 threads of 4", "torch 2.15.0", "2026-11-20"):
        assert text in rendered


def test_every_figure_is_there_with_identifiers_of_its_own(rendered):
    assert rendered.count("<svg") == 6
    identifiers = re.findall(r' id="([^"]+)"', rendered)
    assert len(identifiers) == len(set(identifiers))


def test_floors_are_judged(rendered):
    [row] = re.findall(
        r"<tr[^>]*>(?:(?!</tr>).)*2,000 tensors(?:(?!</tr>).)*best of torch.*?</tr>", rendered, re.DOTALL
    )[:1]
    assert 'class="missed"' in row and "3.00" in row and "missed" in row
    assert "not timed" in rendered  # DeepSpeed


def test_missing_peers_are_named_once(rendered):
    assert rendered.count("deepspeed is not installed") == 1


def test_what_is_not_there_is_left_out():
    sparse = page.render(content(record("seven", for_loop=300.0)))
    assert "Training" not in sparse and "Memory" not in sparse and "Bandwidth" not in sparse
    assert sparse.count("<svg") == 1
    page.render(content())


def test_text_is_escaped():
    made = content(record("seven", for_loop=300.0))
    made["command"] = "<b>"
    assert "<b>" not in page.render(made)


def test_from_the_command_line(tmp_path, full):
    results.write(tmp_path / "results.json", full)
    assert page.main([str(tmp_path / "results.json"), str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("nanoseconds", "text"), [(7.4, "7 ns"), (1500, "1.50 µs"), (123e6, "123 ms"), (2e9, "2.00 s"), (None, "–")]
)
def test_durations(nanoseconds, text):
    assert duration(nanoseconds) == text


def test_ratios_and_sizes():
    assert (ratio(1.234), ratio(12.34), ratio(None)) == ("1.23", "12", "–")
    assert (size(0), size(9), size(10), size(27), size(30)) == ("1", "512", "1 Ki", "128 Mi", "1 Gi")
