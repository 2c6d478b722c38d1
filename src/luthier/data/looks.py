"""Which chat templates do nothing with contents but insert them, or look for a text in them.

Qwen's looks for ``</think>``: contents in which it finds none it inserts. The template's syntax tree
says so; what isn't known here is not accepted, and such a template is run for every row.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from jinja2 import nodes


@dataclass
class Looks:
    """What a template asks about contents; where the answer is no, it only inserts them.

    Attributes:
        texts: it looks for them in contents.
        edges: characters that it takes away at the ends of contents.
        empty: it asks whether a content is empty.
    """

    texts: set[str] = field(default_factory=set)
    edges: set[str] = field(default_factory=set)
    empty: bool = False

    def pass_over(self, content: str) -> bool:
        """Whether the template finds nothing of that in ``content``."""
        return (
            not (self.empty and not content)
            and not (self.edges and self.edges.intersection((content[:1], content[-1:])))
            and not any(text in content for text in self.texts)
        )


def looks_of(template: nodes.Template, given: Collection[str] = ()) -> Looks | None:
    """What a template asks about contents; None where it may do more than ask and insert.

    It is given turns that have a role and a content alone, no tools and no documents.

    Args:
        given: names that it knows beside ``messages`` and those that it sets.
    """
    reader = _Reader(template, given)
    return reader.looks if reader.accepts(template.body) else None


_NONE = ("tools", "documents")
_FIELDS = ("role", "content", "input")
_STRIPS = ("strip", "lstrip", "rstrip")
_METHODS = (*_STRIPS, "split", "startswith", "endswith", "upper", "lower", "title", "replace")
_TESTS = (
    "defined",
    "undefined",
    "none",
    "string",
    "true",
    "false",
    "boolean",
    "mapping",
    "iterable",
)


class _Reader:
    """Reads a template, of which it first collects what each name may hold."""

    def __init__(self, template: nodes.Template, given: Collection[str]) -> None:
        self.looks = Looks()
        assigned: dict[str, list[nodes.Node]] = {}
        for each in template.find_all(nodes.Assign):
            for name in _names(each.target):
                assigned.setdefault(name, []).append(each.node)
        # Names that hold turns, all or some of them; those of one turn; those that else are bound.
        self._lists = {"messages"}
        self._lists |= {name for name, of in assigned.items() if all(map(self._is_list, of))}
        loops = [(_names(each.target), each.iter) for each in template.find_all(nodes.For)]
        others = {name for names, of in loops if not self._is_list(of) for name in names}
        bound = [each for macro in template.find_all(nodes.Macro) for each in macro.args]
        bound += [each for block in template.find_all(nodes.CallBlock) for each in block.args]
        others.update(name for each in bound for name in _names(each))
        known = {*given, *_NONE, "messages", "loop", "add_generation_prompt", "self"}
        self._taken = {name for names, _ in loops for name in names} | others
        self._turns = self._taken - others - known - assigned.keys()
        macros = {each.name for each in template.find_all(nodes.Macro)}
        self._defined = known | self._taken | macros | assigned.keys()
        self._none = {
            name
            for name in _NONE
            if name not in self._taken
            and all(isinstance(n, nodes.Const) and n.value is None for n in assigned.get(name, ()))
        }
        spaces = {name for name, of in assigned.items() if all(map(_is_namespace, of))}
        self._spaces = spaces - self._taken - known
        self._contents: set[str] = (
            set()
        )  # names and attributes of namespaces that hold one as it is
        self._texts: set[str] = set()  # those that hold texts with contents in them
        reached = list(self._assigned(template.body))
        looking = {name for name, value in reached if self._field(value) != "content"}
        self._contents = {name for name, _ in reached} - looking - known
        while True:  # a name may be set from another
            found = {name for name, value in reached if not self._free(value)} - self._lists
            if found == self._texts:
                return
            self._texts = found

    def _assigned(self, body: Sequence[nodes.Node]) -> Iterator[tuple[str, nodes.Node]]:
        """What is set where a row of text alone may come."""
        for node in body:
            if isinstance(node, nodes.If):
                for branch in self._branches(node):
                    yield from self._assigned(branch)
            elif isinstance(node, nodes.For):
                yield from self._assigned([*node.body, *node.else_])
            elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.NSRef):
                yield f"{node.target.name}.{node.target.attr}", node.node
            elif isinstance(node, nodes.Assign):
                for name in _names(node.target):
                    if isinstance(node.node, nodes.Call) and _is_namespace(node.node):
                        yield from ((f"{name}.{each.key}", each.value) for each in node.node.kwargs)
                    else:
                        yield name, node.node

    def accepts(self, body: Sequence[nodes.Node]) -> bool:
        return all(map(self._statement, body))

    def _branches(self, node: nodes.If) -> Iterator[Sequence[nodes.Node]]:
        """Those that may be taken."""
        for each in (node, *node.elif_):
            truth = self._truth(each.test)
            if truth is not False:
                yield each.body
            if truth:
                return
        yield node.else_

    def _statement(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Output):
            return all(isinstance(n, nodes.TemplateData) or self._text(n) for n in node.nodes)
        if isinstance(node, nodes.If):
            tests = (each.test for each in (node, *node.elif_))
            return all(map(self._is_sure, tests)) and all(map(self.accepts, self._branches(node)))
        if isinstance(node, nodes.For):
            return (
                isinstance(node.target, nodes.Name)
                and node.target.name in self._turns
                and self._is_list(node.iter)
                and node.test is None
                and not node.recursive
                and self.accepts(node.body)
                and self.accepts(node.else_)
            )
        return isinstance(node, nodes.Assign) and self._assignment(node.target, node.node)

    def _assignment(self, target: nodes.Node, value: nodes.Node) -> bool:
        if isinstance(target, nodes.NSRef):
            return target.name in self._spaces and self._text(value)
        if not isinstance(target, nodes.Name) or target.name == "loop":
            return False
        if target.name in self._lists:
            return self._is_list(value)
        if isinstance(value, nodes.Call) and target.name in self._spaces:
            return all(self._text(each.value) for each in value.kwargs)
        return self._text(value)

    def _is_list(self, node: nodes.Node) -> bool:
        """Whether it is all turns, or some of them."""
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            return self._is_list(node.node) and all(n is None or _is_number(n) for n in bounds)
        return isinstance(node, nodes.Name) and node.name in self._lists

    def _text(self, node: nodes.Node) -> bool:
        """Whether it is a text in which contents are inserted at most."""
        if isinstance(node, nodes.Add):
            return self._text(node.left) and self._text(node.right)
        if isinstance(node, nodes.CondExpr):
            truth = self._truth(node.test)
            branches: list[nodes.Expr | None] = [node.expr1] if truth is not False else []
            branches += [] if truth else [node.expr2]
            return self._is_sure(node.test) and all(
                each is not None and self._text(each) for each in branches
            )
        if isinstance(node, nodes.Filter) and node.name == "trim" and not _given(node):
            return node.node is not None and self._is_content(node.node)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            stripped = self._is_content(node.node.node) and node.node.attr in _STRIPS
            if stripped and not _given(node):
                return node.node.attr == "strip"
            if stripped and not _given(node, 1) and (edges := _constant(node.args[0])):
                self.looks.edges.update(edges)
                return True
        if self._name(node) in self._texts:
            return True
        return self._field(node) == "content" or self._free(node)

    def _is_content(self, node: nodes.Node) -> bool:
        """Whether it is the content of a turn, as it is."""
        return self._field(node) == "content" or self._name(node) in self._contents

    def _truth(self, node: nodes.Node) -> bool | None:
        """What a test says of every row whose contents the template passes over; None: it depends."""
        if isinstance(node, nodes.Not):
            truth = self._truth(node.node)
            return None if truth is None else not truth
        if isinstance(node, nodes.And | nodes.Or):
            decides = isinstance(node, nodes.Or)
            left, right = self._truth(node.left), self._truth(node.right)
            if left is decides or (right is decides and self._is_sure(node.left)):
                return decides
            return right if left is (not decides) else None
        if isinstance(node, nodes.Test):
            return None if _given(node) else self._tested(node.node, node.name)
        if isinstance(node, nodes.Compare) and len(node.ops) == 1:
            return self._found(node.expr, node.ops[0].expr, node.ops[0].op)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            if node.node.attr in ("startswith", "endswith") and not _given(node, 1):
                return self._found(node.args[0], node.node.node, "in")
            return None
        if self._is_undefined(node) or self._name(node) in self._none:
            return False
        if self._field(node) == "content":
            self.looks.empty = True
            return True
        return None

    def _found(self, text: nodes.Node, content: nodes.Node, operator: str) -> bool | None:
        looked_for = _constant(text)
        if operator not in ("in", "notin") or not looked_for or not self._is_content(content):
            return None
        self.looks.texts.add(looked_for)
        return operator == "notin"

    def _tested(self, node: nodes.Node, test: str) -> bool | None:
        if test not in _TESTS:
            return None
        if self._is_undefined(node):
            return test in ("undefined", "iterable")
        if self._name(node) in self._none:
            return test in ("defined", "none")
        if self._field(node) == "content":
            return test in ("defined", "string", "iterable")
        return None

    def _is_undefined(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Name):
            return node.name not in self._defined
        name = self._field(node)
        return bool(name) and name not in _FIELDS and not hasattr(dict, name)

    def _is_sure(self, node: nodes.Node) -> bool:
        """Whether the test says the same for all turns of the same roles."""
        if self._truth(node) is not None:
            return True
        if isinstance(node, nodes.And | nodes.Or):
            return self._is_sure(node.left) and self._is_sure(node.right)
        return self._is_sure(node.node) if isinstance(node, nodes.Not) else self._free(node)

    def _free(self, node: nodes.Node) -> bool:
        """Whether its value is the same for all turns of the same roles."""
        if isinstance(node, nodes.Const):
            return True
        if isinstance(node, nodes.Name):
            return node.name not in {
                *self._taken, *self._texts, *self._lists, *self._spaces, "loop"
            }  # fmt: skip
        if isinstance(node, nodes.Test | nodes.Compare | nodes.Call) and (
            self._truth(node) is not None
        ):
            return True
        if isinstance(node, nodes.Filter):
            counts = node.name in ("length", "count") and not _given(node)
            return counts and node.node is not None and self._is_list(node.node)
        if isinstance(node, nodes.Getattr) and _is_loop(node.node):
            return node.attr in ("first", "last", "index", "index0", "revindex", "length")
        if isinstance(node, nodes.Call):
            called = node.node
            if isinstance(called, nodes.Getattr) and called.attr in _METHODS:
                asked = not _given(node, len(node.args)) and all(map(self._free, node.args))
                return asked and self._free(called.node)
            # It ends the rendering: the row is rendered in full then.
            name = called.name if isinstance(called, nodes.Name) else ""
            return name == "raise_exception" and not _given(node, 1) and self._free(node.args[0])
        if isinstance(node, nodes.Compare):
            return self._free(node.expr) and all(self._free(each.expr) for each in node.ops)
        if isinstance(node, nodes.Test):
            return node.name in _TESTS and not _given(node) and self._free(node.node)
        if isinstance(node, nodes.And | nodes.Or | nodes.Add | nodes.Sub | nodes.Mod):
            return self._free(node.left) and self._free(node.right)
        if isinstance(node, nodes.List | nodes.Tuple):
            return all(map(self._free, node.items))
        if isinstance(node, nodes.Not):
            return self._is_sure(node.node)
        if isinstance(node, nodes.Neg):
            return self._free(node.node)
        name = self._name(node)
        if "." in name:
            return name not in self._texts
        return self._field(node) == "role" or self._is_undefined(node)

    def _name(self, node: nodes.Node) -> str:
        """The name of a variable, or of a namespace and its attribute; else nothing."""
        if isinstance(node, nodes.Name):
            return node.name
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
            return f"{node.node.name}.{node.attr}" if node.node.name in self._spaces else ""
        return ""

    def _field(self, node: nodes.Node) -> str:
        """The field of a turn that is read here, or nothing."""
        if isinstance(node, nodes.Getattr):
            of, name = node.node, node.attr
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            of, name = node.node, str(node.arg.value)
        else:
            return ""
        if isinstance(of, nodes.Name):
            return name if of.name in self._turns else ""
        if isinstance(of, nodes.Getitem) and self._is_list(of.node):
            return name if not isinstance(of.arg, nodes.Slice) and self._free(of.arg) else ""
        return ""


def _names(target: nodes.Node) -> list[str]:
    """The names that an assignment or a loop sets."""
    if isinstance(target, nodes.Name):
        return [target.name]
    return [each.name for each in target.find_all(nodes.Name)]


def _is_namespace(node: nodes.Node) -> bool:
    if not isinstance(node, nodes.Call) or not isinstance(node.node, nodes.Name):
        return False
    others = node.args or node.dyn_args is not None or node.dyn_kwargs is not None
    return node.node.name == "namespace" and not others


def _constant(node: nodes.Node) -> str:
    """A text that stands there; empty where something else does."""
    return node.value if isinstance(node, nodes.Const) and type(node.value) is str else ""


def _is_number(node: nodes.Node) -> bool:
    value = node.node if isinstance(node, nodes.Neg) else node
    return isinstance(value, nodes.Const) and type(value.value) is int


def _is_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "loop"


def _given(node: nodes.Filter | nodes.Test | nodes.Call, count: int = 0) -> bool:
    """Whether other than ``count`` arguments stand there."""
    named = node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None
    return bool(named) or len(node.args) != count
