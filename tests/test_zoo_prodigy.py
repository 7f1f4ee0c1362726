"""Prodigy: one estimate of the step size, from all parameters of all groups."""

import pytest

torch = pytest.importorskip("torch")

from oxistep import zoo  # noqa: E402

NUMBERS = ("k", "d", "d_max", "d_numerator", "d_denom", "d_hat")


def params_of(shapes=((3, 2), (4,), (2,))):
    made = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=made, dtype=torch.float64).requires_grad_() for shape in shapes]


def give(params, k, absent=()):
    made = torch.Generator().manual_seed(k)
    for i, p in enumerate(params):
        p.grad = None if i in absent else torch.randn(p.shape, generator=made, dtype=torch.float64) + p.detach()


def numbers(optimizer):
    return [{name: group.get(name) for name in NUMBERS} for group in optimizer.param_groups]


def test_numbers_of_the_groups_are_prodigyopts():
    prodigyopt = pytest.importorskip("prodigyopt")
    found = []
    for cls in (zoo.Prodigy, prodigyopt.Prodigy):
        params = params_of()
        optimizer = cls([{"params": params[:1]}, {"params": params[1:]}], d0=1e-3)
        rows = []
        for k in range(8):
            give(params, k, absent=(1, 2) if k in (0, 4) else (0,) if k == 3 else ())
            optimizer.step()
            rows.append(numbers(optimizer))
        found.append(rows)
    for ours, theirs in zip(*found, strict=True):
        assert ours == [pytest.approx(row, rel=1e-9) for row in theirs]
        assert ours[0] == ours[1]


def test_without_gradients_other_than_zero_nothing_goes_on():
    w = torch.ones(3, requires_grad=True)
    optimizer = zoo.Prodigy([w], weight_decay=0.5, d0=0.1)
    before = dict(optimizer.param_groups[0])
    for _ in range(2):
        w.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(w, torch.ones(3))
    assert {name: optimizer.param_groups[0][name] for name in before} == before
    w.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[0]["k"] == 1 and not torch.equal(w, torch.ones(3))


def test_a_group_with_a_rate_of_zero_rests():
    prodigyopt = pytest.importorskip("prodigyopt")
    found = []
    for cls in (zoo.Prodigy, prodigyopt.Prodigy):
        params = params_of()
        optimizer = cls([{"params": params[:1], "lr": 0.0}, {"params": params[1:]}], d0=1e-3)
        start = params[0].detach().clone()
        for k in range(6):
            give(params, k)
            optimizer.step()
        assert torch.equal(params[0], start)
        found.append([p.detach() for p in params])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_group_added_late_has_the_estimate_of_the_others():
    prodigyopt = pytest.importorskip("prodigyopt")
    found = []
    for cls in (zoo.Prodigy, prodigyopt.Prodigy):
        params = params_of()
        optimizer = cls(params[:1], d0=1e-3, use_bias_correction=True)
        for k in range(6):
            if k == 3:
                optimizer.add_param_group({"params": params[1:]})
            give(params, k)
            optimizer.step()
        found.append(([p.detach() for p in params], optimizer.param_groups[1]["d"]))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert found[0][1] == pytest.approx(found[1][1])


def test_groups_must_agree_on_what_the_estimate_follows_from():
    params = params_of()
    optimizer = zoo.Prodigy([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
    give(params, 0)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="only supported for values of 0"):
        optimizer.step()
    optimizer.param_groups[1].update(lr=1.0, d_coef=2.0)
    with pytest.raises(ValueError, match="d_coef"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True)) and not optimizer.state
    optimizer.param_groups[1]["d_coef"] = 1.0
    optimizer.step()


def test_states_of_another_slice_are_refused():
    prodigyopt = pytest.importorskip("prodigyopt")
    params = params_of()
    theirs = prodigyopt.Prodigy(params, slice_p=2)
    give(params, 0)
    theirs.step()
    with pytest.raises(ValueError, match="another slice_p than 1"):
        zoo.Prodigy(params).load_state_dict(theirs.state_dict())


def test_a_scheduler_changes_the_rate_of_all_groups():
    params = params_of()
    optimizer = zoo.Prodigy([{"params": params[:1]}, {"params": params[1:]}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for k in range(5):
        give(params, k)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["k"] == 4  # in the last the rate was zero
