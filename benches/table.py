"""Print the ratio table of one or more results files as Markdown.

pytest benches --benchmark-json=results.json && python benches/table.py results.json
"""

import json
import sys
from pathlib import Path


def table(path: Path) -> str:
    """Lay one results file out."""
    results = json.loads(path.read_text())
    machine = results["machine_info"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"{where}; Python {machine['python']}, {versions}",
        "",
        "| bench | milliseconds | ratios |",
        "|---|---|---|",
    ]
    for bench in results["benchmarks"]:
        info = bench["extra_info"]
        times = "<br>".join(f"{name}: {value:.1f}" for name, value in info["milliseconds"].items())
        ratios = "<br>".join(f"{name}: {value:.2f}" for name, value in info.get("ratios", {}).items())
        lines.append(f"| {bench['name']} | {times} | {ratios} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(table(Path(name)) for name in sys.argv[1:]))
