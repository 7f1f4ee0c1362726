"""The commands of `python -m oxistep.bench`: what they refuse, and how they end."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from oxistep.bench import __main__ as bench
from oxistep.bench import memory, plan, results, run
from oxistep.bench.workloads import WORKLOADS


def ended(capsys, *arguments):
    try:
        code = bench.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    output, errors = capsys.readouterr()
    return code, output, errors


@pytest.mark.parametrize(("arguments", "message"), [
    (["memory", "--mebi", "-1"], "--mebi: expected a positive whole number, got '-1'"),
    (["memory", "--mebi", "0"], "--mebi: expected a positive whole number, got '0'"),
    (["memory", "--into", "text"], "is no result of this benchmark"),
    (["memory", "--into", "."], "is a folder"),
    (["threads", "--most", "0"], "--most: expected a positive whole number, got '0'"),
    (["threads", "--most", "two"], "--most: expected a positive whole number, got 'two'"),
    (["threads", "--mebi", "0"], "--mebi: expected a positive whole number"),
    (["threads", "--seconds", "-1"], "--seconds: expected a positive number, got '-1'"),
    (["threads", "--into", "schema"], "is no result of this benchmark"),
    (["end-to-end", "--seconds", "nan"], "--seconds: expected a positive number, got 'nan'"),
    (["end-to-end", "--model", "none"], "--model: invalid choice: 'none'"),
    (["end-to-end", "--into", "text/x.json"], "is not a folder"),
    (["watching", "--seconds", "0"], "--seconds: expected a positive number, got '0'"),
    (["watching", "--seconds", "inf"], "--seconds: expected a positive number, got 'inf'"),
    (["watching", "--output", "text/x.json"], "is not a folder"),
    (["page", "none", "x.html"], "there is no file 'none'"),
    (["page", "binary", "x.html"], "is no result of this benchmark"),
    (["page", "empty", "x.html"], "'empty' has no cells"),
    (["page", "good", "."], "is a folder"),
    (["compare", "good", "none"], "there is no file 'none'"),
    (["compare", "text", "good"], "is no result of this benchmark"),
    (["compare", "good", "good", "--threshold", "nan"], "--threshold: expected a share"),
    (["compare", "good", "good", "--threshold", "1"], "--threshold: expected a share"),
    (["compare", "good", "good", "--threshold", "-0.1"], "--threshold: expected a share"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else "")  # fmt: skip
def test_bad_usage(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff")
    (tmp_path / "schema").write_text('{"schema": 1}')
    (tmp_path / "empty").write_text(json.dumps({"schema": results.SCHEMA}))
    (tmp_path / "good").write_text(json.dumps({"schema": results.SCHEMA, "cells": []}))
    before = sorted(tmp_path.iterdir())
    code, output, errors = ended(capsys, *arguments)
    assert code == 2 and output == ""
    assert errors.startswith("usage: ") and message in errors
    assert sorted(tmp_path.iterdir()) == before


def test_no_command_and_a_wrong_one(capsys):
    assert ended(capsys)[0] == 2
    code, _, errors = ended(capsys, "memroy")
    assert code == 2 and "invalid choice: 'memroy'" in errors


@pytest.mark.parametrize("command", bench.COMMANDS)
def test_what_is_missing_is_named(command):
    hide = "import sys; sys.modules['torch'] = None; "
    code = f"{hide}from oxistep.bench.__main__ import main; sys.exit(main(['{command}', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    expected = f"python -m oxistep.bench {command}: this needs torch, not installed here: pip install 'torch>=2.10'"
    assert done.stderr.strip() == expected


def test_interrupted(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "main", interrupt)
    assert ended(capsys, "memory") == (130, "", "python -m oxistep.bench memory: interrupted\n")


def planned(*arguments):
    return [str(cell) for cell in run.planned(run.arguments([*arguments], None)[1]).cells]


def test_cells_that_torch_refuses_are_left_out_where_no_optimizer_was_named():
    both = planned("--workload", "mlp", "--workload", "embedding")
    assert "embedding-SparseAdam-float32" in both and "mlp-Adam-float32" in both
    assert "mlp-SparseAdam-float32" not in both and "embedding-Adam-float32" not in both
    assert not any(map(plan.refused, (*plan.full(), *plan.quick(), *plan.brief())))


def test_a_step_that_is_called_refused_is(monkeypatch):
    """And one that is not is taken: the table says of each optimizer what torch says."""
    import torch

    from oxistep.bench.optimizer_table import OPTIMIZERS
    from oxistep.bench.record import CellName

    torch.sparse.check_sparse_tensor_invariants.enable()
    for workload, sparse, shape in (("embedding", True, (6, 4)), ("matrices", False, (6, 4)), ("seven", False, (7,))):
        assert bool(WORKLOADS[workload].rows) is sparse
        for title, optimizer in OPTIMIZERS.items():
            if optimizer.clip:
                continue
            parameter = torch.nn.Parameter(torch.ones(shape))
            dense = torch.ones(shape)
            parameter.grad = dense.to_sparse(1) if sparse else dense
            try:
                getattr(torch.optim, optimizer.torch_class)([parameter], **optimizer.arguments).step()
                taken = True
            except (RuntimeError, ValueError):
                taken = False
            assert taken is (plan.refused(CellName(workload, title, "float32")) is None), (workload, title)
