"""The schedule-free optimizers: two points between which parameters move, and steps in train mode alone."""

import pytest

torch = pytest.importorskip("torch")

from oxistep import zoo  # noqa: E402

CLASSES = [zoo.SGDScheduleFree, zoo.AdamWScheduleFree, zoo.RAdamScheduleFree]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def trained(cls, steps=8, dtype=torch.float32, **more):
    made = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=made).to(dtype).requires_grad_() for shape in ((3, 2), (4,))]
    optimizer = cls(params, lr=0.1, **more)
    optimizer.train()
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=made).to(dtype)
        optimizer.step()
    return params, optimizer


@each_class
def test_train_and_eval_move_the_parameters_as_schedulefree_does(cls):
    params, optimizer = trained(cls)
    ys = [p.detach().clone() for p in params]
    zs = [optimizer.state[p]["z"].clone() for p in params]
    version = params[0]._version
    optimizer.eval()
    optimizer.eval()
    assert params[0]._version > version
    xs = [y.lerp(z, 1 - 1 / 0.9) for y, z in zip(ys, zs, strict=True)]
    assert all(torch.equal(p, x) for p, x in zip(params, xs, strict=True))
    optimizer.train()
    optimizer.train()
    assert all(torch.equal(p, x.lerp(z, 1 - 0.9)) for p, x, z in zip(params, xs, zs, strict=True))
    assert all(torch.equal(optimizer.state[p]["z"], z) for p, z in zip(params, zs, strict=True))
    assert [group["train_mode"] for group in optimizer.param_groups] == [True]


@each_class
def test_states_of_another_dtype_move_half_parameters(cls):
    params, optimizer = trained(cls, dtype=torch.bfloat16, state_dtype=torch.float32)
    expected = [p.detach().float().lerp(optimizer.state[p]["z"], 1 - 1 / 0.9).bfloat16() for p in params]
    optimizer.eval()
    assert all(torch.equal(p, e) and p.dtype is torch.bfloat16 for p, e in zip(params, expected, strict=True))


@each_class
def test_step_refuses_in_eval_mode_and_changes_nothing(cls):
    params, optimizer = trained(cls)
    optimizer.eval()
    before = [p.detach().clone() for p in params], dict(optimizer.param_groups[0])
    called = []
    for closure in (None, lambda: called.append(1)):
        with pytest.raises(RuntimeError, match="not in train mode"):
            optimizer.step(closure)
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(RuntimeError, match="not in train mode"):
        optimizer.step()  # the gradients are not zero
    optimizer.param_groups[0]["lr"] = 0.1
    assert not called and before[1] == optimizer.param_groups[0]
    assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))


@each_class
@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_in_eval_mode_a_step_of_zeros_makes_states_and_moves_nothing(cls, rate):
    w = torch.ones(3, requires_grad=True)
    optimizer = cls([w], lr=0.1)
    numbers = dict(optimizer.param_groups[0])
    optimizer.param_groups[0]["lr"] = rate
    w.grad = torch.zeros(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    assert torch.equal(w, torch.ones(3)) and torch.equal(optimizer.state[w]["z"], torch.ones(3))
    assert ("exp_avg_sq" in optimizer.state[w]) == (cls is not zoo.SGDScheduleFree)
    assert optimizer.param_groups[0] == numbers


@each_class
def test_after_training_a_step_of_zeros_in_eval_mode_moves_nothing(cls):
    params, optimizer = trained(cls)
    optimizer.eval()
    before = [p.detach().clone() for p in params], [optimizer.state[p]["z"].clone() for p in params]
    optimizer.param_groups[0]["lr"] = 0.0
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
    assert all(torch.equal(optimizer.state[p]["z"], z) for p, z in zip(params, before[1], strict=True))


@each_class
def test_a_group_added_late_is_in_the_mode_of_the_others(cls):
    _, optimizer = trained(cls)
    late = torch.ones(2, requires_grad=True)
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(2)
    optimizer.step()
    assert [group["train_mode"] for group in optimizer.param_groups] == [True, True]
    y, z = late.detach().clone(), optimizer.state[late]["z"]
    optimizer.eval()
    assert torch.equal(late, y.lerp(z, 1 - 1 / 0.9))


@each_class
def test_a_group_without_gradients_counts_steps(cls):
    pytest.importorskip("schedulefree")
    import schedulefree

    numbers = []
    for made in (cls, getattr(schedulefree, cls.__name__)):
        params = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
        optimizer = made([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], lr=0.1, r=1.0)
        optimizer.train()
        for _ in range(7):
            params[0].grad = torch.ones(2)
            optimizer.step()
        numbers.append(
            [
                [group[name] for name in ("k", "weight_sum", "lr_max", "scheduled_lr")]
                for group in optimizer.param_groups
            ]
        )
    assert numbers[0] == [pytest.approx(row, rel=1e-12) for row in numbers[1]]


@each_class
def test_hooks_are_called_once(cls):
    _, optimizer = trained(cls, 1)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    assert optimizer.step(lambda: 3.0) == 3.0
    assert called == ["pre", "post"]


def test_closures_see_the_point_where_gradients_are_taken():
    w = torch.tensor(1.0, requires_grad=True)
    optimizer = zoo.SGDScheduleFree([w], lr=0.1, max_grad_norm=1.0)
    optimizer.train()

    def closure():
        optimizer.zero_grad()
        loss = w * w
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert optimizer.last_grad_norm == 2.0 and w.item() == pytest.approx(0.9)
