"""What the doctor finds: a sentence, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # a job may work, slowly or not everywhere
    BAD = "bad"  # a job will not work


@dataclass(frozen=True)
class Finding:
    """Something about `subject`, on `host` (empty: this one). All but good ones have a remedy."""

    level: Level
    subject: str
    text: str
    remedy: str = ""
    host: str = ""


def ok(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """A job may work, slowly or not everywhere."""
    return Finding(Level.WARNING, subject, text, remedy)


def bad(subject: str, text: str, remedy: str) -> Finding:
    """A job will not work."""
    return Finding(Level.BAD, subject, text, remedy)


def examined(looks: Iterable[Callable[[], Iterable[Finding]]]) -> list[Finding]:
    """What all the looks find. One that fails is a finding as well."""
    found: list[Finding] = []
    for look in looks:
        try:
            found += look()
        except Exception as error:
            name = getattr(look, "__name__", "a look")
            said = f"{type(error).__name__}: {error}"
            found.append(bad(name, said, "this is unexpected: what it says is all that is known"))
    return found


def shown(findings: Sequence[Finding]) -> str:
    """Findings as lines for a terminal, and at the end how many there are of each kind."""
    wide = max((len(each.subject) for each in findings), default=0)
    lines = []
    for each in findings:
        place = f"{each.host}: " if each.host else ""
        lines.append(f"{each.level.value:7}  {each.subject:{wide}}  {place}{each.text}")
        if each.remedy:
            lines.append(f"{'':7}  {'':{wide}}  -> {each.remedy}")
    count = {level: sum(each.level is level for each in findings) for level in Level}
    lines.append(f"{count[Level.BAD]} bad, {count[Level.WARNING]} warnings, {count[Level.OK]} ok")
    return "\n".join(lines)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if a job would not work, else 0."""
    return int(any(each.level is Level.BAD for each in findings))
