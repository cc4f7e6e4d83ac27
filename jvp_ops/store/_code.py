"""What compiled code says of itself: its instructions, the names it reads from outside, and those it binds again."""

import dis
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType

_OURS = {"torch", "numpy", "scipy", "jvp_ops", *sys.stdlib_module_names}
_READS = {"LOAD_GLOBAL": "global", "LOAD_NAME": "global", "LOAD_DEREF": "variable"}
_BINDS = {
    "STORE_GLOBAL": "global",
    "DELETE_GLOBAL": "global",
    "STORE_DEREF": "variable",
    "DELETE_DEREF": "variable",
}
Chain = tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """The outer names of some code and of all code nested in it.

    Parameters
    ----------
    globals, variables : tuple of tuple of str
        Each with the attributes that are taken of it at once: ``("torch", "nn", "functional", "relu")``; sorted.
    changed : frozenset of (str, str)
        ("global" or "variable", name): what the code itself binds again, such as a count of its calls.
    """

    globals: tuple[Chain, ...]
    variables: tuple[Chain, ...]
    changed: frozenset[tuple[str, str]]


def outer_names(code: CodeType) -> Names:
    """Find the globals and closed-over variables that code reads and binds again."""
    read: dict[str, set[Chain]] = {"global": set(), "variable": set()}
    changed: set[tuple[str, str]] = set()
    for part in _with_nested(code):
        scope, chain = "global", Chain()
        for step in dis.get_instructions(part):
            if step.opname == "EXTENDED_ARG":
                continue
            if chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                chain = (*chain, str(step.argval))
                continue
            if chain:
                read[scope].add(chain)
            scope = _READS.get(step.opname, "global")
            chain = (str(step.argval),) if step.opname in _READS else Chain()
            if step.opname in _BINDS:
                changed.add((_BINDS[step.opname], str(step.argval)))
    return Names(tuple(sorted(read["global"])), tuple(sorted(read["variable"])), frozenset(changed))


def instructions(code: CodeType) -> tuple[object, ...]:
    """Give what decides what code does, without its constants, its place and its line numbers."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_code, code.co_exceptiontable, code.co_flags, code.co_argcount, code.co_kwonlyargcount, *names)


def module_of(function: FunctionType) -> str:
    """Name the module that a function was written in, whatever function it poses as."""
    return str(function.__globals__.get("__name__", ""))


def is_ours(module: str) -> bool:
    """Say whether code is Python's, torch's, numpy's, scipy's or this package's, which versions name well enough."""
    return module.partition(".")[0] in _OURS


def is_library(module: str) -> bool:
    """Say whether a module is installed, rather than the user's own work."""
    return is_ours(module) or _is_installed(module.partition(".")[0])


@cache
def _is_installed(top: str) -> bool:
    module = sys.modules.get(top)
    places = [place for place in (getattr(module, "__file__", None), *getattr(module, "__path__", ())) if place]
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    folders += [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    return any(Path(place).is_relative_to(folder) for place in places for folder in folders)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)
