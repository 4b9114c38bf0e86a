"""Print the lines of Python per package and check them against the budgets in pyproject.toml."""

import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def count_lines(root: Path) -> Counter[str]:
    """Return the number of lines of each package of src/googlenet, with the top-level modules as "(top)"."""
    counts = Counter[str]()
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).parts
        counts[parts[0] if len(parts) > 1 else "(top)"] += file.read_text().count("\n")
    return counts


def main() -> int:
    """Print the table; the exit status is 1 if a budget is exceeded."""
    budgets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["googlenet"]["line-budget"]
    counts = count_lines(ROOT / "src" / "googlenet")
    counts["total"] = counts.total()
    exceeded = False
    for package in sorted(counts, key=lambda name: (name == "total", name)):
        budget = budgets.get(package)
        over = budget is None or counts[package] > budget
        exceeded |= over
        note = "" if not over else "  OVER BUDGET: simplify" if budget else "  has no budget in pyproject.toml"
        print(f"{package:<14}{counts[package]:>7,} of {budget or 0:>7,} lines{note}")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
