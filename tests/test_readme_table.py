"""The table of README.md is made from files of results (docs/readme_table.py)."""

import importlib.util
import json
from pathlib import Path

import pytest

from results_of_benchmarks import content, record

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("readme_table", ROOT / "docs" / "readme_table.py")
readme_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme_table)


def rows(tmp_path, *contents):
    """What stands in a page that was given these results."""
    paths = [tmp_path / f"{i}.json" for i in range(len(contents))]
    for path, one in zip(paths, contents, strict=True):
        path.write_text(json.dumps(one), encoding="utf-8")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme_table.BEGIN}old\n{readme_table.END}\nafter\n", encoding="utf-8")
    readme_table.main(paths, page)
    lines = page.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    return [line for line in lines if line.startswith("| ")][2:], lines


def test_rows(tmp_path):
    found, lines = rows(
        tmp_path,
        content(
            record("two_scalars", "Adam", ours=3000.0, for_loop=39_000.0, fused=21_000.0, compile=6000.0),
            record("two_scalars", "SGD", ours=3000.0, for_loop=9000.0, foreach=8000.0, fused=8500.0),
            record("flat", "Adam", "float16", ours=46e6, for_loop=240e6, fused=28e6),
        ),
    )
    assert found == [
        "| two scalars | SGD | 3.0 µs | 2.7× (foreach) | 3.0× |",
        "| | Adam | 3.0 µs | 7.0× (fused) | 13× |",  # compile is not what torch.optim gives
        "| one tensor of 128 Mi | Adam, all float16 | 46 ms | 0.61× (fused) | 5.2× |",
    ]
    assert "a processor, 2 threads on 4 cores, torch 2.15.0, oxistep 0.1.0, 2026-11-20." in lines


def test_what_torch_wins_is_shown_and_the_rest_of_the_cells_not(tmp_path):
    lost = record("lora", "RMSprop", ours=100.0, for_loop=80.0)
    won = record("lora", "Adagrad", ours=100.0, for_loop=300.0)
    assert rows(tmp_path, content(lost, won))[0] == [
        "| 192 LoRA matrices | RMSprop | 0.10 µs | 0.80× (for-loop) | 0.80× |"
    ]


def fewer(setting, against, own, other, dtype="float32", elements=2**27):
    ratio = {"median": other / own, "q1": other / own, "q3": other / own}
    return {"setting": setting, "elements": elements, "dtype": dtype, "against": against, "own_ns": own,
            "other_ns": other, "floor": None, **ratio}  # fmt: skip


def test_fewer_bytes_stand_beside_torch_in_float32(tmp_path):
    flat = content(record("flat", "Adam", ours=40e6, for_loop=80e6, fused=44e6))
    eight, half = 'state_dtype="8bit"', 'weights="residual16", state_dtype=torch.float32'
    measured = [
        fewer(eight, "torch, for-loop", 50e6, 1000e6),
        fewer(eight, "torch, fused", 50e6, 45e6),
        fewer(eight, "bitsandbytes", 50e6, 500e6),
        fewer(eight, "torch, fused", 1e6, 2e6, elements=2**20),
        fewer(half, "torch, fused", 30e6, 45e6, "bfloat16"),
        fewer("all bfloat16", "torch, fused", 30e6, 45e6, "bfloat16"),  # a cell of the benchmark's own
    ]
    wanted = [
        "| one tensor of 128 Mi | Adam | 40 ms | 1.10× (fused) | 2.0× |",
        '| | AdamW, `state_dtype="8bit"` | 50 ms | 0.90× (fused, float32) | 20× |',
        '| | AdamW, bfloat16 parameters, `weights="residual16", state_dtype=torch.float32` | 30 ms '
        "| 1.50× (fused, float32) | – |",
    ]
    wanted = [line.replace(" ms", f"{readme_table.NARROW}ms") for line in wanted]
    assert rows(tmp_path, flat | {"compact": {"speed": measured}})[0] == wanted
    other = content(record("mlp", for_loop=300.0)) | {"compact": {"speed": measured}}
    assert rows(tmp_path, flat, other)[0][1:] == wanted


def test_the_settings_are_those_of_the_benchmark():
    from oxistep.bench.compact import SETTINGS

    assert set(readme_table.FEWER) <= set(SETTINGS)


def test_sweeps_are_called_what_they_are(tmp_path):
    names = {"size_24": "one tensor of 16 Mi", "size_6": "one tensor of 64", "tensors_3000": "3,000 tensors of 64"}
    cells = [record(name, ours=100.0, for_loop=80.0) for name in names]
    assert [row.split("|")[1].strip() for row in rows(tmp_path, content(*cells))[0]] == list(names.values())


def test_the_first_file_counts(tmp_path):
    first, second = (content(record("mlp", ours=ours, for_loop=300.0)) for ours in (100.0, 150.0))
    assert "3.0× (for-loop)" in rows(tmp_path, first, second)[0][0]


def test_results_of_another_machine_are_refused(tmp_path):
    other = content(record("lora", for_loop=300.0))
    other["environment"] |= {"cpu": "another", "torch": "2.14.0"}
    with pytest.raises(SystemExit, match="another cpu, torch than"):
        rows(tmp_path, content(record("mlp", for_loop=300.0)), other)


def test_readme_has_the_place():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(readme_table.BEGIN) == text.count(readme_table.END) == 1
    assert text.index(readme_table.BEGIN) < text.index(readme_table.END)


# ---- what is said of the table elsewhere ----


def measured_lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(readme_table.BEGIN)[1].split(readme_table.END)[0].splitlines()


def test_ranges_follow_from_the_table():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    begin, end = readme_table.RANGES
    assert text.split(begin)[1].split(end)[0].splitlines() == readme_table.ranges(measured_lines())


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_headline_follows_from_the_table(page):
    (said,) = readme_table.HEADLINE.finditer((ROOT / page).read_text(encoding="utf-8"))
    assert said[0].split(" times")[0] == readme_table.headline(measured_lines())


def test_ranges_and_headline_are_written(tmp_path):
    (tmp_path / "docs").mkdir()
    performance, index = tmp_path / "docs" / "performance.md", tmp_path / "docs" / "index.md"
    begin, end = readme_table.RANGES
    performance.write_text(f"before\n{begin}old\n{end}\n", encoding="utf-8")
    index.write_text("One step is 5 to 6 times faster than before.\n", encoding="utf-8")
    cells = [
        record("two_scalars", "Adam", ours=3000.0, for_loop=39_000.0, fused=21_000.0),
        record("lora", "SGD", ours=100.0, for_loop=250.0),
        record("flat", "Adam", ours=100.0, fused=104.0),
        record("flat", "RMSprop", ours=100.0, for_loop=1204.0),
        record("flat", "Adam", "bfloat16", ours=100.0, for_loop=190.0),
        record("gpt2_small", "max_grad_norm Adam", ours=100.0, fused=400.0),
    ]
    rows(tmp_path, content(*cells))
    assert index.read_text(encoding="utf-8") == "One step is 2 to 12 times faster than before.\n"
    text = performance.read_text(encoding="utf-8")
    for said in (
        "| fixed cost | 2.5 to 7.0 |",
        "| half-precision parameters | memory bandwidth | 1.90 |",
        "| memory bandwidth, because torch makes many passes | 12 |",
        "an optimizer with a fused kernel in torch | memory bandwidth | 1.04 |",
    ):
        assert said in text
    assert "embeddings" not in text and "old" not in text
