"""Files that a source leaves out, counted by reason, so that a run can report them before it starts."""

from __future__ import annotations

SHOWN = 12  # reasons; a folder of code or documents has files of any number of kinds


class LeftOut(dict[str, int]):
    """Counts by reason. `first` keeps an example of each."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        self[reason] = self.get(reason, 0) + count
        self.first.setdefault(reason, name)

    def lines(self) -> list[str]:
        """One line for everything, the most frequent reason first. No line if nothing was left out."""
        if not self:
            return []
        reasons = sorted(self, key=lambda reason: -self[reason])
        parts = [f"{self[reason]} {reason}, first {self.first[reason]!r}" for reason in reasons[:SHOWN]]
        if rest := reasons[SHOWN:]:
            parts.append(f"{sum(self[reason] for reason in rest)} of {len(rest)} other kinds")
        return [f"left out of the data: {'; '.join(parts)}"]
