from collections.abc import Callable
from typing import Any, final

from numpy.typing import NDArray

__all__ = [
    "Plan",
    "__version__",
    "clamp",
    "clip_factor",
    "cpu_features",
    "force_simd",
    "get_num_threads",
    "grad_norm",
    "rule_states",
    "scale",
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
    def step(
        self,
        optimizer: Any,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        unscale: Callable[[], None] | None = None,
    ) -> Any: ...
    def explain(self, optimizer: Any) -> list[tuple[int, int, str, str]]: ...

def cpu_features() -> tuple[str, str]: ...
def force_simd(name: str | None = None) -> None: ...
def simd_levels() -> list[str]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int | None = None) -> None: ...
def use_torch_threads(path: str) -> bool: ...
def grad_norm(tensors: list[Any], norm_type: float) -> tuple[Any, list[int]]: ...
def clip_factor(total_norm: Any, max_norm: float) -> float | None: ...
def scale(tensors: list[Any], factor: float) -> bool: ...
def clamp(tensors: list[Any], low: float, high: float) -> bool: ...
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
