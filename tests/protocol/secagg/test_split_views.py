"""A server that tells several stories about who is counted, to have both secrets of a victim or the sum of a few."""

from collections.abc import Callable, Iterable, Mapping
from itertools import product

import pytest

from shared.errors import ProtocolError
from shared.secagg.graph import Rates
from shared.secagg.messages import (
    RecoveryRequest,
    Reveal,
    Witness,
)
from tests.protocol.secagg.kit import Fleet

EVERYBODY = frozenset(range(1, 6))


def stories(fleet: Fleet, views: Mapping[int, frozenset[int]], liars: Iterable[int] = ()) -> dict[int, Reveal]:
    """What each device reveals when each is told its own story of who is counted, and gets all the confirmations there are. Liars
    confirm every story.
    """
    said = {seat: fleet.clients[seat].confirm(counted) for seat, counted in views.items()}
    lies = {
        (liar, counted): fleet.clients[liar].confirm(counted)[1] for liar in liars for counted in set(views.values())
    }
    revealed = {}
    for seat, (client, _) in said.items():
        words = {other: item.tags[seat] for other, (_, item) in said.items() if seat in item.tags}
        words |= {
            liar: item.tags[seat]
            for (liar, counted), item in lies.items()
            if counted == views[seat] and seat in item.tags
        }
        try:
            fleet.clients[seat], revealed[seat] = client.reveal(Witness(words))
        except ProtocolError:
            fleet.clients[seat] = client
    return revealed


def test_three_stories_are_believed_by_nobody(group: Fleet) -> None:
    group.begin()
    group.masked()
    views = {1: EVERYBODY, 2: EVERYBODY - {5}, 3: EVERYBODY - {4}, 4: EVERYBODY - {5}, 5: EVERYBODY - {4}}
    assert stories(group, views) == {}


def test_no_story_and_no_accomplice_gives_the_server_both_secrets_of_a_victim() -> None:
    """Of five, device 5 works with the server: it confirms every story and hands out all it holds. The server tells devices 2 to
    4, in every combination, that victim 1 was counted or dropped. It wants the victim's seed, from itself or from shares, and
    its masks with 2, 3 and 4, from these or from shares of its key.
    """
    fleet = Fleet(5, Rates(0.2, 0.2)).make()
    threshold = fleet.terms.degrees.threshold
    fleet.begin()
    fleet.masked()
    before, found = dict(fleet.clients), []
    for shown in product((EVERYBODY, EVERYBODY - {1}), repeat=3):
        fleet.clients = dict(before)
        revealed = stories(fleet, {1: EVERYBODY, **dict(zip((2, 3, 4), shown, strict=True))}, liars=[5])
        seeds = keys = 1  # the accomplice's
        for seat in set(revealed) - {1}:
            counted = fleet.clients[seat].standing.counted
            request = RecoveryRequest((1,), ()) if 1 in counted else RecoveryRequest((), (1,))
            shares = fleet.clients[seat].recover(request)[1]
            seeds, keys = seeds + len(shares.seeds), keys + len(shares.keys)
        has_seed = 1 in revealed or seeds >= threshold
        has_masks = keys >= threshold or (
            all(1 in revealed[seat].pairs for seat in (2, 3, 4) if seat in revealed) and set(revealed) >= {2, 3, 4}
        )
        assert not (has_seed and has_masks)
        found.append((has_seed, has_masks))
    assert set(found) == {(True, False), (False, True), (False, False)}, "each story by itself works"


def closest(large: Fleet, size: int) -> set[int]:
    """A group that grew from device 1 by whoever has most neighbours inside."""
    inside, near = {1}, {seat: set(large.group.graph.neighbours(seat)) for seat in range(1, 121)}
    while len(inside) < size:
        inside.add(max(near.keys() - inside, key=lambda seat: len(near[seat] & inside)))
    return inside


def half_of_the_witnesses(large: Fleet, _: int) -> set[int]:
    witnesses = sorted(large.group.graph.witnesses)
    return {1, *witnesses[::2], *range(2, 121, 2)} - set(witnesses[1::2])


SIDES: dict[str, Callable[[Fleet, int], set[int]]] = {
    "alone": lambda large, victim: {victim},
    "with all its neighbours": lambda large, victim: {victim, *large.group.graph.neighbours(victim)},
    "with its neighbours that are no witnesses": lambda large, victim: (
        {victim, *large.group.graph.neighbours(victim)} - (large.group.graph.witnesses - {victim})
    ),
    "with those who are closest to it": lambda large, victim: closest(large, 40),
    "with half of the witnesses": half_of_the_witnesses,
}


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("liars", [(), (119, 120)], ids=["no accomplice", "two accomplices"])
def test_a_victim_of_a_sparse_group_that_is_told_a_story_of_its_own(
    large: Fleet, side: Callable[[Fleet, int], set[int]], liars: tuple[int, ...]
) -> None:
    """… is not unmasked by the others' story, in which it dropped out, and so did those who vouched for it. With a word from its
    neighbours alone it would be: it would give out its seed, and others its masks or its neighbours' keys.
    """
    large.begin()
    counted, victim = large.masked(), 1
    apart = side(large, victim) - set(liars)
    gone = frozenset({victim, *sorted(apart)[:29]})
    views = {seat: counted if seat in apart else counted - gone for seat in counted - set(liars)}
    views = {seat: view for seat, view in views.items() if seat in view}
    revealed = stories(large, views, liars)
    believed = {views[seat] for seat in revealed}
    assert len(believed) <= 1
    if victim in revealed:
        assert all(victim not in reveal.pairs for reveal in revealed.values())


def test_a_victim_kept_silent_is_not_unmasked_by_calling_all_its_neighbours_dropped(large: Fleet) -> None:
    """All are told one story: the victim is counted, its neighbours dropped out. The server never asks the victim, so it cannot
    refuse. It asks for the neighbours' keys, which open all masks of the victim, and for its seed: only neighbours hold shares
    of that.
    """
    victim = min(range(1, 121), key=lambda seat: len(large.group.graph.neighbours(seat)))
    near = set(large.group.graph.neighbours(victim))
    assert len(near) <= large.rates.dropped(120)
    large.begin()
    large.masked()
    counted = frozenset(range(1, 121)) - near
    willing = {}
    for seat in counted - {victim}:
        try:
            large.clients[seat].confirm(counted)
        except ProtocolError:
            continue  # it has too few neighbours left itself
        willing[seat] = counted
    revealed = stories(large, willing)
    assert len(revealed) > 60
    shares = 0
    for seat in revealed:
        held = set(large.group.holders(seat))
        request = RecoveryRequest(tuple({victim} & held), tuple(sorted(near & held)))
        shares += len(large.clients[seat].recover(request)[1].seeds)
    assert shares < large.terms.degrees.threshold


def test_a_victim_kept_silent_keeps_a_mask_with_whoever_speaks_for_it(large: Fleet) -> None:
    """The server calls dropped as many of its neighbours as leave just enough shares of its seed."""
    victim = 1
    near = sorted(large.group.graph.neighbours(victim))
    speaking = set(near[: large.terms.degrees.threshold])
    large.begin()
    large.masked()
    counted = frozenset(range(1, 121)) - (set(near) - speaking)
    revealed = stories(large, dict.fromkeys(sorted(counted - {victim}), counted))
    assert speaking <= set(revealed)
    for seat in speaking:
        assert victim not in revealed[seat].pairs
        with pytest.raises(ProtocolError, match="another kind"):
            large.clients[seat].recover(RecoveryRequest((), (victim,)))
