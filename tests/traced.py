"""The element-wise rules of torch.optim as a user would write them, and a way to step with a traced rule in float64."""

import numpy as np

from oxistep import rules
from oxistep.rules._run import Given, Run
from oxistep.rules._trace import Facts
from oxistep.rules._tree import Tree


def sgd(p, g, s, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    if weight_decay != 0:
        g = g + weight_decay * p
    if momentum != 0:
        s.momentum_buffer = g if s.step == 1 else momentum * s.momentum_buffer + (1 - dampening) * g
        g = g + momentum * s.momentum_buffer if nesterov else s.momentum_buffer
    return p - lr * g


def adagrad(p, g, s, lr=1e-2, lr_decay=0.0, weight_decay=0.0, eps=1e-10):
    if weight_decay != 0:
        g = g + weight_decay * p
    s.sum = rules.addcmul(s.sum, g, g)
    return rules.addcdiv(p, g, np.sqrt(s.sum) + eps, value=-lr / (1 + (s.step - 1) * lr_decay))


def rmsprop(p, g, s, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    if weight_decay != 0:
        g = g + weight_decay * p
    s.square_avg = alpha * s.square_avg + (1 - alpha) * g * g
    if centered:
        s.grad_avg = rules.lerp(s.grad_avg, g, 1 - alpha)
        root = (s.square_avg - s.grad_avg**2).sqrt() + eps
    else:
        root = s.square_avg.sqrt() + eps
    if momentum > 0:
        s.momentum_buffer = momentum * s.momentum_buffer + g / root
        return p - lr * s.momentum_buffer
    return p - lr * g / root


def adam(p, g, s, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled=False):
    if weight_decay != 0:
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
    s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
    s.exp_avg_sq = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
    second = s.exp_avg_sq
    if amsgrad:
        second = s.max_exp_avg_sq = np.maximum(s.max_exp_avg_sq, second)
    root = np.sqrt(second) / np.sqrt(1 - beta2**s.step) + eps
    return p - lr / (1 - beta1**s.step) * s.exp_avg / root


def adamax(p, g, s, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    if weight_decay != 0:
        g = g + weight_decay * p
    s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
    s.exp_inf = np.maximum(beta2 * s.exp_inf, abs(g) + eps)
    return p - lr / (1 - beta1**s.step) * s.exp_avg / s.exp_inf


def adadelta(p, g, s, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    if weight_decay != 0:
        g = g + weight_decay * p
    s.square_avg = rho * s.square_avg + (1 - rho) * g * g
    delta = np.sqrt(s.acc_delta + eps) / np.sqrt(s.square_avg + eps) * g
    s.acc_delta = rho * s.acc_delta + (1 - rho) * delta * delta
    return p - lr * delta


def nadam(p, g, s, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, momentum_decay=4e-3):
    if weight_decay != 0:
        g = g + weight_decay * p
    mu = beta1 * (1 - 0.5 * 0.96 ** (s.step * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((s.step + 1) * momentum_decay))
    s.mu_product = s.get("mu_product", 1.0) * mu
    s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
    s.exp_avg_sq = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
    root = np.sqrt(s.exp_avg_sq / (1 - beta2**s.step)) + eps
    p = p - lr * (1 - mu) / (1 - s.mu_product) * g / root
    return p - lr * mu_next / (1 - s.mu_product * mu_next) * s.exp_avg / root


def radam(p, g, s, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    if weight_decay != 0:
        g = g + weight_decay * p
    s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
    s.exp_avg_sq = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
    corrected = s.exp_avg / (1 - beta1**s.step)
    largest = 2 / (1 - beta2) - 1
    length = largest - 2 * s.step * beta2**s.step / (1 - beta2**s.step)
    if length > 5:
        rect = ((length - 4) * (length - 2) * largest / ((largest - 4) * (largest - 2) * length)) ** 0.5
        return p - lr * corrected * rect * np.sqrt(1 - beta2**s.step) / (np.sqrt(s.exp_avg_sq) + eps)
    return p - lr * corrected


def asgd(p, g, s, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0):
    if weight_decay != 0:
        g = g + weight_decay * p
    eta, mu = s.get("eta", 0.0), s.get("mu", 1.0)
    if s.step == 1:
        eta = lr
    p = p * (1 - lambd * eta) - eta * g
    s.ax = p if mu == 1 else s.ax + (p - s.ax) * mu
    s.eta = lr / (1 + lambd * lr * s.step) ** alpha
    s.mu = 1 / rules.maximum(1, s.step - t0)
    return p


def rprop(p, g, s, lr=1e-2, eta_minus=0.5, eta_plus=1.2, step_min=1e-6, step_max=50.0):
    prev = s.prev
    size = s.get("step_size", rules.full_like(p, 0.0))
    if s.step == 1:
        size = rules.full_like(p, 1.0) * lr
    sign = np.sign(g * prev)
    factor = np.where(sign > 0, eta_plus, np.where(sign < 0, eta_minus, 1.0))
    s.step_size = rules.clip(size * factor, step_min, step_max)
    g = np.where(sign < 0, 0.0, g)
    s.prev = g
    return p - np.sign(g) * s.step_size


SHAPE = (4, 3)
# Of each class of torch.optim, or of one of its variants: the rule, what both are given, what the rule alone is given.
CASES = [
    ("SGD", sgd, {}, {}),
    ("SGD", sgd, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}, {}),
    ("SGD", sgd, {"momentum": 0.9, "nesterov": True}, {}),
    ("Adagrad", adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}, {}),
    ("RMSprop", rmsprop, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}, {}),
    ("RMSprop", rmsprop, {}, {}),
    ("Adam", adam, {}, {}),
    ("Adam", adam, {"amsgrad": True, "weight_decay": 0.1}, {}),
    ("AdamW", adam, {"weight_decay": 0.1}, {"decoupled": True}),
    ("Adamax", adamax, {"weight_decay": 0.1}, {}),
    ("Adadelta", adadelta, {"weight_decay": 0.1}, {}),
    ("NAdam", nadam, {"weight_decay": 0.1}, {}),
    ("RAdam", radam, {"weight_decay": 0.1}, {}),
    ("ASGD", asgd, {"t0": 3.0, "weight_decay": 0.1}, {}),
    ("Rprop", rprop, {}, {}),
]


class Stepper:
    """Steps with one rule over one array, by NumPy in float64."""

    def __init__(self, rule, p, **hyperparameters):
        import inspect

        defaults = {name: parameter.default for name, parameter in list(inspect.signature(rule).parameters.items())[3:]}
        self.hyperparameters = {**defaults, **hyperparameters}
        words = {k: v for k, v in self.hyperparameters.items() if isinstance(v, (bool, str)) or v is None}
        self.tree = Tree(rule, rule.__name__, {**self.hyperparameters, **words})
        self.p, self.count = np.array(p, np.float64), 0
        self.states, self.numbers, self.of_group = {}, {}, {}

    def given(self, program, g):
        for name, state in program.states.items():
            if state.kind.has_elements:
                start = self.p if state.initial == "p" else np.full_like(self.p, state.initial)
                self.states.setdefault(name, start.copy())
            else:
                self.numbers.setdefault(name, state.initial)
        for name, state in program.of_group.items():
            self.of_group.setdefault(name, state.initial)
        numbers = {k: float(v) for k, v in self.hyperparameters.items() if isinstance(v, (int, float))}
        for k, several in self.hyperparameters.items():
            if isinstance(several, tuple):
                numbers |= {f"{k}[{i}]": v for i, v in enumerate(several)}
        streams = {"p": self.p, "g": g, **self.states}
        return Given(streams, numbers, float(self.count), float(self.p.size), self.of_group, self.numbers)

    def find(self, g):
        """The program of the next step."""
        self.count += 1
        answer = lambda program: float(Run(program, self.given(program, g)).value(program.question))  # noqa: E731
        return self.tree.program(Facts(self.p.shape), answer)

    def step(self, g):
        g = np.asarray(g, np.float64)
        program = self.find(g)
        run = Run(program, self.given(program, g))
        new = dict(zip(program.writes, run.values(program.writes.values()), strict=True))
        numbers = dict(zip(program.numbers, run.values(program.numbers.values()), strict=True))
        self.p = new.pop("p", self.p)
        self.states.update(new)
        for name, value in numbers.items():
            (self.of_group if name in self.of_group else self.numbers)[name] = float(value)
        return program
