"""Which small changes of the code does no test notice?

    python benchmarks/tools/mutants.py src/robustill/losses.py --tests tests/test_losses.py

About five minutes for this file, hours for the package. Each mutant (a sign, a constant, a comparison, a call left out,
...) lives in a fork of a process that has collected the tests, where the code of the functions that exist is exchanged,
so that nothing is imported again. It runs the tests that reach its line, quickest first, until one fails. One JSON line
a mutant goes to OUT, and a later call goes on from there; those that survived are to be looked at. A mutant that takes
three times the processor time of its tests counts as killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest

OPPOSITES = (
    "min max|any all|amin amax|minimum maximum|argmin argmax|clamp_min clamp_max|floor ceil|zeros ones|"
    "zeros_like ones_like|sum mean|exp log"
)
NAMES = {a: b for pair in OPPOSITES.split("|") for a, b in (pair.split(), pair.split()[::-1])}
NOT_VALUES = {"torch", "F", "nn", "np", "math", "os", "json", "self", "cls"}
COMPARED: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMPUTED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True)
class Mutant:
    """One change: the file's syntax tree with it, and the lines whose tests are asked."""

    module: str
    place: str
    lines: range
    before: str
    after: str
    tree: ast.Module
    everywhere: bool

    @property
    def key(self) -> str:
        return f"{self.module}:{self.place} {self.before} -> {self.after}"


def expressions(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand where an expression stands."""
    if isinstance(node, ast.Constant):
        yield from constants(node.value)
    elif isinstance(node, ast.Compare):
        for i, sign in enumerate(node.ops):
            for other in COMPARED[type(sign)]:
                yield ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Call):
        yield from calls(node)


def constants(value: Any) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(0.0 if 0 < abs(value) < 1e-5 else value * 2 or 1.0)
    elif isinstance(value, str):
        yield ast.Constant("XX" + value)


def calls(node: ast.Call) -> Iterator[ast.AST]:
    """The call without one of its named arguments, its opposite, and what it is a method of."""
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in NAMES:
            yield ast.Call(ast.Attribute(node.func.value, NAMES[node.func.attr], ast.Load()), node.args, node.keywords)
        root = node.func.value
        while isinstance(root, ast.Attribute):
            root = root.value
        if not (isinstance(root, ast.Name) and (root.id in NOT_VALUES or root.id[0].isupper())):
            yield node.func.value
    elif isinstance(node.func, ast.Name) and node.func.id in NAMES:
        yield ast.Call(ast.Name(NAMES[node.func.id], ast.Load()), node.args, node.keywords)


def statements(node: ast.stmt) -> Iterator[ast.AST]:
    """What may stand in a statement's place."""
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if stored or called or isinstance(node, ast.Raise | ast.AugAssign | ast.Break | ast.Continue):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign) and type(node.op) in COMPUTED:
        yield ast.AugAssign(node.target, COMPUTED[type(node.op)](), node.value)
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare):
        yield type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)


def left_alone(node: ast.AST, field: str) -> bool:
    """Types, decorators, imports, docstrings and lists of names are no behaviour."""
    return (
        field in ("annotation", "returns", "decorator_list")
        or isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    )


def mutants_of(path: Path, module: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(path.read_text())

    def replaced(parent: ast.AST, field: str, index: int | None, other: ast.AST) -> None:
        if index is None:
            setattr(parent, field, other)
        else:
            getattr(parent, field)[index] = other

    def visit(
        node: ast.AST, parent: ast.AST, field: str, index: int | None, around: ast.stmt | None, called: bool
    ) -> Iterator[Mutant]:
        if left_alone(node, field):
            return
        if isinstance(node, ast.stmt):
            around = node
        span = (
            node
            if isinstance(around, ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.If | ast.With)
            else around
        )
        for other in statements(node) if isinstance(node, ast.stmt) else expressions(node):
            replaced(parent, field, index, ast.copy_location(other, node))
            changed = ast.fix_missing_locations(copy.deepcopy(tree))
            replaced(parent, field, index, node)
            yield Mutant(
                module,
                f"{node.lineno}:{node.col_offset}",
                range(span.lineno, span.end_lineno + 1),
                ast.unparse(node).splitlines()[0],
                ast.unparse(ast.fix_missing_locations(other)).splitlines()[0],
                changed,
                not called,
            )
        if isinstance(node, ast.Raise | ast.JoinedStr):
            return
        for name, value in ast.iter_fields(node):
            inner = called or (isinstance(node, ast.FunctionDef) and name == "body")
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST):
                    yield from visit(child, node, name, i if isinstance(value, list) else None, around, inner)

    for i, statement in enumerate(tree.body):
        yield from visit(statement, tree, "body", i, None, False)


def graft(old: dict[str, Any], new: dict[str, Any], module: str) -> None:
    """Put the code of a module that was run again in place of the code that others hold."""
    for key, value in new.items():
        if key.startswith("__") or key == "annotations" or value is old.get(key):
            continue
        if isinstance(value, type) and value.__module__ == module:
            exchange_class(old[key], value)
        elif callable(value) and getattr(value, "__module__", None) == module:
            exchange(old[key], value)
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            old[key].clear()
            old[key].update(value)
        elif not isinstance(value, type | types.FunctionType | types.ModuleType):
            old[key] = value
        if hasattr(old.get(key), "cache_clear"):
            old[key].cache_clear()


def exchange_class(old: type, new: type) -> None:
    for key, value in vars(new).items():
        mine = vars(old).get(key)
        if isinstance(value, property):
            exchange(mine.fget, value.fget)
        elif isinstance(value, classmethod | staticmethod):
            exchange(mine.__func__, value.__func__)
        elif isinstance(value, types.FunctionType) and value.__code__.co_freevars == mine.__code__.co_freevars:
            exchange(mine, value)
        elif isinstance(value, types.FunctionType) or not (key.startswith("__") or isinstance(value, type)):
            # Functions that a dataclass made, and attributes; slots cannot be set.
            with contextlib.suppress(AttributeError):
                setattr(old, key, value)


def exchange(old: Any, new: Any) -> None:
    while hasattr(old, "__wrapped__"):
        old, new = old.__wrapped__, new.__wrapped__
    if isinstance(old, types.FunctionType):
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


class Driver:
    """Runs in the place of pytest's own loop, once the tests are collected."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.modules = {path: module_name(path) for path in arguments.sources}
        self.failure = ""

    def pytest_sessionstart(self) -> None:
        # A slow machine is no failure, and what one mutant failed on is not to be tried on the next.
        from hypothesis import HealthCheck, settings

        settings.register_profile("mutants", suppress_health_check=list(HealthCheck), database=None, deadline=None)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failure = f"{report.nodeid}: {report.longreprtext.strip().splitlines()[-1]}"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for module in self.modules.values():
            importlib.import_module(module)
        self.items = {item.nodeid: item for item in session.items}
        reached, self.cost = self.baseline(session)
        lines = self.arguments.out.read_text().splitlines() if self.arguments.out.exists() else []
        done = {record["key"]: record["outcome"] for record in map(json.loads, lines)}
        counts = {}
        with self.arguments.out.open("a") as out:
            for path, module in self.modules.items():
                every = list(mutants_of(path, module))
                drawn = random.Random(0).sample(every, min(self.arguments.sample, len(every)))
                if self.arguments.survivors:
                    drawn = [mutant for mutant in every if done.get(mutant.key, "killed") != "killed"]
                same = Mutant(module, "0:0", range(0), "nothing", "nothing", ast.parse(path.read_text()), True)
                copied = self.judge(session, same, reached[module])
                assert copied["outcome"] in ("survived", "unreached"), f"fails on a copy: {copied}"
                for mutant in drawn:
                    if mutant.key in done and not self.arguments.survivors:
                        continue
                    record = self.judge(session, mutant, reached[module])
                    done[mutant.key] = record["outcome"]
                    out.write(json.dumps(record) + "\n")
                    out.flush()
                counts[module] = len(every), Counter(done.get(mutant.key) for mutant in drawn)
        for module, (made, outcomes) in counts.items():
            print(f"\n{module}: {made} mutants, " + ", ".join(f"{n} {what}" for what, n in outcomes.items()), end="")
        return True

    def passes(self, item: Any, following: Any) -> bool:
        self.failure = ""
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return not self.failure

    def baseline(self, session: pytest.Session) -> tuple[dict[str, dict[int, set[str]]], dict[str, float]]:
        """The lines that each test reaches, and what it costs in processor time."""
        files = {str(path.resolve()): module for path, module in self.modules.items()}
        measure = coverage.Coverage(include=list(files), config_file=False, data_file=None)
        cost = {}
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            began = time.process_time()
            measure.start()
            measure.switch_context(item.nodeid)
            assert self.passes(item, following), f"fails as it is: {self.failure}"
            measure.stop()
            cost[item.nodeid] = time.process_time() - began
        data = measure.get_data()
        return {
            module: {line: set(tests) for line, tests in data.contexts_by_lineno(file).items()}
            for file, module in files.items()
        }, cost

    def judge(self, session: Any, mutant: Mutant, reached: dict[int, set[str]]) -> dict[str, Any]:
        # What is not inside a function, such as a class attribute, was reached before any test.
        names = set(self.cost) if mutant.everywhere else set().union(*(reached.get(n, set()) for n in mutant.lines))
        order, chosen, total = sorted(names & set(self.cost), key=self.cost.__getitem__), [], 0.0
        for name in order:
            if chosen and total + self.cost[name] > self.arguments.budget:
                break
            chosen.append(self.items[name])
            total += self.cost[name]
        outcome, why = self.forked(session, mutant, chosen, total) if chosen else ("unreached", "")
        found = {"outcome": outcome, "by": why, "tests": len(chosen), "of": len(order)}
        return {"key": mutant.key, "module": mutant.module, **found}

    def forked(self, session: Any, mutant: Mutant, items: list[Any], cost: float) -> tuple[str, str]:
        sys.stdout.flush()
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            code = 3
            try:
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                signal.signal(signal.SIGPROF, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_PROF, 5 + 3 * cost)
                resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
                code = self.child(session, mutant, items)
                os.write(writing, self.failure.encode()[:1000])
            finally:
                os._exit(code)
        os.close(writing)
        deadline = time.time() + 100 + 20 * (5 + 3 * cost)
        done, status = os.waitpid(child, os.WNOHANG)
        while not done and time.time() < deadline:
            time.sleep(0.005)
            done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            why = pipe.read()
        if os.WIFSIGNALED(status):
            return "killed", f"signal {os.WTERMSIG(status)}"
        if "/_pytest/python.py" in why:  # Not the test has failed, but pytest.
            return "broken", why
        return {0: "survived", 1: "killed"}.get(os.WEXITSTATUS(status), "broken"), why

    def child(self, session: Any, mutant: Mutant, items: list[Any]) -> int:
        module = sys.modules[mutant.module]
        fresh = types.ModuleType(mutant.module)
        fresh.__dict__.update({key: value for key, value in vars(module).items() if key in ("__file__", "__path__")})
        try:
            exec(compile(mutant.tree, str(module.__file__), "exec"), vars(fresh))
        except Exception as error:
            self.failure = f"import: {error}"
            return 1
        graft(vars(module), vars(fresh), mutant.module)
        session._setupstate.teardown_exact(items[0])
        following = [*items[1:], items[-1]]
        return 0 if all(self.passes(*pair) for pair in zip(items, following, strict=True)) else 1


def module_name(path: Path) -> str:
    inside = path.resolve().relative_to(Path("src").resolve()).with_suffix("")
    return ".".join(inside.parts).removesuffix(".__init__")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/mutants.jsonl"))
    parser.add_argument("--sample", type=int, default=sys.maxsize, help="mutants drawn from each file; all by default")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests that a mutant has to survive")
    parser.add_argument("--survivors", action="store_true", help="ask again about those that OUT says were not killed")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist"]
    sys.exit(pytest.main(["-q", *plugins, *arguments.tests], plugins=[Driver(arguments)]))


if __name__ == "__main__":
    main()
