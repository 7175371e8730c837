"""Follow a head from its convolution to the tensor that holds it: Walk."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.guess.names import role_of
from centernet_trt.builder.guess.sizes import Sizes

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul"})
# A head ends in front of these: they select, compare or rearrange what a head holds.
_ENDS = frozenset(
    {"MaxPool", "TopK", "ArgMax", "ArgMin", "NonZero", "NonMaxSuppression", "Gather", "GatherElements", "GatherND"}
    | {"ScatterElements", "ScatterND", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Compress"}
    | {"Slice", "Split", "Flatten", "If", "Loop", "Scan", "Where", "Concat"}
    | CONVOLUTIONS
)  # fmt: skip
_SIZE_ONLY = frozenset({"Shape", "Size"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sum", "Mean"})
# These move, repeat or average values: a probability stays one, in the order of the values around it.
_MOVES = frozenset(
    {"Identity", "Cast", "DepthToSpace", "SpaceToDepth", "Reshape", "Transpose", "Resize", "Upsample"}
    | {"QuantizeLinear", "DequantizeLinear", "Dropout", "Split"}
)


@dataclass
class Walk:
    """The path from one or several convolutions to a head tensor.

    Attributes:
        convolutions: the convolutions that the head is computed from; several if branches meet.
        sources: the tensors that the walk began at, one for each convolution.
        path: tensors that hold the whole head, from the first to the head tensor.
        names: names of tensors, nodes and weights along the path and behind it, as far as nothing is selected.
        operators: operators that were crossed, by the place in `path` that they lead to.
        tail: operators behind the head tensor, up to an output of another layout (channels last).
        end: the last tensor of the tail; the head tensor without one.
        reaches_output: whether the head tensor or its tail is an output of the graph.
    """

    convolutions: list[NodeProto]
    path: list[str]
    sources: list[str]
    names: list[str] = field(default_factory=list)
    operators: list[frozenset[str]] = field(default_factory=list)
    tail: frozenset[str] = frozenset()
    end: str = ""
    reaches_output: bool = False

    @property
    def tensor(self) -> str:
        """The head tensor."""
        return self.path[-1]

    @property
    def scaled(self) -> bool:
        """Whether arithmetic was crossed, or branches met."""
        return len(self.convolutions) > 1 or any(crossed & _ARITHMETIC for crossed in self.operators)

    @property
    def exponential(self) -> bool:
        """Whether an `Exp` was crossed."""
        return any("Exp" in crossed for crossed in self.operators)

    @property
    def changed_behind(self) -> list[str]:
        """Operators of the tail that change values."""
        return sorted(self.tail - _MOVES)

    def only_moves_after(self, place: int) -> bool:
        """Whether values are only moved or averaged behind this place of the path."""
        return all(crossed <= _MOVES for crossed in self.operators[place:])


class Follower:
    """Finds the walks of a graph whose input size is fixed."""

    def __init__(self, model: ModelProto, sizes: Sizes) -> None:
        """Analyse the graph."""
        graph = model.graph
        self._sizes = sizes
        self._consumers = g.consumers(graph)
        self._producers = g.producers(graph)
        self._outputs = {value.name for value in graph.output}
        self._starts = _starts(model, self._producers)
        self._origins = _origins(graph.node, {node.output[0] for node in self._starts})
        self._next, self._depth = self._post_dominators(graph.node)

    def walks(self) -> list[Walk]:
        """The walks in the graph's order; convolutions whose branches meet share one."""
        found: dict[str, Walk] = {}
        begun = [self._walk(start, start.output[0], _names(start)) for start in self._starts]
        for walk in [part for whole in begun for part in self._parts(whole)]:
            other = found.setdefault(walk.tensor, walk)
            if other is not walk:
                other.convolutions += walk.convolutions
                other.sources += walk.sources
                other.names += walk.names
                other.path = [name for name in other.path if name in walk.path]
                other.operators = other.operators[len(other.operators) - len(other.path) + 1 :]
        return [*found.values(), *self._mixed(found)]

    def _mixed(self, found: dict[str, Walk]) -> list[Walk]:
        """Output maps that several heads were mixed into in a way that no walk followed."""
        whole = [{node.output[0] for node in walk.convolutions} for walk in found.values()]
        ends = {name for walk in found.values() for name in (walk.tensor, walk.end)}
        mixed = []
        for name in self._outputs - ends:
            origins = self._origins.get(name, frozenset())
            if len(origins) < 2 or origins in whole or self._sizes.rank(name) not in (None, 4):
                continue
            sizes = [self._sizes.get(origin) for origin in origins]
            shape = self._sizes.get(name)
            if len(shape) == 4 and shape[1] != sum(size[1] for size in sizes if len(size) == 4):
                convolutions = [self._producers[origin] for origin in sorted(origins)]
                mixed.append(Walk(convolutions, [name], sorted(origins), [name], end=name))
        return sorted(mixed, key=lambda walk: walk.tensor)

    def _parts(self, walk: Walk) -> list[Walk]:
        """The walks from the channels of a convolution that is split into outputs; else the walk itself."""
        readers = self._consumers.get(walk.end, [])
        if walk.reaches_output or not readers or any(n.op_type not in ("Split", "Slice") for n in readers):
            return [walk]
        parts = [self._walk(walk.convolutions[0], name, [name]) for node in readers for name in node.output]
        if not all(part.reaches_output for part in parts):
            return [walk]
        for part in parts:
            part.operators = [*walk.operators, frozenset({"Split"}), *part.operators]
            part.path, part.sources = walk.path + part.path, walk.sources
        return parts

    def _walk(self, start: NodeProto, current: str, names: list[str]) -> Walk:
        walk = Walk([start], [current], [current], names)
        crossed: set[str] = set()
        # A linear layer works on channels last, and its heads begin where they are maps.
        flat = start.op_type in ("Gemm", "MatMul")
        channels_last = flat and self._sizes.rank(current) == 4
        layout: tuple[int, ...] = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
        while (following := self._next.get(current)) is not None:
            nodes = self._between(current, following)
            kinds = {node.op_type for node in nodes} - _SIZE_ONLY
            if not kinds or not self._may_cross(current, following, nodes):
                break
            turned = _turned(nodes, self._sizes, layout)
            if turned is None:
                break
            layout = turned
            crossed |= kinds
            walk.names += [name for node in nodes for name in (node.name, *node.output)]
            current = following
            if flat and len(self._sizes.get(current)) == 4 and layout == (0, 1, 2, 3):
                walk.path, walk.operators, flat, crossed = [current], [], False, set()
            elif layout == (0, 1, 2, 3) and self._same_head(walk.tensor, current, crossed):
                walk.path.append(current)
                walk.operators.append(frozenset(crossed))
                crossed = set()
        walk.reaches_output = current in self._outputs and self._sizes.rank(current) in (None, 4)
        walk.end = current
        walk.tail = frozenset(crossed) if walk.reaches_output else frozenset()
        return walk

    def _may_cross(self, current: str, following: str, nodes: list[NodeProto]) -> bool:
        ends = [node for node in nodes if node.op_type in _ENDS]
        origins = self._origins.get(following, frozenset())
        if origins == self._origins.get(current, frozenset()):
            return not ends
        # Branches of one head may meet; heads of different names do not belong together.
        roles = {role_of(_names(self._producers[name])) for name in origins}
        if not ends:
            return len(roles - {None}) < 2
        concat = all(node.op_type == "Concat" and g.attribute(node, "axis") == 1 for node in ends)
        same = len(roles) == 1 and None not in roles
        return concat and following in self._outputs and (same or role_of([following]) is not None)

    def _same_head(self, old: str, new: str, crossed: set[str]) -> bool:
        """Whether a tensor has the head's channels and cells, or those of an up-sampling or pixel shuffle."""
        before, after = self._sizes.get(old), self._sizes.get(new)
        if len(before) != 4 or len(after) != 4 or 0 in after[1:] or 0 in before[1:]:
            return False
        (_, channels, rows, columns), (_, new_channels, new_rows, new_columns) = before, after
        if before[1:] == after[1:] or ("Concat" in crossed and (rows, columns) == (new_rows, new_columns)):
            return True
        if rows * new_columns != columns * new_rows:
            return False
        shuffled = channels * rows * columns == new_channels * new_rows * new_columns
        return new_channels == channels or (shuffled and new_rows % rows == 0)

    def _between(self, first: str, last: str) -> list[NodeProto]:
        """The nodes on the paths from one tensor to another that all paths lead to."""
        found: dict[str, NodeProto] = {}
        seen, queue = {first}, [first]
        while queue:
            for node in self._consumers.get(queue.pop(), []):
                found[node.output[0]] = node
                for name in node.output:
                    if name and name != last and name not in seen and node.op_type not in _SIZE_ONLY:
                        seen.add(name)
                        queue.append(name)
        return list(found.values())

    def _post_dominators(self, nodes: Iterable[NodeProto]) -> tuple[dict[str, str | None], dict[str, int]]:
        """For each tensor the first one that all its uses lead to; None for the graph's end."""
        following: dict[str, str | None] = {}
        depth: dict[str, int] = {}
        for node in reversed(list(nodes)):
            for name in filter(None, node.output):
                reached = [
                    out
                    for reader in self._consumers.get(name, [])
                    if reader.op_type not in _SIZE_ONLY
                    for out in reader.output
                    if out in depth
                ]
                if name in self._outputs:
                    following[name], depth[name] = None, 1
                elif reached:
                    common = _common(list(dict.fromkeys(reached)), following, depth)
                    following[name], depth[name] = common, 1 if common is None else depth[common] + 1
        return following, depth


def _common(names: list[str], following: dict[str, str | None], depth: dict[str, int]) -> str | None:
    """The nearest common successor in the tree of post-dominators."""
    left: str | None = names[0]
    for name in names[1:]:
        right: str | None = name
        while left != right:
            if left is None or right is None:
                return None
            if depth[left] >= depth[right]:
                left = following[left]
            else:
                right = following[right]
    return left


def _names(node: NodeProto) -> list[str]:
    return [node.name, *node.input[1:], node.output[0]]


def _starts(model: ModelProto, producers: dict[str, NodeProto]) -> list[NodeProto]:
    """Convolutions that heads come from: those that reach no other one, and the nearest before each output."""
    reaching: set[str] = set()  # tensors that reach one
    chosen: set[str] = set()
    for node in reversed(model.graph.node):
        is_convolution = node.op_type in CONVOLUTIONS
        leads_on = any(name in reaching for name in node.output)
        if is_convolution and not leads_on:
            chosen.add(node.output[0])
        if is_convolution or leads_on:
            reaching.update(g.node_uses(node))
    constants = g.initializers(model.graph)
    for value in model.graph.output:
        maker = producers.get(value.name)
        while maker is not None and maker.op_type not in CONVOLUTIONS:
            computed = [name for name in g.node_uses(maker) if name not in constants]
            maker = producers.get(computed[0]) if len(computed) == 1 and maker.op_type not in _ENDS else None
        if maker is not None:
            chosen.add(maker.output[0])
    return [node for node in model.graph.node if node.output and node.output[0] in chosen]


def _origins(nodes: Iterable[NodeProto], starts: set[str]) -> dict[str, frozenset[str]]:
    """For each tensor the outputs of the nearest head convolutions that it is computed from."""
    found: dict[str, frozenset[str]] = {}
    for node in nodes:
        if node.op_type in _SIZE_ONLY:
            continue
        if node.output and node.output[0] in starts:
            found[node.output[0]] = frozenset({node.output[0]})
            continue
        of_inputs = [found[name] for name in g.node_uses(node) if name in found]
        if of_inputs and node.op_type not in CONVOLUTIONS:
            found.update({name: frozenset().union(*of_inputs) for name in node.output if name})
    return found


def _turned(nodes: list[NodeProto], sizes: Sizes, layout: tuple[int, ...]) -> tuple[int, ...] | None:
    """The layout behind these nodes, as a permutation of N, C, H, W; None where it is lost."""
    turns = [n for n in nodes if n.op_type == "Transpose" and len(sizes.get(n.input[0])) == 4]
    if turns:
        perm = g.attribute(turns[0], "perm")
        if len(nodes) > 1 or perm is None or len(perm) != 4:
            return None
        return tuple(layout[axis] for axis in perm)
    if layout != (0, 1, 2, 3) and any(
        node.op_type in ("Reshape", "Resize", "DepthToSpace") for node in nodes
    ):
        return None
    return layout
