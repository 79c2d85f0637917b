"""What is promised, whether it was kept, and the run's figures as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Report:
    """Prints as it goes. ``figures`` is all that was measured, by part of the run."""

    figures: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    judged: int = 0

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def judge(self, goal: str, kept: bool, found: str) -> None:
        """Print PASS or FAIL for one goal."""
        self.judged += 1
        self.line(f"  {'PASS' if kept else 'FAIL'}  {goal}: {found}")
        if not kept:
            self.failed.append(goal)

    def finish(self, file: Path | None) -> int:
        """The exit code: 0 when every goal that was judged was kept."""
        if file is not None:
            goals = {"judged": self.judged, "failed": self.failed}
            file.write_text(json.dumps({**self.figures, "goals": goals}, indent=2) + "\n")
        self.line()
        self.line(f"{self.judged - len(self.failed)} of {self.judged} goals kept")
        for goal in self.failed:
            self.line(f"  FAIL  {goal}")
        return 1 if self.failed else 0
