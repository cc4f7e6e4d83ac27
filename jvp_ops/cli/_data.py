"""``jvp-ops data``: which data files are here, fetch those that are not, and check them all."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from jvp_ops.cli._command import Command
from jvp_ops.data import SOURCES, Source, SourceFile, fetch_file, find_file, is_cached, verified_content
from jvp_ops.errors import DataError

_ALL = "all"
_DOWNLOADABLE = ("mnist", "fashion-mnist")


def _options(data: argparse.ArgumentParser) -> None:
    """Add the actions; ``list`` is the action when none is given."""
    data.set_defaults(json=False)
    actions = data.add_subparsers(dest="action", metavar="action")

    listing = actions.add_parser("list", help="show each file and where it was found (the default)")
    listing.set_defaults(run=_list)
    fetching = actions.add_parser("fetch", help="download what is not here into the cache")
    fetching.add_argument("name", choices=[*_DOWNLOADABLE, _ALL])
    fetching.set_defaults(run=_fetch)
    verifying = actions.add_parser(
        "verify",
        help="recompute the checksums; exit 1 if a file is damaged, or missing from a data set named",
    )
    verifying.add_argument("name", nargs="?", default=_ALL, choices=[*SOURCES, _ALL])
    verifying.set_defaults(run=_verify)
    for action in (listing, verifying):
        action.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def _list(arguments: argparse.Namespace) -> int:
    """Show where each file is, without checking it."""
    rows = []
    for source, file in _files(_ALL):
        path = find_file(source, file)
        size = None if path is None else path.stat().st_size
        rows.append(_row(source, file, path, bytes=size))
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(
            ("data set", "file", "bytes", "where"),
            [
                (row["dataset"], row["file"], f"{row['bytes'] or 0:,}" if row["path"] else "-", _where(row))
                for row in rows
            ],
        )
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    """Download each file that is missing, or damaged in the cache; a damaged file elsewhere is the user's."""
    names = _DOWNLOADABLE if arguments.name == _ALL else (arguments.name,)
    for name in names:
        for source, file in _files(name):
            path, fresh = _present_or_fetched(source, file)
            print(f"{name}: {file.name} {'fetched to' if fresh else 'already at'} {path}", flush=True)
    return 0


def _present_or_fetched(source: Source, file: SourceFile) -> tuple[Path, bool]:
    """Return the path of a verified file, and whether it had to be downloaded."""
    path = find_file(source, file)
    if path is not None:
        try:
            verified_content(path, file)
        except DataError:
            if not is_cached(path, source):
                raise
        else:
            return path, False
    return fetch_file(source, file), True


def _verify(arguments: argparse.Namespace) -> int:
    """Recompute the checksum of each file found; answer no with exit status 1."""
    rows = []
    for source, file in _files(arguments.name):
        path, status, problem = find_file(source, file), "missing", None
        if path is not None:
            try:
                verified_content(path, file)
                status = "ok"
            except DataError as error:
                status, problem = "damaged", str(error)
        rows.append(_row(source, file, path, status=status, problem=problem))
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(
            ("data set", "file", "status", "where"),
            [(row["dataset"], row["file"], row["status"], _where(row)) for row in rows],
        )
        for row in rows:
            if row["problem"]:
                print(f"damaged: {row['problem']}")
    bad = {"damaged"} if arguments.name == _ALL else {"damaged", "missing"}
    return int(any(row["status"] in bad for row in rows))


def _files(name: str) -> Iterable[tuple[Source, SourceFile]]:
    """List every file of one data set, or of all."""
    sources = SOURCES.values() if name == _ALL else [SOURCES[name]]
    return [(source, file) for source in sources for file in source.files]


def _row(source: Source, file: SourceFile, path: Path | None, **more: object) -> dict[str, object]:
    """Describe one file as JSON would."""
    return {"dataset": source.name, "file": file.name, "path": None if path is None else str(path), **more}


def _where(row: dict[str, object]) -> str:
    """Say where a file is, for a person."""
    return str(row["path"] or "not found")


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Print columns that line up, the last one free."""
    table = [head, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


COMMAND = Command("data", "list, fetch and verify the data sets", __doc__, _options, _list, long=False)
