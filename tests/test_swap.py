"""``oxistep.swap``: our classes under torch's names, and out again."""

import pickle
import sys

import pytest
import torch

import fresh
import oxistep
import oxistep.optim
from every_torch_class import KWARGS

NAMES = sorted(KWARGS)


def there():
    """What is in torch.optim now."""
    return dict(vars(torch.optim))


@pytest.fixture(autouse=True)
def as_it_was():
    before = there()
    yield
    assert there() == before


def test_every_class_is_ours_and_nothing_else_changes():
    before = there()
    submodules = {name: dict(vars(module)) for name, module in sys.modules.items() if name.startswith("torch.optim.")}
    with oxistep.swap():
        now = there()
        assert sorted(name for name in now if now[name] is not before[name]) == NAMES
        assert all(now[name] is getattr(oxistep.optim, name) for name in NAMES)
        assert list(now) == list(before)
        assert all(dict(vars(sys.modules[name])) == content for name, content in submodules.items())
    assert there() == before


def test_an_exception_in_the_block_undoes_it():
    before = torch.optim.SGD
    with pytest.raises(ZeroDivisionError), oxistep.swap():
        assert torch.optim.SGD is oxistep.optim.SGD
        1 / 0  # noqa: B018
    assert torch.optim.SGD is before


def test_undo_twice():
    before = there()
    swapped = oxistep.swap()
    swapped.undo()
    assert there() == before
    with oxistep.swap():
        swapped.undo()
        assert torch.optim.SGD is oxistep.optim.SGD
    with pytest.raises(RuntimeError, match=r"undone: call oxistep\.swap\(\) again"), swapped:
        pass


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_nested_in_any_order(order):
    before = there()
    swaps = [oxistep.swap() for _ in range(3)]
    for k in order:
        assert torch.optim.Adam is oxistep.optim.Adam
        swaps[k].undo()
    assert there() == before


def test_what_was_there_is_put_back_whatever_it_was(monkeypatch):
    class Patched(torch.optim.AdamW):
        pass

    monkeypatch.setattr(torch.optim, "AdamW", Patched)
    monkeypatch.setattr(torch.optim, "SGD", oxistep.optim.SGD)
    with oxistep.swap():
        assert torch.optim.AdamW is oxistep.optim.AdamW
    assert torch.optim.AdamW is Patched
    assert torch.optim.SGD is oxistep.optim.SGD


def test_what_was_put_between_two_swaps_is_put_back(monkeypatch):
    with oxistep.swap():
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim, "Adam", dict)
            with oxistep.swap():
                assert torch.optim.Adam is oxistep.optim.Adam
            assert torch.optim.Adam is dict
        assert torch.optim.Adam is oxistep.optim.Adam


def test_what_somebody_else_put_in_is_left(monkeypatch):
    before = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", before)  # puts it back in the end
    with oxistep.swap():
        torch.optim.Adam = dict
    assert torch.optim.Adam is dict
    assert torch.optim.AdamW is not oxistep.optim.AdamW


def test_an_older_torch_without_a_class(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with oxistep.swap():
        assert not hasattr(torch.optim, "Muon")
        assert torch.optim.Adam is oxistep.optim.Adam
    assert not hasattr(torch.optim, "Muon")


def test_pickles_of_both_and_the_way_back_to_torch_go_on():
    p = torch.nn.Parameter(torch.ones(3))
    theirs = torch.optim.AdamW([p])
    with oxistep.swap():
        assert type(pickle.loads(pickle.dumps(theirs))) is type(theirs)
        ours = torch.optim.AdamW([p])
        assert type(pickle.loads(pickle.dumps(ours))) is oxistep.optim.AdamW
        # a tensor on another device than the CPU is left to torch's step
        m = torch.nn.Parameter(torch.ones(3, device="meta"))
        m.grad = torch.ones(3, device="meta")
        optimizer = torch.optim.AdamW([m])
        assert [row.path for row in oxistep.explain(optimizer)] == ["torch"]
        optimizer.step()
        assert optimizer.state[m]["exp_avg"].device.type == "meta"


PROGRAM = """
import sys
import oxistep
oxistep.swap()
sys.path.insert(0, {folder!r})
import library
import oxistep.optim
assert type(library.by_string("AdamW")) is oxistep.optim.AdamW
assert library.eps_of() == 1e-5
assert library.eps_of(library.torch.optim.Adam) == 1e-5
print("ok")
"""
LIBRARY = """
import torch

def by_string(name):
    return getattr(torch.optim, name)([torch.zeros(1)])

def eps_of(optimizer_class=torch.optim.Adam):  # as stable-baselines3 chooses
    return 1e-5 if optimizer_class is torch.optim.Adam else 1e-8
"""


def test_programs_that_choose_by_string_or_compare_classes(tmp_path):
    (tmp_path / "library.py").write_text(LIBRARY)
    done = fresh.python(PROGRAM.format(folder=str(tmp_path)))
    assert done.stdout == "ok\n", done.stderr


def test_what_was_imported_before_stays_torchs(tmp_path, monkeypatch):
    (tmp_path / "library_before.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    import library_before

    with oxistep.swap():
        assert library_before.eps_of() == 1e-8  # which is why the docstring says: before the program is imported
        assert type(library_before.by_string("SGD")) is oxistep.optim.SGD
