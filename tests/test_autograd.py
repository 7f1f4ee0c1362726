"""What autograd sees of a step: version counters."""

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import (
    draw,
    each_class,
    make,
    set_gradients,
)


@each_class
def test_autograd_notices_that_parameters_changed(name):
    def scenario(optim):
        a, b = draw((4,), (4,))
        optimizer = make(optim, name, [a, b])
        loss = (a * b).sum()  # saves both for backward
        set_gradients([a, b], 0)
        optimizer.step()
        loss.backward()

    assert_agrees_on_the_type_of_error(scenario, RuntimeError, "modified by an inplace operation")


def assert_agrees_on_the_type_of_error(scenario, error, match):
    for optim in (torch.optim, oxistep.optim):
        with pytest.raises(error, match=match):
            scenario(optim)


def test_version_counters_move_once_a_parameter_is_written_and_only_then():
    a, b = draw((4,), (4,))
    optimizer = make(oxistep.optim, "Adam", [a, b])
    base = a.detach()  # shares the counter
    set_gradients([a], 0)
    versions = a._version, b._version
    optimizer.step()
    assert a._version > versions[0]
    assert b._version == versions[1]
    assert base._version == a._version
