"""Print the zoo as a table in markdown: `PYTHONPATH=. python tests/zoo_table.py`, for docs/trust.md.

The column "outcome" is found out by asking the package, and not written down by anyone.
"""

import logging
import warnings

from test_zoo_maps import asked, check
from zoo import ENTRIES
from zoo_entry import REFUSED
from zoo_judge import judge
from zoo_maps import MAPS

import jvp_ops as jo

HEAD = "| name | what makes it hard | met in | expected | outcome |"


def outcome(entry):
    """Name the worst of what came of every form of the data."""
    found = []
    for form in entry.make().forms:
        try:
            found.append(judge(entry, form).kind)
        except Exception as error:  # the table tells of any, where the tests would fail
            found.append(f"raised {type(error).__name__}")
    return worst(found)


def map_outcome(entry):
    case = entry.make()
    try:
        if entry.expected == REFUSED:
            asked(case)[1].apply(case.state)
            return "wrong"
        check(case)
    except jo.JvpOpsError:
        return "refused"
    except AssertionError:
        return "wrong"
    except Exception as error:
        return f"raised {type(error).__name__}"
    return "right"


def worst(found):
    return max(found, key=lambda kind: {"right": 0, "refused": 1}.get(kind, 2))


def row(entry, came):
    cells = (entry.name, entry.hard, entry.source, entry.expected, came)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table():
    """Ask for every entry, and lay out one row each."""
    yield HEAD
    yield "|---" * 5 + "|"
    for entry in ENTRIES:
        yield row(entry, outcome(entry))
    for entry in MAPS:
        yield row(entry, map_outcome(entry))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for line in table():
        print(line, flush=True)
