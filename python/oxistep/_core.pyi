from collections.abc import Callable
from typing import Any, final

from numpy.typing import NDArray

__all__ = [
    "Plan",
    "__version__",
    "cpu_features",
    "force_simd",
    "get_num_threads",
    "rule_states",
    "set_num_threads",
    "simd_levels",
    "step_arrays",
    "use_torch_threads",
    "zero_large",
]

__version__: str

@final
class Plan:
    def __new__(cls, rule: str) -> Plan: ...
    def step(self, optimizer: Any) -> None: ...
    def explain(self, optimizer: Any) -> list[tuple[int, int, str, str]]: ...

def cpu_features() -> tuple[str, str]: ...
def force_simd(name: str | None = None) -> None: ...
def simd_levels() -> list[str]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int | None = None) -> None: ...
def use_torch_threads(path: str) -> bool: ...
def zero_large(tensor: Any) -> bool: ...
def rule_states(rule: str, group: dict[str, Any]) -> list[str]: ...
def step_arrays(
    rule: str,
    groups: list[dict[str, Any]],
    lrs: list[float],
    grads: list[list[NDArray[Any] | None]],
    state: list[list[dict[str, NDArray[Any]]]],
    new_state: Callable[[NDArray[Any], dict[str, Any]], dict[str, NDArray[Any]]],
) -> None: ...
