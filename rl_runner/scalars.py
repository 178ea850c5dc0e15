"""A pass over a graph's operations for Inductor: numbers that many elements share are worked out once.

Inductor writes whatever is pointwise into the loops that read it. So Adam's 1 - β^t, two powers, a root and a division
of scalars, would be worked out anew for every 16 elements of every weight, a fifth of SAC's update; what a batch norm
divides by, for every element; the rows of the frames that make up a stack, a remainder of each, for every pixel; and
the places of a distribution's atoms after the step, for every atom that they are projected on.
"""

from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
GATHERS = {ATEN.index_select, ATEN.index}
MANY = 8  # elements that read one: with fewer it is not worth a place in memory


class SharedOnce(CustomGraphPass):
    """Gives whatever many times more elements read a place in memory, which is filled once."""

    def __call__(self, graph: Graph) -> None:
        for node in list(graph.nodes):
            value, size = node.meta.get("val"), _size(node)
            if not isinstance(value, Tensor) or not _in_a_loop(node) or _is_view(node):
                continue
            stored = any(_packet(user) is ATEN.copy_ for user in node.users)
            if size and not stored and _read_by(node) >= MANY * size:
                with graph.inserting_after(node):
                    # A view by strides needs its input in memory.
                    kept = graph.call_function(ATEN.as_strided.default, (node, value.shape, value.stride()))
                kept.meta["val"] = value
                node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


def _packet(node: Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _in_a_loop(node: Node) -> bool:
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.name.startswith("_foreach")
    return pointwise or _packet(node) in GATHERS


def _is_view(node: Node) -> bool:
    returns: Any = getattr(getattr(node.target, "_schema", None), "returns", ())
    aliased = returns[0].alias_info if returns else None
    return aliased is not None and not aliased.is_write


def _read_by(node: Node) -> int:
    """The most elements that a loop makes of this one, or of a view of it; products have their inputs in memory."""
    readers = [user for user in node.users if _is_view(user) or _in_a_loop(user)]
    return max((_read_by(user) if _is_view(user) else _size(user) for user in readers), default=0)


def _size(node: Node) -> int:
    """How many elements, of lists those of the largest; 0 if that is not known before the graph runs."""
    sizes = [leaf.numel() for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
    return max(sizes, default=0) if all(isinstance(size, int) for size in sizes) else 0
