"""The smallest sets of cuts that part vertices of a graph from others, where one cut may close several vertices."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Cut = TypeVar("Cut", bound=Hashable)
Graph = Sequence[Sequence[int]]  # of vertex i: the vertices that follow it
MOST_PATHS = 20_000


def reached(graph: Graph, starts: Iterable[int], closed: frozenset[int] | set[int] = frozenset()) -> set[int]:
    """All vertices on a way from the starts that leads through no closed one; these are no starts either."""
    found = set(starts) - closed
    stack = list(found)
    while stack:
        for vertex in graph[stack.pop()]:
            if vertex not in found and vertex not in closed:
                found.add(vertex)
                stack.append(vertex)
    return found


def backwards(graph: Graph) -> list[list[int]]:
    """The graph with all of its edges turned round."""
    turned: list[list[int]] = [[] for _ in graph]
    for vertex, following in enumerate(graph):
        for other in following:
            turned[other].append(vertex)
    return turned


def path(
    graph: Graph, starts: Iterable[int], ends: Collection[int], closed: set[int] | frozenset[int]
) -> list[int] | None:
    """A shortest way from a start to an end that leads through no closed vertex; None where there is none."""
    came: dict[int, int] = {start: -1 for start in starts if start not in closed}
    queue = deque(came)
    while queue:
        vertex = queue.popleft()
        if vertex in ends:
            found = []
            while vertex >= 0:
                found.append(vertex)
                vertex = came[vertex]
            return found[::-1]
        for other in graph[vertex]:
            if other not in came and other not in closed:
                came[other] = vertex
                queue.append(other)
    return None


@dataclass(frozen=True)
class Wish:
    """Vertices between which there is to be no way, or one at least; through ``via``, where that is given."""

    starts: frozenset[int]
    ends: frozenset[int]
    via: frozenset[int] = frozenset()

    def way(self, graph: Graph, closed: set[int] | frozenset[int]) -> list[int] | None:
        """A short way that leads through no closed vertex; None where there is none."""
        if not self.via:
            return path(graph, self.starts, self.ends, closed)
        further = path(graph, reached(graph, self.starts, closed) & self.via, self.ends, closed)
        if further is None:
            return None
        first = path(graph, self.starts, {further[0]}, closed)
        return None if first is None else [*first, *further[1:]]

    def between(self, graph: Graph, back: Graph) -> set[int]:
        """All vertices on its ways."""
        if not self.via:
            return reached(graph, self.starts) & reached(back, self.ends)
        via = reached(graph, self.starts) & reached(back, self.ends) & self.via
        first = reached(graph, self.starts) & reached(back, via)
        return first | (reached(graph, via) & reached(back, self.ends))


@dataclass
class Answer(Generic[Cut]):
    """What a search has found.

    Attributes:
        sets: the sets of cuts, all of one size; none where no set does it.
        proven: no smaller set does it. Else the search has ended before it knew.
        complete: no other of this size does it.
        left: a way on which no cut may stand, where that is why there is no set.
    """

    sets: list[frozenset[Cut]] = field(default_factory=list)
    proven: bool = True
    complete: bool = True
    left: list[int] = field(default_factory=list)


class Separation(Generic[Cut]):
    """An exact search: any answer has a cut on every way that is open, so these are tried, way after way.

    Args:
        graph: what follows each vertex.
        apart: between these there is to be no way.
        cuts: the vertices that each cut closes.
        joined: between these one way at least is to stay.
        most_paths: that are looked for.
    """

    def __init__(
        self,
        graph: Graph,
        apart: Sequence[Wish],
        cuts: Mapping[Cut, frozenset[int]],
        joined: Sequence[Wish] = (),
        most_paths: int = MOST_PATHS,
    ) -> None:
        self._most = most_paths
        back = backwards(graph)
        self._apart = apart
        on_ways = set().union(*(wish.between(graph, back) for wish in apart))
        self._graph, self._joined = graph, joined
        self._narrow = [[v for v in following if v in on_ways] for following in graph]
        self._cuts = {cut: closes for cut, closes in cuts.items() if closes & on_ways}
        self._at: dict[int, list[Cut]] = {}
        for cut, closes in self._cuts.items():
            for vertex in closes & on_ways:
                self._at.setdefault(vertex, []).append(cut)
        self._paths = 0
        self._seen: set[frozenset[Cut]] = set()

    def smallest(self, most: int = 6) -> Answer[Cut]:
        """The smallest sets of at most so many cuts."""
        ways, stuck = self._disjoint(set())
        if stuck:
            return Answer(left=stuck)
        for size in range(ways, most + 1):
            found: dict[frozenset[Cut], None] = {}
            self._seen.clear()
            complete = self._search(frozenset(), size, found)
            if found:
                return Answer([*found], proven=True, complete=complete)
            if not complete:
                break
        return Answer(self._greedy(), proven=False, complete=False)

    def _closed(self, chosen: Iterable[Cut]) -> set[int]:
        return set().union(*(self._cuts[cut] for cut in chosen))

    def _open(self, closed: set[int]) -> list[int] | None:
        """A way that is still open."""
        for wish in self._apart:
            self._paths += 1
            if found := wish.way(self._narrow, closed):
                return found
        return None

    def _cuts_on(self, way: Iterable[int]) -> list[Cut]:
        return list(dict.fromkeys(cut for vertex in way for cut in self._at.get(vertex, ())))

    def _disjoint(self, closed: set[int]) -> tuple[int, list[int]]:
        """How many open ways are found no two of which share a cut: so many it takes. And one that has none on it."""
        closed, count = set(closed), 0
        while (way := self._open(closed)) is not None:
            cuts = self._cuts_on(way)
            if not cuts:
                return count, way
            count += 1
            closed |= self._closed(cuts)
        return count, []

    def _breaks(self, closed: set[int]) -> bool:
        """A way that is to stay is gone."""
        return any(wish.way(self._graph, closed) is None for wish in self._joined)

    def _search(self, chosen: frozenset[Cut], left: int, found: dict[frozenset[Cut], None]) -> bool:
        """Find all sets of so many more cuts; False where there were too many ways to look at."""
        if chosen in self._seen:
            return True
        self._seen.add(chosen)
        if self._paths > self._most:
            return False
        closed = self._closed(chosen)
        if self._joined and self._breaks(closed):
            return True
        way = self._open(closed)
        if way is None:
            found[chosen] = None
            return True
        if left == 0 or (left > 1 and self._disjoint(closed)[0] > left):
            return True
        complete = True
        for cut in self._cuts_on(way):
            complete &= self._search(chosen | {cut}, left - 1, found)
        return complete

    def _greedy(self) -> list[frozenset[Cut]]:
        """One set that does it, as small as is found without going back; none where one is not found."""
        chosen: set[Cut] = set()
        while (way := self._open(self._closed(chosen))) is not None:
            legal = [c for c in self._cuts_on(way) if not (self._joined and self._breaks(self._closed(chosen | {c})))]
            if not legal:
                return []
            chosen.add(max(legal, key=lambda cut: len(self._cuts[cut])))
        for cut in list(chosen):
            if self._open(self._closed(chosen - {cut})) is None:
                chosen.discard(cut)
        return [frozenset(chosen)]
