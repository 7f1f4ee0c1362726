"""The benchmark's own logic: what it computes from times, not the times."""

import itertools
import json

import numpy as np
import pytest
import torch

import oxistep
from oxistep import _core
from oxistep.bench import end_to_end, memory, results, run, threads
from oxistep.bench.cell import Cell
from oxistep.bench.check import close
from oxistep.bench.clipping import SINKS, limits
from oxistep.bench.floors import ANYWHERE, FLOORS, LAYOUTS, RIVALS, floors_of, verdicts
from oxistep.bench.implementations import IMPLEMENTATIONS, Task
from oxistep.bench.models import MODELS
from oxistep.bench.optimizer_table import OPTIMIZERS, Clip
from oxistep.bench.paired import Contestant, Paired, contestant, measure
from oxistep.bench.plan import Plan, brief, full, quick
from oxistep.bench.probe import native_probe
from oxistep.bench.record import CellName
from oxistep.bench.report import print_report
from oxistep.bench.tensors import fill_normal, fill_uniform, rows_gradient
from oxistep.bench.workloads import ODD, SIZES, STRIDED, TENSORS, WORKLOADS, Workload
from results_of_benchmarks import content, record

# ---- statistics ----


def test_ratios_are_taken_within_rounds():
    # the machine halves its speed after the first round; the peer always takes twice as long
    times = Paired({"oxistep": [10.0, 20.0, 20.0], "fused": [20.0, 40.0, 40.0]}, {})
    assert times.ratio("fused", "oxistep").median == 2.0
    assert times.ratio("fused", "oxistep").q1 == times.ratio("fused", "oxistep").q3 == 2.0


def test_everybody_is_timed_in_every_round_and_at_every_place():
    order = []
    contestants = {name: Contestant(lambda name=name: order.append(name), 1, 0.0) for name in "abc"}
    timed = measure(contestants, seconds=0.0, lead_in=False)
    assert {len(rounds) for rounds in timed.nanoseconds.values()} == {3}
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert sorted(one[0] for one in rounds) == ["a", "b", "c"]


def test_a_block_is_long_enough_for_the_clock():
    assert contestant(lambda: None).steps > 1


def test_best_peer_and_share_of_the_ceiling():
    made = record("flat", ours=100.0, probe=95.0, for_loop=900.0, fused=110.0)
    assert made.best_peer == "fused"
    assert made.share_of_ceiling == pytest.approx(0.95)
    assert made.gigabytes_per_second == pytest.approx(28 * 2**27 / 100.0)


# ---- what is printed ----


def printed(capsys, *records, left_out=(), **more):
    where = content()["environment"]
    print_report(list(records), list(left_out), where, "oxistep bench --brief", **more)
    return capsys.readouterr().out


def test_tables_fit_a_terminal(capsys):
    longest = max(full(), key=lambda name: len(name.workload) + len(name.optimizer))
    made = [
        record("small_2000", "Adam", ours=1.4e6, for_loop=49.1e6, foreach=13.2e6, fused=13.1e6),
        record("flat", "Adam", "bfloat16", ours=41e6, probe=39e6, for_loop=1.1e9, fused=43e6),
        record(longest.workload, longest.optimizer, ours=123e6, for_loop=456e6, deepspeed=233e6),
    ]
    output = printed(capsys, *made)
    table = output.partition("workload")[2].partition("oxistep:")[0]
    assert max(map(len, table.splitlines())) <= 100 and "\N{HORIZONTAL ELLIPSIS}" not in table
    assert "fused 13.1 ms" in table and "9.36 ±0.00" in table
    assert "Adam, bfloat16" in table and "95%" in table  # of the bandwidth that is possible


def test_what_was_disturbed_neither_meets_a_target_nor_misses_it(capsys):
    made = record("mlp", "Adam", ours=100.0, for_loop=500.0, fused=150.0)
    assert "own targets for this table: 1 of 2 met; missed:\n  mlp-Adam-float32: 1.50" in printed(capsys, made)
    made.other_cores = 1.5
    output = printed(capsys, made)
    assert "targets" not in output and "mlp !" in output and "! 1 of 1 were disturbed" in output


def test_a_document_gets_every_column(capsys):
    made = record("two_scalars", "Adam", ours=3000.0, for_loop=39_000.0, foreach=29_000.0, fused=21_000.0)
    [row] = [line for line in printed(capsys, made, markdown=True).splitlines() if "|two_scalars" in line]
    assert [cell.strip() for cell in row.strip(" |").split("|")][3:7] == ["3.00 µs", "39.0 µs", "29.0 µs", "21.0 µs"]


# ---- floors ----


def test_every_floor_has_its_cell_in_the_full_run():
    cells = set(map(str, full()))
    assert {str(CellName(f.workload, f.optimizer, f.dtype)) for f in FLOORS} <= cells
    assert len(cells) == len(full())
    assert {f.against for f in FLOORS} <= {*RIVALS, "ceiling"}


def test_no_floor_is_written_twice():
    keys = [(f.workload, f.optimizer, f.dtype, f.against) for f in FLOORS]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", full(), ids=str)
def test_every_cell_may_not_be_slower_than_its_best_peer(name):
    floors = floors_of(name.workload, name.optimizer, name.dtype)
    lowest = LAYOUTS if name.workload in (*STRIDED, *ODD) else ANYWHERE
    # what is left to torch takes the path that torch takes by default
    against = "torch's default" if name.workload == "left_to_torch" else "best peer"
    assert max(f.ratio for f in floors if f.against == against) >= lowest


@pytest.mark.parametrize(
    ("cell", "against", "ratio"),
    [
        (("two_scalars", "SGD", "float32"), "best peer", 2.0),
        (("seven", "Adam", "float32"), "best peer", 3.0),
        (("small_2000", "RMSprop", "float32"), "best of torch", 10.0),
        (("small_2000", "Adam", "float32"), "deepspeed", 5.0),
        (("lora", "SGD momentum", "float32"), "best peer", 2.0),
        (("gpt2_small", "Adam", "float32"), "torch's default", 4.0),
        (("flat", "AdamW", "float32"), "best peer", 1.12),
        (("flat", "SGD", "float32"), "fused", 1.0),
        (("flat", "Rprop", "float32"), "best eager", 3.0),
        (("flat", "Adam", "bfloat16"), "fused", 1.5),
        (("flat", "Adam", "float32"), "ceiling", 0.9),
        (("gpt2_small", "max_grad_norm Adam", "float32"), "fused", 1.45),
        (("embedding", "SparseAdam", "float32"), "best peer", 4.0),
        (("sliced_columns_large", "SGD", "float32"), "best peer", 0.95),
    ],
)
def test_floors_are_those_the_project_set_itself(cell, against, ratio):
    assert [f.ratio for f in floors_of(*cell) if f.against == against] == [ratio]


def test_verdicts():
    floors = floors_of("small_2000", "Adam", "float32")
    found = {v.against: v for v in verdicts(floors, {"fused": 9.0, "for-loop": 20.0}, None)}
    assert (found["best of torch"].measured, found["best of torch"].met) == (9.0, False)
    assert (found["best peer"].measured, found["best peer"].met) == (9.0, True)
    assert (found["deepspeed"].measured, found["deepspeed"].met) == (None, None)
    [ceiling] = [v for v in verdicts(floors_of("flat", "Adam", "float32"), {}, 0.91) if v.against == "ceiling"]
    assert ceiling.met


# ---- cells ----


def test_workloads_are_what_they_are_called():
    assert (len(WORKLOADS["resnet50"].shapes), WORKLOADS["resnet50"].parameters) == (161, 25_557_032)
    assert (len(WORKLOADS["gpt2_small"].shapes), WORKLOADS["gpt2_small"].parameters) == (148, 124_439_808)
    assert (len(WORKLOADS["lora"].shapes), WORKLOADS["lora"].parameters) == (192, 192 * 8 * 768)
    assert WORKLOADS["embedding"].touched == 4096 * 64
    assert min(SIZES.values()) == 0 and max(SIZES.values()) == 28
    assert all(len(WORKLOADS[name].shapes) == n for name, n in TENSORS.items())


@pytest.mark.parametrize("cells", [full, quick, brief])
def test_plans_name_what_exists(cells):
    assert all(c.workload in WORKLOADS and c.optimizer in OPTIMIZERS and hasattr(torch, c.dtype) for c in cells())


def test_sweeps_are_not_compiled():
    plan = Plan(cells=full(), implementations=list(IMPLEMENTATIONS))
    assert "compile" in plan.implementations_of(CellName("mlp", "Adam", "float32"))
    assert "compile" not in plan.implementations_of(CellName("tensors_3000", "Adam", "float32"))


def test_time_that_is_left_is_shared():
    plan = Plan(cells=quick(), cell_seconds=5.0, total_seconds=0.0)
    assert plan.share(plan.cells[0]) == 0.0
    assert Plan(cells=quick(), cell_seconds=5.0).share(plan.cells[0]) == 5.0


@pytest.mark.parametrize("optimizer", [name for name, o in OPTIMIZERS.items() if o.torch_class != "Muon"])
def test_all_implementations_of_a_cell_agree(optimizer, monkeypatch):
    monkeypatch.setitem(WORKLOADS, "embedding", Workload([(1000, 64)], rows=100))
    workload = "embedding" if optimizer == "SparseAdam" else "mlp"
    names = [name for name in IMPLEMENTATIONS if name not in ("compile", "deepspeed")]
    cell = Cell(CellName(workload, optimizer, "float32"), names)
    assert cell.record.wrong == {}
    assert {*cell.contestants, *cell.record.missing} == set(names) or "oxistep" in cell.record.missing
    cell.close()


@pytest.mark.parametrize("workload", [name for name in STRIDED if name.endswith("_small")])
@pytest.mark.parametrize("optimizer", ["SGD momentum", "Adam"])
def test_cells_of_layouts_are_laid_out_and_agree(workload, optimizer):
    cell = Cell(CellName(workload, optimizer, "float32"), ["oxistep", "for-loop", "foreach"])
    assert cell.record.wrong == {}
    assert list(cell.contestants) == ["oxistep", "for-loop", "foreach"]
    [gradient] = cell._gradients()
    [parameter] = cell._parameters([gradient])
    [shape] = WORKLOADS[workload].shapes
    assert parameter.shape == gradient.shape == shape
    assert parameter.stride() != gradient.stride()
    cell.close()


def test_numbers_do_not_depend_on_where_they_lie():
    a = fill_normal(torch.empty(30, 50))
    assert torch.equal(a, fill_normal(torch.empty(50, 30).t()))
    assert torch.equal(a, fill_normal(torch.empty(30, 100)[:, ::2]))


@pytest.mark.parametrize("optimizer", ["Adam", "clip + Adam", "no clip + Adam"])
@pytest.mark.parametrize("shared", [False, True])
def test_large_cells_share_parameters(optimizer, shared, monkeypatch):
    if not hasattr(oxistep, "clip_grad_norm_"):
        monkeypatch.setattr(oxistep, "clip_grad_norm_", torch.nn.utils.clip_grad_norm_, raising=False)
    monkeypatch.setattr("oxistep.bench.cell.OWN_COPIES_BYTES", 0 if shared else 2**32)
    names = ["oxistep", "for-loop", "foreach", "fused"]
    cell = Cell(CellName("mlp", optimizer, "float32"), names)
    assert cell.record.shared_tensors == shared
    assert cell.record.wrong == {}
    assert list(cell.contestants) == names
    cell.measure(0.0)
    assert cell.record.best_peer in names[1:]


def test_a_wrong_result_is_not_timed(monkeypatch):
    broken = IMPLEMENTATIONS["fused"].__class__(
        lambda optimizer, parameters: torch.optim.Adam(parameters, lr=0.5), lambda task: None
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "fused", broken)
    cell = Cell(CellName("mlp", "Adam", "float32"), ["oxistep", "fused"])
    assert "differs" in cell.record.wrong["fused"]
    assert list(cell.contestants) == ["oxistep"]


def test_peers_without_room_leave_first(monkeypatch):
    sizes = []
    monkeypatch.setattr("oxistep.bench.cell.fits", lambda needed: sizes.append(needed) or len(sizes) > 2)
    cell = Cell(CellName("mlp", "Adam", "float32"), ["oxistep", "for-loop", "foreach", "fused"])
    assert sizes == sorted(sizes, reverse=True)
    assert cell.record.missing == {"foreach": "memory does not suffice for all"}
    monkeypatch.setattr("oxistep.bench.cell.fits", lambda needed: False)
    assert not Cell(CellName("mlp", "Adam", "float32"), ["oxistep", "for-loop"]).contestants


def test_a_missing_peer_says_why():
    task = Task(WORKLOADS["embedding"], OPTIMIZERS["SparseAdam"], torch.float32)
    assert "no fused SparseAdam" in IMPLEMENTATIONS["fused"].missing(task)
    many = Task(WORKLOADS["small_2000"], OPTIMIZERS["Adam"], torch.float32)
    assert "200 tensors" in IMPLEMENTATIONS["compile"].missing(many)


def test_close_compares_every_element():
    a = torch.zeros(2**22 + 5)
    b = a.clone()
    b[-1] = 1e-3
    assert close(a, a.clone())
    assert not close(a, b)
    assert not close(a, a[:-1])


# ---- clipping ----


def test_limits_stay_while_results_are_checked_and_sink_after_that():
    first = list(itertools.islice(limits(Clip(0.5), 10.0, 3), 6))
    assert first == [5.0] * 3 + [5.0 * SINKS**k for k in (1, 2, 3)]
    assert list(itertools.islice(limits(Clip(10.0), 10.0, 3), 5)) == [100.0] * 5


def test_sinking_limits_clip_every_step():
    parameter = torch.nn.Parameter(torch.zeros(1000))
    parameter.grad = fill_uniform(torch.empty(1000))
    limit = limits(Clip(0.5), float(parameter.grad.norm()), 1)
    for _ in range(50):
        before = parameter.grad.clone()
        torch.nn.utils.clip_grad_norm_([parameter], next(limit))
        assert not torch.equal(parameter.grad, before)


# ---- numbers, probe ----


def test_numbers_are_the_same_for_everybody():
    for fill in (fill_normal, fill_uniform):
        a, b = (fill(torch.empty(2**20 + 50)) for _ in range(2))
        assert torch.equal(a, b)
        assert len(a.unique()) > 1000
    assert fill_normal(torch.empty(0)).numel() == 0


def test_rows_are_named_once_and_not_coalesced():
    gradient = rows_gradient((1000, 4), 100, torch.float32)
    assert not gradient.is_coalesced()
    assert gradient.coalesce().values().shape == (100, 4)


def test_probe_moves_what_it_says():
    assert native_probe(2**20, 2) is None  # would sit in a cache
    _, moved = native_probe(2**25, 1)
    assert moved == 5 * 2**25


def test_native_probe_reads_and_writes_every_element():
    param, grad = np.arange(100_000, dtype=np.float32), np.ones(100_000, np.float32)
    states = [np.full(100_000, k, np.float32) for k in (1, 2)]
    _core.probe(param, grad, states)
    assert np.array_equal(param, 1 - np.arange(100_000, dtype=np.float32))
    assert [set(state) for state in states] == [{-1.0}, {-2.0}]


@pytest.mark.parametrize(
    "states", [[np.ones(3, np.float32)], [np.ones(4, np.float32)] * 4, [np.ones(8, np.float32)[::2]]]
)
def test_native_probe_refuses_arrays_that_do_not_fit(states):
    param = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="of one length"):
        _core.probe(
            param, np.ones(4, np.float32), [state.copy(order="K") if i else state for i, state in enumerate(states)]
        )
    assert (param == 1).all()


# ---- the file of results ----


def test_results_are_replaced_whole_and_added_to(tmp_path):
    path = tmp_path / "deeper" / "results.json"
    results.write(path, {"cells": [1]})
    results.add(path, "memory", [2])
    content = results.read(path)
    assert (content["cells"], content["memory"]) == ([1], [2])
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"cells": []}))
    with pytest.raises(ValueError, match="measure again"):
        results.read(path)


# ---- the other commands ----


def test_scaling_is_relative_to_one_thread():
    timed = {
        1: Paired({"oxistep": [100.0], "fused": [110.0]}, {}),
        2: Paired({"oxistep": [60.0], "fused": [55.0]}, {}),
    }
    one, two = threads.rows(timed)
    assert one["met"] and one["scaling"] == 1.0
    assert two["speedup"] == pytest.approx({"oxistep": 100 / 60, "fused": 2.0})
    assert two["scaling"] == pytest.approx((55 / 60) / 1.1)
    assert not two["met"]


@pytest.mark.parametrize(("largest", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_numbers_of_threads(largest, expected):
    assert threads.counts(largest) == expected


@pytest.mark.skipif(not memory._RESET.exists(), reason="needs Linux")
def test_memory_beyond_the_states_is_seen():
    class Wasteful(torch.optim.SGD):
        def step(self):
            torch.ones(2**24)

    def build(optimizer, parameters):
        return Wasteful(parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(IMPLEMENTATIONS, "oxistep", IMPLEMENTATIONS["oxistep"].__class__(build, lambda task: None))
        share, states = memory.measure("oxistep", OPTIMIZERS["SGD"], 32)
    assert states == 0
    assert share == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_models_train(model):
    torch.manual_seed(0)
    made = MODELS[model]()
    loss = made.loss(*made.batch(torch.Generator().manual_seed(0)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in made.module.parameters())


def test_trainings_with_equal_losses_are_told_from_others():
    def training(losses, rest, step):
        made = end_to_end.Training(MODELS["mlp"](), None)
        made.losses, made.rest_ns, made.step_ns = losses, rest, step
        return made

    trainings = {
        "torch default": training([2.0, 1.0, 0.5], [80.0] * 3, [40.0] * 3),
        "oxistep": training([2.0, 1.0, 0.5], [80.0] * 3, [20.0] * 3),
    }
    found = end_to_end.summary("MLP", trainings)
    assert found["equal"]
    assert found["rows"]["oxistep"]["step_share"] == pytest.approx(0.2)
    assert found["rows"]["torch default"]["ratio"]["median"] == pytest.approx(1.2)
    assert found["rows"]["torch default"]["step_ratio"]["median"] == pytest.approx(2.0)
    trainings["oxistep"].losses = [2.0, 1.01, 0.5]
    assert not end_to_end.summary("MLP", trainings)["equal"]


def test_a_run_from_the_command_line(tmp_path, capsys):
    where, page = tmp_path / "results.json", tmp_path / "page.html"
    chosen = ["--workload", "seven", "--optimizer", "SGD", "--dtype", "float32", "--no-compile", "--seconds", "0.01"]
    assert run.main([*chosen, "--output", str(where), "--page", str(page)]) == 0
    [cell] = results.read(where)["cells"]
    assert cell["name"] == "seven-SGD-float32"
    assert set(cell["ratios"]) >= {"for-loop", "foreach", "fused"}
    assert "oxistep" in capsys.readouterr().out
    assert "7 floats" in page.read_text()
