"""All entries of the zoo. `python tests/zoo_table.py` prints them as a table."""

import zoo_coupled
import zoo_implicit
import zoo_losses
import zoo_precision
import zoo_science
import zoo_sequences
import zoo_structures
import zoo_teachers
import zoo_transformers
import zoo_vision
from zoo_entry import Entry

MODULES = (
    zoo_vision,
    zoo_precision,
    zoo_sequences,
    zoo_transformers,
    zoo_losses,
    zoo_teachers,
    zoo_coupled,
    zoo_implicit,
    zoo_science,
    zoo_structures,
)
ENTRIES = [found for module in MODULES for found in vars(module).values() if isinstance(found, Entry)]
assert len({entry.name for entry in ENTRIES}) == len(ENTRIES), "two entries of one name"
