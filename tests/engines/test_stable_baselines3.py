"""stable-baselines3, on an environment of a few lines."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import oxistep
import oxistep.optim
from recipes import DIRECTIONS, follow, watched
from scenarios import assert_same

ENVIRONMENT = """
import gymnasium
import numpy as np


class Push(gymnasium.Env):
    '''A point on a line, rewarded for being near its middle.'''

    observation_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, continuous=False):
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,)) if continuous else gymnasium.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.left = self.np_random.uniform(-1, 1), 8
        return np.array([self.x], np.float32), {}

    def step(self, action):
        move = float(action[0]) if hasattr(action, "shape") and action.shape else 2 * int(action) - 1
        self.x = float(np.clip(self.x + 0.2 * move, -2, 2))
        self.left -= 1
        return np.array([self.x], np.float32), -abs(self.x), False, self.left == 0, {}
"""


@pytest.fixture(autouse=True)
def push():
    pytest.importorskip("stable_baselines3")
    namespace = {"__name__": "push"}
    exec(ENVIRONMENT, namespace)
    return namespace["Push"]


def parameters(agent):
    return {name: p.detach() for name, p in agent.policy.named_parameters()}


def test_the_recipe(push):
    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            agent = follow("stable-baselines3", optim, environment=push())["agent"]
            came.append([parameters(agent), agent.policy.optimizer.state_dict()])
    assert type(agent.policy.optimizer) is torch.optim.Adam
    assert len(steps) == 2 * 10 * 2  # rollouts, epochs, batches
    assert {path for step in steps for path in step} == {"native"}
    assert_same(*came, exact=True)


@pytest.mark.parametrize("algorithm", ["A2C", "SAC", "DQN"])
def test_other_algorithms(algorithm, push):
    """SAC's entropy coefficient has an optimizer of torch's."""
    import stable_baselines3

    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            more = {"policy_kwargs": {"optimizer_class": optim.Adam}}
            if algorithm == "A2C":
                more["policy_kwargs"] = {"optimizer_class": optim.RMSprop, "optimizer_kwargs": {"eps": 1e-5}}
                more["use_rms_prop"] = False
            if algorithm in ("SAC", "DQN"):
                more["learning_starts"] = 20
            agent = getattr(stable_baselines3, algorithm)(
                "MlpPolicy", push(continuous=algorithm == "SAC"), seed=0, device="cpu", **more
            )
            agent.learn(40)
            came.append(parameters(agent))
    assert steps
    assert {path for step in steps for path in step} == {"native"}
    assert_same(*came, exact=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_saved_and_loaded(direction, push):
    from stable_baselines3 import PPO

    source, target = DIRECTIONS[direction]
    came = []
    for first, second in ((source, target), (torch.optim, torch.optim)):
        settings = {"optimizer_kwargs": {"eps": 1e-5}}
        agent = PPO(
            "MlpPolicy", push(), n_steps=16, seed=0, device="cpu",
            policy_kwargs={"optimizer_class": first.Adam, **settings}, batch_size=8,
        )  # fmt: skip
        agent.learn(32)
        agent.save("agent")
        other = PPO(
            "MlpPolicy", push(), n_steps=16, seed=1, device="cpu",
            policy_kwargs={"optimizer_class": second.Adam, **settings}, batch_size=8,
        )  # fmt: skip
        other.set_parameters("agent")
        assert type(other.policy.optimizer) is second.Adam
        other.set_random_seed(3)
        other.learn(32)
        came.append([parameters(other), other.policy.optimizer.state_dict()])
    assert_same(*came, exact=True)


def test_swapped_before_it_is_imported():
    program = f"""
import oxistep
oxistep.swap()
import oxistep.optim
import torch
{ENVIRONMENT}
from stable_baselines3 import PPO
agent = PPO("MlpPolicy", Push(), n_steps=16, batch_size=8, seed=0, device="cpu")
assert type(agent.policy.optimizer) is oxistep.optim.Adam
assert agent.policy.optimizer.defaults["eps"] == 1e-5
agent.learn(16)
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr


def test_the_environment_moves(push):
    environment = push()
    environment.reset(seed=0)
    seen, *_ = environment.step(np.int64(1))
    assert environment.observation_space.contains(seen)
