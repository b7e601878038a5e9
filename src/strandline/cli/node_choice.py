"""Which node or work is meant by a word."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strandline.cli.connect import Database
    from strandline.cluster.membership import NodeRow

GONE = ("left", "dead")
ALL = 10_000  # nodes that are gone, at the most: their rows are pruned long before


async def known_nodes(db: Database) -> list[NodeRow]:
    """All nodes there are, and then all that have left or died, newest first."""
    from strandline.cluster import membership

    return await db.pool.run(membership.nodes(gone=ALL))


async def chosen_node(db: Database, word: str) -> NodeRow:
    """The node that *word* means: name, number, id, or the beginning of a name or id.

    One that is there is meant before those that are gone; of these the last of its name.

    Raises:
        NotFound: None is; the message says who is there.
        InvalidInput: Several may be.
    """
    from strandline.cluster import membership
    from strandline.errors import InvalidInput, NotFound

    match = await db.pool.run(membership.find_node(word))
    known = await known_nodes(db)
    for one in known:
        if match is not None and one.id == match.id:
            return one
    begins = [one for one in known if word and one.name.startswith(word)]
    here = [one for one in begins if one.state not in GONE]
    meant = here or list({one.name: one for one in reversed(begins)}.values())
    if len(meant) == 1:
        return meant[0]
    if meant:
        names = ", ".join(f"{one.number} ({one.name})" for one in meant)
        raise InvalidInput(f"{word!r} may mean several nodes: {names}; give a number or an id")
    there = ", ".join(one.name for one in known if one.state not in GONE)
    hint = f": there are {there}" if there else ": no node is here"
    raise NotFound(f"there is no node {word!r}{hint}")


async def node_now(db: Database, node: NodeRow) -> NodeRow:
    """*node* as it is now; as it was if its row is gone."""
    return next((one for one in await known_nodes(db) if one.id == node.id), node)


def chosen_work(names: Sequence[str], word: str) -> list[str]:
    """The *names* that *word* means: one by its name or how it begins; several by a pattern with *.

    Raises:
        NotFound: There is none.
        InvalidInput: It has no ``*`` and may mean several.
    """
    from strandline.errors import InvalidInput, NotFound

    if word in names:
        return [word]
    if "*" in word:
        meant = [one for one in names if fnmatchcase(one, word)]
    else:
        meant = [one for one in names if word and one.startswith(word)]
        if len(meant) > 1:
            raise InvalidInput(f"{word!r} may mean {', '.join(meant)}: '{word}*' means all of them")
    if not meant:
        hint = f": there are {', '.join(names)}" if names else ": a node that starts declares it"
        raise NotFound(f"there is no work {word!r}{hint}")
    return meant
