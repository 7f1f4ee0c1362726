"""skorch: scikit-learn's interface, which clones, pickles and searches."""

import pickle

import pytest
import torch

import oxistep
import oxistep.optim
from recipes import BATCHES, DIRECTIONS, follow, model, native, watched
from scenarios import assert_same


@pytest.fixture(autouse=True)
def skorch():
    return pytest.importorskip("skorch")


def data():
    x, y = (torch.cat(parts).numpy() for parts in zip(*BATCHES, strict=True))
    return x, y


def test_the_recipe():
    inputs, targets = data()
    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            torch.manual_seed(0)
            net = follow("skorch", optim, model=model(), inputs=inputs, targets=targets)["net"]
            came.append([net.history[:, "train_loss"], net.module_.state_dict(), net.optimizer_.state_dict()])
    assert steps == native(3)
    assert_same(*came, exact=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_loaded_pickled_and_searched(direction, skorch):
    from sklearn.model_selection import GridSearchCV

    inputs, targets = data()

    def made(optim):
        torch.manual_seed(0)
        return skorch.NeuralNetRegressor(model(), optimizer=optim.Adam, max_epochs=2, verbose=0)

    source, target = DIRECTIONS[direction]
    came = []
    for first, second in ((source, target), (torch.optim, torch.optim)):
        net = made(first).fit(inputs, targets)
        net.save_params(f_params="model.pt", f_optimizer="optimizer.pt")
        again = made(second).initialize()
        again.load_params(f_params="model.pt", f_optimizer="optimizer.pt")
        again = pickle.loads(pickle.dumps(again))
        again.partial_fit(inputs, targets)
        assert type(again.optimizer_) is second.Adam
        came.append([again.module_.state_dict(), again.optimizer_.state_dict()])
        search = GridSearchCV(made(second), {"lr": [0.1, 0.01]}, cv=2, scoring="neg_mean_squared_error")
        torch.manual_seed(0)
        came[-1].append(search.fit(inputs, targets).cv_results_["mean_test_score"].tolist())
    assert_same(*came, exact=True)
