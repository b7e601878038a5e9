"""The App of a node whose projection acts: ``effects_node:app``."""

from __future__ import annotations

from banking import Account, Accounts, Amounts, Deposited, Owners, Thanked, bank_app

import strandline as sl


class Thanking(Accounts):
    """Thanks for every deposit."""

    @sl.effects
    async def thanked(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
        for change in changes:
            for event in change.of(Deposited):
                await tx.execute("INSERT INTO public.raised (position) VALUES ($1)", event.position)
            if change.of(Deposited):
                await tx.append(
                    f"thanks-{change.id}", [Thanked(one.position) for one in change.of(Deposited)]
                )


class Acting(sl.Composite):
    stages = ({"accounts": Thanking, "amounts": Amounts}, {"owners": Owners})


app = bank_app(None, ("acting", Acting), page_events=10)
