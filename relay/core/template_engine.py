"""Jinja in a cage: one field of a webhook's template is compiled and rendered within fixed limits.

Three walls, each enough by itself for what it is for:

- The source is parsed and every node of its syntax tree must be on ``_ALLOWED``: no calls, assignments, macros,
  imports, arithmetic or slices, no loop in a loop, no name that is not in the payload.
- What runs is Jinja's immutable sandbox with no globals, no loader, our filters only, and with attributes that are
  keys of the payload's objects and nothing else: no attribute of a Python object is reachable.
- A rendering counts its work (``Budget``) and its output.

The payload is data. Its text is never parsed, whatever braces are in it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import StrictUndefined, nodes, pass_context
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from relay.core.template_filters import BUDGET, FILTERS, INTERNAL, TESTS, Budget, Refused, text_of

#: Characters of one field's source, half of what all fields of a template may have together; nodes of its syntax tree,
#: and how deep it may be. Compiling is paid by no budget and a post waits for it: with these it takes some 50 ms.
MAX_SOURCE = 16 * 1024
MAX_NODES = 1500
MAX_DEPTH = 48
#: Characters of one field's output.
MAX_OUTPUT = 8 * 1024 * 1024
#: Compiled fields kept: of the twenty webhooks of a site with all the header fields they may have, and of others.
_CACHED = 2048
_SURROGATE = re.compile("[\ud800-\udfff]")
_LOOP = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})

_ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Const,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.Keyword,
    nodes.Filter,
    nodes.Test,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Concat,
    nodes.For,
)


class TemplateError(ValueError):
    """``field`` is the template's: "url", "body", "headers.X-Key", "variables.pipeline", …"""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Names:
    """What a field may name: the top-level names, and of those that are objects with fixed keys, the keys."""

    known: frozenset[str]
    objects: tuple[tuple[str, frozenset[str]], ...] = ()


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            str(obj)  # raises, naming what is undefined
        if isinstance(obj, dict) and isinstance(argument, str) and argument in obj:
            return obj[argument]
        if isinstance(obj, list | tuple) and type(argument) is int and 0 <= argument < len(obj):
            return obj[argument]
        if isinstance(obj, LoopContext) and argument in _LOOP:
            return getattr(obj, argument)
        if obj is None:
            return self.undefined(hint=f"null has no field {argument!r}: ask with {{% if … %}} first")
        return self.undefined(hint=f"there is no field {argument!r} here")


@pass_context
def _shown(_context: Context, value: object) -> str:
    # Takes the context so that nothing is worked out while compiling, where no budget counts.
    return text_of(value)


def _environment() -> _Environment:
    found = _Environment(
        autoescape=False,
        finalize=_shown,
        loader=None,
        lstrip_blocks=True,
        optimized=False,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    found.globals.clear()
    found.filters = {**FILTERS, **INTERNAL}
    found.tests = {name: found.tests[name] for name in TESTS}
    return found


_ENVIRONMENT = _environment()


@dataclass(frozen=True, slots=True)
class Compiled:
    """``variables``: the names of ``variables`` that the source uses; None when it uses them as a whole."""

    template: jinja2.Template
    variables: frozenset[str] | None


def compile_field(source: str, field: str, names: Names) -> Compiled:
    """:raises TemplateError: with the line where there is one."""
    try:
        return _compiled(source, names)
    except Refused as error:
        raise TemplateError(field, str(error)) from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(field, f"line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise TemplateError(field, "is nested too deeply") from None
    except (ValueError, MemoryError) as error:  # a number of too many digits; nesting that Python's own parser refuses
        raise TemplateError(field, f"cannot be compiled: {_short(error)}") from None


def render_field(
    source: str, field: str, names: Names, values: Mapping[str, object], budget: Budget | None = None
) -> str:
    """:raises TemplateError: when the source is not allowed, or does not fit these values or the limits."""
    compiled = compile_field(source, field, names)
    budget = budget or Budget()
    pieces: list[str] = []
    size = 0
    try:
        for piece in compiled.template.generate({**values, BUDGET: budget}):
            size += len(piece)
            budget.spend(len(piece))
            if size > MAX_OUTPUT:
                raise Refused(f"the output is longer than {MAX_OUTPUT} characters")
            pieces.append(piece)
    except Refused as error:
        raise TemplateError(field, str(error)) from None
    except jinja2.UndefinedError as error:
        raise TemplateError(field, _short(error)) from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise TemplateError(field, f"cannot be rendered: {_short(error)}") from None
    return "".join(pieces)


def _short(error: BaseException) -> str:
    return str(error)[:200]


@lru_cache(maxsize=_CACHED)
def _compiled(source: str, names: Names) -> Compiled:
    if len(source) > MAX_SOURCE:
        raise Refused(f"is longer than {MAX_SOURCE} characters")
    tree = _ENVIRONMENT.parse(source)
    variables = _examine(tree, names)
    tree = _Metered().visit(tree)
    tree.set_environment(_ENVIRONMENT)
    return Compiled(jinja2.Template.from_code(_ENVIRONMENT, _ENVIRONMENT.compile(tree), {}), variables)


def _examine(tree: nodes.Template, names: Names) -> frozenset[str] | None:
    """Refuse what is not allowed, without recursion; the names of ``variables`` in use, as in ``Compiled``."""
    targets = {loop.target.name for loop in _walk(tree, nodes.For) if isinstance(loop.target, nodes.Name)}
    known = names.known | targets | ({"loop"} if targets else set())
    keys = dict(names.objects)
    used: set[str] = set()
    mentions = count = 0
    todo: list[tuple[nodes.Node, int, bool]] = [(tree, 0, False)]
    while todo:
        node, depth, looping = todo.pop()
        where = f"line {node.lineno}: "
        count += 1
        if count > MAX_NODES:
            raise Refused(f"has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise Refused(f"{where}is nested too deeply")
        _refuse_kind(node, where, looping, names)
        if isinstance(node, nodes.Name) and node.ctx == "load":
            _refuse_unknown("name", node.name, known, where)
            mentions += node.name == "variables"
        attribute = _attribute(node)
        if attribute is not None:
            base, key = attribute
            if base in keys:
                _refuse_unknown(f"field of {base}", key, keys[base], where)
            if base == "variables":
                used.add(key)
                mentions -= 1
        looping = looping or isinstance(node, nodes.For)
        todo += [(child, depth + 1, looping) for child in node.iter_child_nodes()]
    return None if mentions else frozenset(used)


def _walk(tree: nodes.Node, kind: type[nodes.For]) -> list[nodes.For]:
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        todo += node.iter_child_nodes()
        if isinstance(node, kind):
            found.append(node)
    return found


def _attribute(node: nodes.Node) -> tuple[str, str] | None:
    """``name.key`` or ``name["key"]`` as (name, key)."""
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        return node.node.name, node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name) and isinstance(node.arg, nodes.Const):
        return (node.node.name, node.arg.value) if isinstance(node.arg.value, str) else None
    return None


def _refuse_kind(node: nodes.Node, where: str, looping: bool, names: Names) -> None:
    if type(node) not in _ALLOWED:
        raise Refused(f"{where}{type(node).__name__} is not available in the template of a webhook")
    if isinstance(node, nodes.Filter):
        _refuse_unknown("filter", node.name, frozenset(FILTERS), where)
        if node.node is None:
            raise Refused(f"{where}a filter needs a value")
    if isinstance(node, nodes.Test):
        _refuse_unknown("test", node.name, frozenset(TESTS), where)
    if isinstance(node, nodes.Filter | nodes.Test) and (node.dyn_args is not None or node.dyn_kwargs is not None):
        raise Refused(f"{where}arguments must be written out, without a star")
    if isinstance(node, nodes.Const) and isinstance(node.value, float) and not math.isfinite(node.value):
        raise Refused(f"{where}the number is too large")
    text = node.value if isinstance(node, nodes.Const) else node.data if isinstance(node, nodes.TemplateData) else None
    if isinstance(text, str) and _SURROGATE.search(text):
        raise Refused(f"{where}a character beyond U+FFFF is written as itself, not as two surrogates")
    if isinstance(node, nodes.CondExpr) and node.expr2 is None:
        raise Refused(f"{where}an if within an expression needs an else")
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        raise Refused(f"{where}there is no field {node.attr!r}")
    if isinstance(node, nodes.For):
        if looping or node.recursive:
            raise Refused(f"{where}a loop may not stand in a loop, nor call itself")
        if not isinstance(node.target, nodes.Name) or node.target.name in names.known | {"loop"}:
            raise Refused(f"{where}a loop needs one name of its own for its item")


def _refuse_unknown(what: str, name: str, known: frozenset[str] | set[str], where: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name[:64], sorted(known), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise Refused(f"{where}unknown {what} {name[:64]!r}{hint}")


class _Metered(NodeTransformer):
    """Puts our paying filters in the place of what Jinja would do by itself. Runs on an examined tree."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), " concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, " operand")
        for operand in node.ops:
            operand.expr = _filter(operand.expr, " operand")
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight, todo = 1, [*node.body, *([node.test] if node.test else [])]
        while todo:
            child = todo.pop()
            weight += 1
            todo += child.iter_child_nodes()
        self.generic_visit(node)
        node.iter = _filter(node.iter, " items", nodes.Const(weight, lineno=node.lineno))
        return node


def _filter(value: nodes.Expr | nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(arguments), [], None, None, lineno=value.lineno)
