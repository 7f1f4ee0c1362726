"""What is known of one cell (workload x optimizer x dtype) once it has been measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .floors import Verdict, floors_of, verdicts
from .implementations import OURS
from .neighbours import CALM
from .paired import Paired
from .probe import NAME as PROBE


@dataclass(frozen=True)
class CellName:
    workload: str
    optimizer: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.workload}-{self.optimizer}-{self.dtype}".replace(" ", "_")


@dataclass
class Record:
    name: CellName
    parameters: int
    tensors: int
    bytes_per_step: int | None  # None where a step is more than one pass
    missing: dict[str, str]  # implementation -> why it has no row
    wrong: dict[str, str] = field(default_factory=dict)  # implementation -> how its result differs
    shared_tensors: bool = False
    compile_seconds: float | None = None  # torch.compile, with the checked steps
    probe_bytes: int | None = None
    paired: Paired | None = None
    other_cores: float | None = None  # taken by other processes during the paired rounds

    def timed(self) -> Paired:
        if self.paired is None:
            raise LookupError(f"{self.name} has not been measured")
        return self.paired

    @property
    def disturbed(self) -> bool:
        return self.other_cores is not None and self.other_cores > CALM

    @property
    def peers(self) -> list[str]:
        return [name for name in self.timed().nanoseconds if name not in (OURS, PROBE)]

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=self.timed().median, default=None)

    @property
    def gigabytes_per_second(self) -> float | None:
        return None if self.bytes_per_step is None else self.bytes_per_step / self.timed().median(OURS)

    @property
    def probe_gigabytes_per_second(self) -> float | None:
        return None if self.probe_bytes is None else self.probe_bytes / self.timed().median(PROBE)

    @property
    def share_of_ceiling(self) -> float | None:
        """Our bytes a second over the probe's: the median over the rounds."""
        if self.probe_bytes is None or self.bytes_per_step is None:
            return None
        return self.bytes_per_step / self.probe_bytes * self.timed().ratio(PROBE, OURS).median

    @property
    def verdicts(self) -> list[Verdict]:
        ratios = {peer: self.timed().ratio(peer, OURS).median for peer in self.peers}
        return verdicts(floors_of(**asdict(self.name)), ratios, self.share_of_ceiling)

    def to_json(self) -> dict[str, Any]:
        record = {name: value for name, value in asdict(self).items() if name != "paired"}
        record |= asdict(self.name) | {"name": str(self.name)}
        if self.paired is not None:
            timed = self.paired
            record |= {
                "nanoseconds": {name: timed.median(name) for name in timed.nanoseconds},
                "rounds": {name: len(rounds) for name, rounds in timed.nanoseconds.items()},
                "steps_per_block": timed.steps_per_block,
                "best_peer": self.best_peer,
                "ratios": {peer: asdict(timed.ratio(peer, OURS)) for peer in self.peers},
                "gigabytes_per_second": self.gigabytes_per_second,
                "probe_gigabytes_per_second": self.probe_gigabytes_per_second,
                "share_of_ceiling": self.share_of_ceiling,
                "floors": [asdict(verdict) for verdict in self.verdicts],
            }
        return record
