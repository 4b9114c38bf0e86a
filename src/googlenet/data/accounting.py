"""Account for every file or entry that a data source encounters: it is used, or excluded for a reason."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from .decode import ImageError

MAX_EXAMPLES = 3  # names that are kept and printed per reason
MAX_REASONS = 12  # reasons that are printed; `to_dict` has all


@dataclass
class Exclusion:
    """The number of items that are excluded for one reason, and the first names."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Accounting:
    """What a data source contains, by kind: "file", "entry" (of a list), "image", "box", "sample" (of a tar file).

    `used` counts the items in use, `excluded` the others by kind and reason. `notes` are facts about the source that
    are not about single items, such as held out images. If it is `strict`, the first invalid item raises ImageError.
    `unreadable` has all images that are excluded because they cannot be read, and why, by name.
    `replaced` has the images that could not be read during training, and why, by name; others were shown instead.
    """

    used: Counter[str] = field(default_factory=Counter)
    excluded: defaultdict[tuple[str, str], Exclusion] = field(default_factory=lambda: defaultdict(Exclusion))
    notes: list[str] = field(default_factory=list)
    strict: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)

    def use(self, kind: str, count: int = 1) -> None:
        """Count items that are used."""
        self.used[kind] += count

    def exclude(self, kind: str, reason: str, name: str, count: int = 1, *, invalid: bool = False) -> None:
        """Count items that are excluded for `reason`; `name` is the first of them.

        An `invalid` item should be usable: a damaged image or a wrong entry, as opposed to a file of another kind.
        """
        if invalid and self.strict and count:
            raise ImageError(f"{name}: {reason}")
        if count:
            exclusion = self.excluded[kind, reason]
            exclusion.count += count
            if len(exclusion.examples) < MAX_EXAMPLES:
                exclusion.examples.append(name)

    def exclude_unreadable(self, kind: str, message: str, name: str) -> None:
        """Count an invalid item by the `message` of an ImageError, with or without the name; details become examples.

        Messages that differ in numbers or in the error of a decoder, such as "damaged image (...)", are one reason.
        """
        if self.strict:
            raise ImageError(message if message.startswith(name) else f"{name}: {message}")
        text = self.unreadable[name] = message.removeprefix(f"{name}: ")
        if match := re.fullmatch(r"(damaged image) \((.*)\)|(?s:(\d+x\d+|its) (pixels are more than .*))", text):
            reason, detail = match[1] or match[4], match[2] or match[3]
            self.exclude(kind, reason, f"{name}: {detail}")
        else:
            self.exclude(kind, text, name)

    def warn(self, message: str) -> None:
        """Add a note about an invalid source, of which single items are not known."""
        if self.strict:
            raise ImageError(message)
        self.notes.append(message)

    def num_excluded(self, kind: str) -> int:
        """Return the number of excluded items of a kind."""
        return sum(exclusion.count for (each, _), exclusion in self.excluded.items() if each == kind)

    def encountered(self, kind: str) -> int:
        """Return the number of used and excluded items of a kind."""
        return self.used[kind] + self.num_excluded(kind)

    def add(self, other: "Accounting", prefix: str = "") -> None:
        """Add the counts of `other`; `prefix`, such as "train: ", is put before its reasons."""
        self.used += other.used
        for (kind, reason), exclusion in other.excluded.items():
            mine = self.excluded[kind, prefix + reason]
            mine.count += exclusion.count
            mine.examples += exclusion.examples[: MAX_EXAMPLES - len(mine.examples)]
        self.notes += other.notes

    def lines(self) -> list[str]:
        """Return one line per reason, the most frequent first, with the count and the first names; then the notes."""
        ordered = sorted(self.excluded.items(), key=lambda item: -item[1].count)
        lines = [_describe(kind, reason, exclusion) for (kind, reason), exclusion in ordered[:MAX_REASONS]]
        if rest := [exclusion.count for _, exclusion in ordered[MAX_REASONS:]]:
            lines.append(f"{sum(rest):,} more excluded for {len(rest)} other reasons, which environment.json lists")
        return [*lines, *self.notes, *describe_replaced(self.replaced)]

    def reasons(self, count: int = 3) -> str:
        """Return the most frequent reasons for an error message, or an empty string."""
        return "; ".join(self.lines()[:count])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        excluded = [
            {"kind": kind, "reason": reason, "count": exclusion.count, "examples": exclusion.examples}
            for (kind, reason), exclusion in self.excluded.items()
        ]
        return {"used": dict(self.used), "excluded": excluded, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Accounting":
        """Create from the values of `to_dict`."""
        result = cls(Counter(values["used"]), notes=list(values["notes"]), replaced=dict(values.get("replaced", {})))
        for item in values["excluded"]:
            result.excluded[item["kind"], item["reason"]] = Exclusion(item["count"], list(item["examples"]))
        return result


def describe_replaced(replaced: dict[str, str]) -> list[str]:
    """Return a line with the number of images that were replaced in training, and the first names; none for none."""
    if not replaced:
        return []
    examples = ", ".join(f"{name}: {reason}" for name, reason in list(replaced.items())[:MAX_EXAMPLES])
    more = ", ..." if len(replaced) > MAX_EXAMPLES else ""
    items = f"{len(replaced):,} {plural('image', len(replaced))}"
    return [f"{items} could not be read in training, others were shown instead ({examples}{more})"]


def plural(kind: str, count: int) -> str:
    """Return the noun for `count` items of a kind."""
    return kind if count == 1 else {"entry": "entries", "box": "boxes"}.get(kind, f"{kind}s")


def _describe(kind: str, reason: str, exclusion: Exclusion) -> str:
    more = ", ..." if exclusion.count > len(exclusion.examples) else ""
    items = f"{exclusion.count:,} {plural(kind, exclusion.count)}"
    return f"{items} excluded: {reason} ({', '.join(exclusion.examples)}{more})"
