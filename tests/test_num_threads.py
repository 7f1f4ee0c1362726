"""``oxistep.set_num_threads("auto")``: the share of one process in the processors of a machine."""

import os

import pytest

import oxistep


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    oxistep.set_num_threads(None)


def may_use(monkeypatch, processors):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)


@pytest.mark.parametrize(
    ("processors", "processes", "threads"),
    [(8, None, 8), (8, "1", 8), (8, "2", 4), (8, "3", 2), (2, "4", 1), (1, None, 1)],
)
def test_auto_is_the_share_of_a_process(monkeypatch, processors, processes, threads):
    may_use(monkeypatch, processors)
    if processes is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    oxistep.set_num_threads("auto")
    assert oxistep.get_num_threads() == threads


@pytest.mark.parametrize(("counted", "threads"), [(6, 3), (None, 1)])
def test_where_the_system_does_not_tell_which_processors(monkeypatch, counted, threads):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    oxistep.set_num_threads("auto")
    assert oxistep.get_num_threads() == threads


@pytest.mark.parametrize("wrong", ["", "0", "-1", "two", "1.5"])
def test_a_wrong_number_of_processes_is_refused(monkeypatch, wrong):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", wrong)
    oxistep.set_num_threads(3)
    with pytest.raises(ValueError, match=rf"LOCAL_WORLD_SIZE: expected .* got '{wrong}'; set it to a positive integer"):
        oxistep.set_num_threads("auto")
    assert oxistep.get_num_threads() == 3


@pytest.mark.parametrize("wrong", ["2", "all", "Auto", ""])
def test_other_strings_are_refused(wrong):
    oxistep.set_num_threads(3)
    with pytest.raises(ValueError, match=rf'n: expected .*, "auto" or None .*, got \'{wrong}\'; a number goes without'):
        oxistep.set_num_threads(wrong)
    assert oxistep.get_num_threads() == 3
