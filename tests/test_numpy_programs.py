"""The kinds of programs that people write by hand, with an optimizer in place of their update.

Courses, books, flat vectors, lists of layers, estimators, gradients by other libraries, word vectors, factorisation of
matrices, threads, checkpoints. Each trains, and where a plain loop is easily written, ends where that ends.
"""

import copy
import pickle
import threading
from itertools import pairwise

import numpy as np
import pytest

import oxistep
import oxistep.numpy as optim
from oxistep import schedules

RNG_SEED = 0


def rng():
    return np.random.default_rng(RNG_SEED)


def regression(n=200, d=3):
    x = rng().standard_normal((n, d))
    return x, x @ np.arange(1.0, d + 1) + 0.5


def two_moons(n=200):
    r = rng()
    angle = r.uniform(0, np.pi, n)
    side = r.integers(0, 2, n)
    x = np.stack([np.cos(angle) + side, np.sin(angle) * (1 - 2 * side) + 0.5 * side], axis=1)
    return x + 0.1 * r.standard_normal(x.shape), side


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def cross_entropy(scores, labels):
    scores = scores - scores.max(axis=1, keepdims=True)
    p = np.exp(scores)
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return loss, p / len(labels)


def test_1_linear_regression_of_a_course():
    x, y = regression()
    w, b = np.zeros(3), np.zeros(())
    by_hand = np.zeros(3), 0.0
    optimizer = optim.SGD([w, b], lr=0.1)
    for _ in range(100):
        error = x @ w + b - y
        optimizer.step([x.T @ error / len(x), error.mean()])
        hw, hb = by_hand
        error = x @ hw + hb - y
        by_hand = hw - 0.1 * (x.T @ error / len(x)), hb - 0.1 * error.mean()
    np.testing.assert_allclose(w, by_hand[0], rtol=1e-12)
    np.testing.assert_allclose(b, by_hand[1], rtol=1e-12)


def test_2_logistic_regression_with_the_bias_in_the_weights():
    x, labels = two_moons()
    x = np.hstack([x, np.ones((len(x), 1))])
    theta = np.zeros(3)
    optimizer = optim.RMSprop([theta], lr=0.01)
    for _ in range(300):
        optimizer.step([x.T @ (sigmoid(x @ theta) - labels) / len(x)])
    assert ((x @ theta > 0) == labels).mean() > 0.8


def test_3_a_dict_of_numbered_weights():
    """``parameters["W1"]``, ``grads["dW1"]``, as a well-known course has them."""
    x, labels = two_moons()
    r, sizes = rng(), [2, 16, 16, 2]
    parameters = {}
    for layer in range(1, 4):
        parameters[f"W{layer}"] = r.standard_normal((sizes[layer], sizes[layer - 1])) * np.sqrt(2 / sizes[layer - 1])
        parameters[f"b{layer}"] = np.zeros((sizes[layer], 1))
    optimizer = optim.Adam(parameters, lr=0.01)
    for _ in range(200):
        a, cache = x.T, [x.T]
        for layer in range(1, 4):
            z = parameters[f"W{layer}"] @ a + parameters[f"b{layer}"]
            a = z if layer == 3 else np.maximum(z, 0)
            cache.append(a)
        loss, d = cross_entropy(a.T, labels)
        d, grads = d.T, {}
        for layer in (3, 2, 1):
            grads[f"dW{layer}"] = d @ cache[layer - 1].T
            grads[f"db{layer}"] = d.sum(axis=1, keepdims=True)
            d = parameters[f"W{layer}"].T @ d * (cache[layer - 1] > 0)
        optimizer.step({name: grads["d" + name] for name in parameters})
    assert loss < 0.1


def test_4_lists_of_weights_and_biases_of_a_book():
    x, labels = two_moons()
    r, sizes = rng(), [2, 20, 2]
    weights = [r.standard_normal((m, n)) / np.sqrt(n) for n, m in pairwise(sizes)]
    biases = [np.zeros(m) for m in sizes[1:]]
    optimizer = optim.SGD([weights, biases], lr=0.5, momentum=0.9)
    for _ in range(150):
        hidden = np.tanh(x @ weights[0].T + biases[0])
        loss, d = cross_entropy(hidden @ weights[1].T + biases[1], labels)
        nabla_w, nabla_b = [None, d.T @ hidden], [None, d.sum(axis=0)]
        d = d @ weights[1] * (1 - hidden**2)
        nabla_w[0], nabla_b[0] = d.T @ x, d.sum(axis=0)
        optimizer.step((nabla_w, nabla_b))
    assert loss < 0.1
    assert optimizer.param_groups[0]["param_names"] == ["0.0", "0.1", "1.0", "1.1"]


def test_5_a_flat_vector_with_views():
    x, labels = two_moons()
    theta = rng().standard_normal(2 * 8 + 8 + 8 * 2 + 2) * 0.5
    w1, b1 = theta[:16].reshape(2, 8), theta[16:24]
    w2, b2 = theta[24:40].reshape(8, 2), theta[40:]
    optimizer = optim.Adam([theta], lr=0.05)
    for _ in range(200):
        hidden = np.tanh(x @ w1 + b1)
        loss, d = cross_entropy(hidden @ w2 + b2, labels)
        back = d @ w2.T * (1 - hidden**2)
        grads = [x.T @ back, back.sum(axis=0), hidden.T @ d, d.sum(axis=0)]
        optimizer.step([np.concatenate([grad.ravel() for grad in grads])])
    assert loss < 0.1


def test_6_pairs_of_weight_and_bias_as_of_autograd():
    """``[(W, b), ...]`` with gradients of the same structure."""
    x, y = regression()
    params = [(rng().standard_normal((3, 8)) * 0.5, np.zeros(8)), (rng().standard_normal((8, 1)) * 0.5, np.zeros(1))]

    def grad(params):
        (w1, b1), (w2, b2) = params
        hidden = np.tanh(x @ w1 + b1)
        d = 2 * (hidden @ w2 + b2 - y[:, None]) / len(x)
        back = d @ w2.T * (1 - hidden**2)
        return [(x.T @ back, back.sum(axis=0)), (hidden.T @ d, d.sum(axis=0))], (d**2).sum() * len(x) / 4

    optimizer = optim.Adam(params, lr=0.05)
    first = grad(params)[1]
    for _ in range(300):
        optimizer.step(grad(params)[0])
    assert grad(params)[1] < first / 50


class Dense:
    """A layer as people write it: with ``params`` and ``grads`` of its own."""

    def __init__(self, n, m, r):
        self.params = {"W": r.standard_normal((n, m)) * np.sqrt(2 / n), "b": np.zeros(m)}
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["W"] + self.params["b"]

    def backward(self, d):
        self.grads = {"W": self.x.T @ d, "b": d.sum(axis=0)}
        return d @ self.params["W"].T


class Relu:
    params, grads = {}, {}

    def forward(self, x):
        self.mask = x > 0
        return x * self.mask

    def backward(self, d):
        return d * self.mask


def run_layers(layers, x, labels):
    for layer in layers:
        x = layer.forward(x)
    loss, d = cross_entropy(x, labels)
    for layer in reversed(layers):
        d = layer.backward(d)
    return loss


def test_7_objects_of_layers():
    x, labels = two_moons()
    layers = [Dense(2, 16, rng()), Relu(), Dense(16, 2, rng())]
    optimizer = optim.Adam([layer.params for layer in layers], lr=0.02)
    losses = []
    for _ in range(200):
        losses.append(run_layers(layers, x, labels))
        optimizer.step([layer.grads for layer in layers])
    assert losses[-1] < 0.1


class Estimator:
    """In the manner of scikit-learn: ``fit`` may be called again."""

    def __init__(self, lr=0.1, epochs=100):
        self.lr, self.epochs = lr, epochs

    def fit(self, x, y):
        self.coef_, self.intercept_ = np.zeros(x.shape[1]), np.zeros(())
        optimizer = optim.SGD([self.coef_, self.intercept_], lr=self.lr, momentum=0.9, nesterov=True)
        for _ in range(self.epochs):
            error = self.predict(x) - y
            optimizer.step([x.T @ error / len(x), error.mean()])
        return self

    def predict(self, x):
        return x @ self.coef_ + self.intercept_


def test_8_an_estimator():
    x, y = regression()
    model = Estimator()
    for _ in range(2):
        model.fit(x, y)
        np.testing.assert_allclose(model.coef_, [1, 2, 3], atol=1e-3)
    np.testing.assert_allclose(copy.deepcopy(model).predict(x), pickle.loads(pickle.dumps(model)).predict(x))


def test_9_an_estimator_that_goes_on_after_its_weights_were_replaced_is_told_so():
    x, y = regression()
    model = {"coef": np.zeros(3)}
    optimizer = optim.SGD(model, lr=0.1)
    model["coef"] = np.ones(3)  # a warm start
    with pytest.raises(ValueError, match=r"params\['coef'\] has been replaced"):
        optimizer.step({"coef": x.T @ (x @ model["coef"] - y) / len(x)})
    optimizer.replace("coef", model["coef"])
    for _ in range(200):
        optimizer.step({"coef": x.T @ (x @ model["coef"] - y) / len(x)})
    np.testing.assert_allclose(model["coef"], [1, 2, 3], atol=0.1)


def test_10_mini_batches_with_a_schedule_for_each_epoch():
    x, y = regression(256)
    w, b = np.zeros(3), np.zeros(1)
    optimizer = optim.SGD({"w": w, "b": b}, lr=0.2)
    order = rng()
    for _ in range(20):
        for batch in np.split(order.permutation(256), 8):
            error = x[batch] @ w + b - y[batch]
            optimizer.step({"w": x[batch].T @ error / 32, "b": error.mean(keepdims=True)})
        optimizer.lr *= 0.9
    assert optimizer.lr == pytest.approx(0.2 * 0.9**20)
    np.testing.assert_allclose(w, [1, 2, 3], atol=1e-2)


def test_11_a_schedule_as_a_function_of_the_step():
    x, y = regression()
    w = np.zeros(3)
    optimizer = optim.Adam([w], lr=schedules.one_cycle(0.5, steps=300))
    for _ in range(300):
        optimizer.step([x.T @ (x @ w + 0.5 - y) / len(x)])
    np.testing.assert_allclose(w, [1, 2, 3], atol=1e-3)
    assert optimizer.last_lr < 1e-4


def test_12_a_recurrent_network_with_clipping():
    r = rng()
    hidden, vocabulary = 16, 4
    text = np.tile([0, 1, 2, 3, 2, 1], 8)
    model = {
        "Wxh": r.standard_normal((hidden, vocabulary)) * 0.1,
        "Whh": r.standard_normal((hidden, hidden)) * 0.1,
        "Why": r.standard_normal((vocabulary, hidden)) * 0.1,
        "bh": np.zeros((hidden, 1)),
        "by": np.zeros((vocabulary, 1)),
    }

    def loss_and_grads(inputs, targets):
        grads = {name: np.zeros_like(array) for name, array in model.items()}
        xs, hs, ps, loss = {}, {-1: np.zeros((hidden, 1))}, {}, 0.0
        for t, (i, target) in enumerate(zip(inputs, targets, strict=True)):
            xs[t] = np.eye(vocabulary)[:, [i]]
            hs[t] = np.tanh(model["Wxh"] @ xs[t] + model["Whh"] @ hs[t - 1] + model["bh"])
            p = np.exp(model["Why"] @ hs[t] + model["by"])
            ps[t] = p / p.sum()
            loss -= np.log(ps[t][target, 0])
        later = np.zeros((hidden, 1))
        for t in reversed(range(len(inputs))):
            dy = ps[t].copy()
            dy[targets[t]] -= 1
            grads["Why"] += dy @ hs[t].T
            grads["by"] += dy
            raw = (model["Why"].T @ dy + later) * (1 - hs[t] ** 2)
            grads["bh"] += raw
            grads["Wxh"] += raw @ xs[t].T
            grads["Whh"] += raw @ hs[t - 1].T
            later = model["Whh"].T @ raw
        return loss / len(inputs), grads

    optimizer = optim.Adagrad(model, lr=0.1)
    other = optim.Adagrad(copy.deepcopy(model), lr=0.1, max_grad_norm=5.0)
    for _ in range(60):
        loss, grads = loss_and_grads(text[:-1], text[1:])
        other.step(grads)
        optim.clip_grad_norm(grads, 5.0)
        optimizer.step(grads)
    assert loss < 0.7
    np.testing.assert_allclose(model["Whh"], other.param_groups[0]["params"][1], rtol=1e-9)


def test_13_word_vectors_with_dense_gradients():
    r = rng()
    pairs = np.array([(i, (i + 1) % 10) for i in range(10)] * 4)
    vectors = {"in": r.standard_normal((10, 6)) * 0.1, "out": np.zeros((10, 6))}
    optimizer = optim.Adam(vectors, lr=0.05)
    for _ in range(100):
        loss, d = cross_entropy(vectors["in"][pairs[:, 0]] @ vectors["out"].T, pairs[:, 1])
        grad_in = np.zeros_like(vectors["in"])
        np.add.at(grad_in, pairs[:, 0], d @ vectors["out"])
        optimizer.step({"in": grad_in, "out": d.T @ vectors["in"][pairs[:, 0]]})
    assert loss < 0.1


def test_14_a_vocabulary_that_grows():
    params = {"E": np.ones((3, 4))}
    optimizer = optim.Adam(params, lr=0.1)
    for words in (3, 5, 4):
        grown = np.zeros((words, 4))
        kept = min(words, len(params["E"]))
        grown[:kept] = params["E"][:kept]
        optimizer.replace("E", grown)
        optimizer.step({"E": np.ones((words, 4))})
    np.testing.assert_allclose(params["E"][:3], 0.7, rtol=1e-6)
    assert optimizer.state[0][0]["exp_avg"].shape == (4, 4)


def test_15_factorisation_of_a_matrix():
    r = rng()
    ratings = r.standard_normal((20, 3)) @ r.standard_normal((3, 15))
    known = r.random(ratings.shape) < 0.7
    p, q = r.standard_normal((20, 3)), r.standard_normal((15, 3))
    optimizer = optim.AdamW([p, q], lr=0.05, weight_decay=1e-4)
    for _ in range(800):
        error = known * (p @ q.T - ratings)
        optimizer.step([error @ q, error.T @ p])
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(known * ratings)


def test_16_gradients_of_finite_differences():
    def rosenbrock(x):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    x = np.array([-1.0, 1.0])
    optimizer = optim.Adam([x], lr=0.05)
    for _ in range(1500):
        optimizer.step([[(rosenbrock(x + h) - rosenbrock(x - h)) / 2e-6 for h in np.eye(2) * 1e-6] @ np.eye(2)])
    assert rosenbrock(x) < 1e-3


def test_17_scalars_in_a_list():
    """Each weight an array of its own, as in programs that show how derivatives are propagated."""
    x, y = regression()
    weights = [np.zeros(()) for _ in range(4)]
    optimizer = optim.RMSprop(weights, lr=0.05)
    for _ in range(400):
        error = sum(w * column for w, column in zip(weights, [*x.T, 1.0], strict=True)) - y
        optimizer.step((error * column).mean() for column in [*x.T, np.ones(len(x))])
    np.testing.assert_allclose(weights, [1, 2, 3, 0.5], atol=0.05)


def test_18_two_learning_rates():
    x, y = regression()
    w, b = np.zeros(3), np.zeros(1)
    optimizer = optim.SGD([{"params": {"w": w}}, {"params": {"b": b}, "lr": 0.02}], lr=0.1)
    for _ in range(300):
        error = x @ w + b - y
        optimizer.step({"w": x.T @ error / len(x), "b": error.mean(keepdims=True)})
    optimizer.lr *= 0.5
    assert optimizer.lr.tolist() == [0.05, 0.01]
    np.testing.assert_allclose(w, [1, 2, 3], atol=1e-2)


def test_19_frozen_layers():
    layers = [Dense(2, 8, rng()), Relu(), Dense(8, 2, rng())]
    before = copy.deepcopy(layers[0].params)
    optimizer = optim.Adam([layer.params for layer in layers], lr=0.05)
    x, labels = two_moons()
    for _ in range(50):
        loss = run_layers(layers, x, labels)
        optimizer.step([None, {}, layers[2].grads])
    np.testing.assert_array_equal(layers[0].params["W"], before["W"])
    assert loss < 0.5


def test_20_an_optimizer_for_each_thread():
    x, y = regression()
    found = {}

    def train(name, cls):
        w = np.zeros(3)
        optimizer = cls([w], lr=0.05)
        for _ in range(300):
            optimizer.step([x.T @ (x @ w + 0.5 - y) / len(x)])
        found[name] = w

    threads = [
        threading.Thread(target=train, args=(i, cls)) for i, cls in enumerate((optim.SGD, optim.Adam, optim.SGD))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[1], [1, 2, 3], atol=0.1)


def test_21_training_goes_on_from_a_file(tmp_path):
    x, labels = two_moons()

    def begin(seed):
        layers = [Dense(2, 8, np.random.default_rng(seed)), Relu(), Dense(8, 2, np.random.default_rng(seed))]
        params = [layer.params for layer in layers]
        return layers, params, optim.Adam(params, lr=schedules.cosine(0.05, steps=60))

    def train(layers, optimizer, steps):
        for _ in range(steps):
            run_layers(layers, x, labels)
            optimizer.step([layer.grads for layer in layers])

    layers, params, optimizer = begin(0)
    train(layers, optimizer, 30)
    optim.save(tmp_path / "half-way", params, optimizer)
    train(layers, optimizer, 30)
    again, others, resumed = begin(1)
    optim.load(tmp_path / "half-way", others, resumed)
    train(again, resumed, 30)
    for one, other in zip(params, others, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_22_configurations_in_plain_dicts():
    """``w, config = sgd_momentum(w, dw, config)``, as the exercises of a course have it."""
    x, y = regression()
    update = optim.SGD.functional(lr=0.1, momentum=0.9)
    solver = {"params": {"w": np.zeros(3), "b": np.zeros(1)}}
    solver["config"] = {name: update.init(array) for name, array in solver["params"].items()}
    for _ in range(200):
        error = x @ solver["params"]["w"] + solver["params"]["b"] - y
        grads = {"w": x.T @ error / len(x), "b": error.mean(keepdims=True)}
        for name, dw in grads.items():
            w, config = update.update(solver["params"][name], dw, solver["config"][name])
            solver["params"][name], solver["config"][name] = w, config
    np.testing.assert_allclose(solver["params"]["w"], [1, 2, 3], atol=1e-3)


def test_23_the_best_weights_are_kept():
    x, y = regression()
    params = {"w": np.zeros(3)}
    optimizer = optim.SGD(params, lr=1.9)
    best = np.inf, copy.deepcopy(params)
    for _ in range(30):
        error = x @ params["w"] + 0.5 - y
        if (error**2).mean() < best[0]:
            best = (error**2).mean(), copy.deepcopy(params)
        optimizer.step({"w": 1.2 * x.T @ error / len(x)})
    params.update(best[1])  # arrays of their own: the optimizer would not train them
    with pytest.raises(ValueError, match="has been replaced"):
        optimizer.step({"w": np.zeros(3)})
    for name, array in best[1].items():
        optimizer.replace(name, array)
    optimizer.step({"w": np.zeros(3)})


def test_24_a_rule_of_ones_own():
    @oxistep.rule
    def momentum(p, g, s, lr=0.01, beta=0.9):
        s.v = beta * s.v - lr * g
        return p + s.v

    x, y = regression()
    params = {"layer": {"w": np.zeros(3), "b": np.zeros(1)}}
    optimizer = momentum(params, lr=0.1, follow=True, max_grad_norm=10.0)
    for _ in range(200):
        layer = params["layer"]
        error = x @ layer["w"] + layer["b"] - y
        optimizer.step({"layer": {"w": x.T @ error / len(x), "b": error.mean(keepdims=True)}})
        layer["w"] = layer["w"] * 1.0
    np.testing.assert_allclose(params["layer"]["w"], [1, 2, 3], atol=1e-2)
