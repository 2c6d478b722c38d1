"""Chat templates that only insert the contents of turns: what such a one writes, without running it.

Where no condition, filter or call looks at a content, what stands between the contents depends on the
roles alone. It is rendered once for each sequence of roles, with stand-ins, and rows of these roles
are joined of it. ``only_inserts`` reads the template's syntax tree and accepts nothing that it doesn't
know, so that Qwen's template, say, which looks for tool answers in contents, is run for every row.
"""

import re
from collections.abc import Sequence

from jinja2 import nodes

# White space that ``trim`` takes away stands around a stand-in, to tell whether it was taken.
_SPACE = "\x1f"
_MARK = "\u2063{}\u2063"
_FOUND = re.compile(f"({_SPACE}?)\u2063(\\d+)\u2063({_SPACE}?)")

_Piece = str | tuple[int, bool]  # a text, or the place of a content and whether it is trimmed


class Skeleton:
    """What a template writes around the contents of turns, for one sequence of roles."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces

    @classmethod
    def of(cls, text: str) -> "Skeleton | None":
        """From the rendering of ``stand_in``s; None where they cannot be told apart in it."""
        pieces: list[_Piece] = []
        at = 0
        for found in _FOUND.finditer(text):
            if found[1] != found[3]:
                return None
            pieces += [text[at : found.start()], (int(found[2]), not found[1])]
            at = found.end()
        pieces.append(text[at:])
        texts = "".join(piece for piece in pieces if isinstance(piece, str))
        return cls(pieces) if _SPACE not in texts and "\u2063" not in texts else None

    def fill(self, contents: Sequence[str]) -> str:
        """The rendering of turns with these contents."""
        return "".join(self._texts(contents))

    def place(self, contents: Sequence[str], index: int, size: int) -> tuple[int, int] | None:
        """Where the content of turn ``index`` is in what ``fill`` gives, of ``size`` characters.

        None where it is not there once, or the size is another.
        """
        places = [
            number
            for number, piece in enumerate(self._pieces)
            if not isinstance(piece, str) and piece[0] == index
        ]
        lengths = [len(text) for text in self._texts(contents)]
        if len(places) != 1 or sum(lengths) != size:
            return None
        start = sum(lengths[: places[0]])
        return start, start + lengths[places[0]]

    def _texts(self, contents: Sequence[str]) -> list[str]:
        return [
            piece
            if isinstance(piece, str)
            else (contents[piece[0]].strip() if piece[1] else contents[piece[0]])
            for piece in self._pieces
        ]


def stand_in(index: int) -> str:
    """The content to render in the place of that of turn ``index``."""
    return f"{_SPACE}{_MARK.format(index)}{_SPACE}"


def only_inserts(template: nodes.Template) -> bool:
    """Whether a template does nothing with contents but write them, trimmed or as they are."""
    return _Reader(template).accepts(template.body)


class _Reader:
    def __init__(self, template: nodes.Template) -> None:
        loops = list(template.find_all(nodes.For))
        self._turns = {each.target.name for each in loops if isinstance(each.target, nodes.Name)}
        sets = list(template.find_all(nodes.Assign))
        self._set = {each.target.name for each in sets if isinstance(each.target, nodes.Name)}
        self._texts: set[str] = set()  # names that hold contents
        while True:  # a name may be set from another
            found = {
                each.target.name
                for each in sets
                if isinstance(each.target, nodes.Name) and not self._free(each.node)
            }
            if found == self._texts:
                return
            self._texts = found

    def accepts(self, body: Sequence[nodes.Node]) -> bool:
        return all(map(self._statement, body))

    def _statement(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Output):
            return all(isinstance(n, nodes.TemplateData) or self._text(n) for n in node.nodes)
        if isinstance(node, nodes.If):
            parts = (node.body, node.elif_, node.else_)
            return self._free(node.test) and all(self.accepts(part) for part in parts)
        if isinstance(node, nodes.For):
            return (
                isinstance(node.target, nodes.Name)
                and node.target.name not in {*self._set, "messages", "loop"}
                and isinstance(node.iter, nodes.Name)
                and node.iter.name == "messages"
                and node.test is None
                and not node.recursive
                and self.accepts(node.body)
                and self.accepts(node.else_)
            )
        if isinstance(node, nodes.Assign):
            return (
                isinstance(node.target, nodes.Name)
                and node.target.name not in {*self._turns, "messages", "loop"}
                and self._text(node.node)
            )
        return False

    def _text(self, node: nodes.Node) -> bool:
        """Whether it is a text in which contents are inserted at most."""
        if isinstance(node, nodes.Add):
            return self._text(node.left) and self._text(node.right)
        if isinstance(node, nodes.CondExpr):
            branches = (node.expr1, node.expr2)
            return self._free(node.test) and all(n is not None and self._text(n) for n in branches)
        if isinstance(node, nodes.Filter) and node.name == "trim" and not _given(node):
            return node.node is not None and self._field(node.node) == "content"
        if isinstance(node, nodes.Name) and node.name in self._texts:
            return True
        return self._field(node) == "content" or self._free(node)

    def _free(self, node: nodes.Node) -> bool:
        """Whether its value is the same for all turns of the same roles."""
        if isinstance(node, nodes.Const):
            return True
        if isinstance(node, nodes.Name):
            return node.name not in {*self._texts, *self._turns, "messages", "loop"}
        if isinstance(node, nodes.Getattr) and _is_loop(node.node):
            return node.attr in ("first", "last", "index", "index0", "revindex", "length")
        if isinstance(node, nodes.Call):  # it ends the rendering: the row is rendered in full then
            called = node.node
            name = called.name if isinstance(called, nodes.Name) else ""
            return name == "raise_exception" and not _given(node, 1) and self._free(node.args[0])
        if isinstance(node, nodes.Compare):
            return self._free(node.expr) and all(self._free(each.expr) for each in node.ops)
        if isinstance(node, nodes.Test):
            return node.name in ("defined", "none") and not _given(node) and self._free(node.node)
        if isinstance(node, nodes.And | nodes.Or | nodes.Add | nodes.Sub | nodes.Mod):
            return self._free(node.left) and self._free(node.right)
        if isinstance(node, nodes.Not | nodes.Neg):
            return self._free(node.node)
        return self._field(node) == "role"

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
        if isinstance(of, nodes.Getitem) and isinstance(of.node, nodes.Name):
            place = of.arg.node if isinstance(of.arg, nodes.Neg) else of.arg
            if of.node.name == "messages" and isinstance(place, nodes.Const):
                return name
        return ""


def _is_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "loop"


def _given(node: nodes.Filter | nodes.Test | nodes.Call, count: int = 0) -> bool:
    """Whether other than ``count`` arguments stand there."""
    named = node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None
    return bool(named) or len(node.args) != count
