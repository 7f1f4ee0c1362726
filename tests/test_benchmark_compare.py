"""The regression check between two files of results."""

import copy

import pytest

from oxistep.bench import compare, results
from results_of_benchmarks import content, record


def files(tmp_path, old, new):
    paths = [str(tmp_path / name) for name in ("old.json", "new.json")]
    for path, one in zip(paths, (old, new), strict=True):
        results.write(results.Path(path), one)
    return paths


@pytest.fixture
def old():
    return content(record("seven", fused=300.0, for_loop=500.0), record("mlp", fused=200.0))


def test_absolute_times_do_not_matter(tmp_path, old):
    slower_machine = content(
        record("seven", ours=900.0, fused=2700.0, for_loop=9000.0), record("mlp", ours=1e6, fused=2e6)
    )
    assert compare.main(files(tmp_path, old, slower_machine)) == 0


def test_a_lost_ratio_fails_and_names_the_cell(tmp_path, old, capsys):
    new = content(record("seven", ours=130.0, fused=300.0, for_loop=500.0), record("mlp", fused=200.0))
    assert compare.main(files(tmp_path, old, new)) == 1
    printed = capsys.readouterr().out
    assert "seven-Adam-float32" in printed
    assert "mlp-Adam-float32" not in printed
    assert "1 slower" in printed


def test_the_threshold_is_an_argument(tmp_path, old):
    new = content(record("seven", ours=130.0, fused=300.0), record("mlp", fused=200.0))
    assert compare.main([*files(tmp_path, old, new), "--threshold", "0.5"]) == 0


def test_noise_whose_quartiles_overlap_is_no_regression(tmp_path, old):
    new = copy.deepcopy(old)
    new["cells"][0]["ratios"]["fused"] = {"median": 2.0, "q1": 1.0, "q3": 3.1}
    assert compare.main(files(tmp_path, old, new)) == 0


def test_the_peer_is_the_same_in_both(tmp_path, old):
    # fused is not there any more: the for-loop is compared with itself, and not with fused
    new = content(record("seven", for_loop=500.0), record("mlp", fused=200.0))
    found = compare.compare(old, new)
    assert [(change.cell, change.peer) for change in found.changes] == [
        ("seven-Adam-float32", "for-loop"),
        ("mlp-Adam-float32", "fused"),
    ]
    assert not any(change.slower(0.1) or change.faster(0.1) for change in found.changes)


def test_missing_cells_are_named_and_fail_if_strict(tmp_path, old, capsys):
    paths = files(tmp_path, old, content(record("mlp", fused=200.0), record("lora", fused=200.0)))
    assert compare.main(paths) == 0
    printed = capsys.readouterr().out
    assert "Only in the old file: seven-Adam-float32" in printed
    assert "Only in the new file: lora-Adam-float32" in printed
    assert compare.main([*paths, "--strict"]) == 1


def test_a_cell_without_a_common_peer_is_named(tmp_path, old, capsys):
    new = content(record("seven", compile=300.0), record("mlp", fused=200.0))
    assert compare.main(files(tmp_path, old, new)) == 0
    assert "No peer in common: seven-Adam-float32" in capsys.readouterr().out


def test_nothing_in_common(tmp_path, old):
    assert compare.main(files(tmp_path, old, content(record("lora", fused=200.0)))) == 2


def test_a_wrong_result_fails(tmp_path, old):
    new = copy.deepcopy(old)
    new["cells"][0]["wrong"] = {"oxistep": "parameter 0 differs from the for-loop's"}
    assert compare.main(files(tmp_path, old, new)) == 1


def test_other_machines_are_named(tmp_path, old, capsys):
    new = copy.deepcopy(old)
    new["environment"]["threads"] = 8
    assert compare.main(files(tmp_path, old, new)) == 0
    assert "threads differs: 2 and 8" in capsys.readouterr().out
