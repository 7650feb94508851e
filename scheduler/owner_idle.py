"""Whether a peer rests, so that the owner of its machine never notices it."""

from attrs import frozen

BUSY_SHARE = 0.25
"""Share of all cores: one busy core of four means that a person is waiting for it."""

CALM_SHARE = 0.15
"""A resting peer resumes below this, so that it does not flicker around one threshold."""

BUSY_S = 10.0
"""Other work may last this long before a peer rests: opening a program is no reason to leave."""

CALM_S = 60.0
"""How long the machine must be calm before it resumes: every change costs others their sessions."""


@frozen
class MachineUse:
    """The activity on a machine besides p2pinfer."""

    on_battery: bool
    busy_share: float
    """Of the time of all cores, over the last few seconds."""


@frozen
class Rest:
    """Whether a peer rests, and for how long there has been reason to change that."""

    why: str = ""
    """Why it rests; empty while it works."""
    contrary_since_s: float | None = None
    """Since when conditions have called for the opposite state."""


def judge(rest: Rest, use: MachineUse, now_s: float) -> Rest:
    """Return whether to rest from now on; asked every few seconds."""
    bound = CALM_SHARE if rest.why else BUSY_SHARE
    why = ""
    if use.on_battery:
        why = "this machine runs on its battery"
    elif use.busy_share >= bound:
        why = "this machine is busy with other work"
    if bool(why) == bool(rest.why):
        return Rest(why)
    since_s = now_s if rest.contrary_since_s is None else rest.contrary_since_s
    patience_s = CALM_S if rest.why else 0.0 if use.on_battery else BUSY_S
    return Rest(why) if now_s - since_s >= patience_s else Rest(rest.why, since_s)
