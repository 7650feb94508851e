"""How busy this machine is otherwise, so that a peer can rest while its owner needs it."""

from collections.abc import Awaitable, Callable, Iterable
from itertools import chain

import psutil
import trio

from p2pinfer.node.status_socket import running_pids
from scheduler.owner_idle import MachineUse, Rest, judge

LOOK_S = 5.0
"""How often to measure: it takes milliseconds, and an owner should not wait a minute."""


class ActivityMeter:
    """Separates the processor time of p2pinfer's processes from that of all others."""

    def __init__(self, ours: Callable[[], Iterable[int]] = running_pids) -> None:
        """Start to measure; ``ours`` returns the processes that, with their children, are ours."""
        self._ours = ours
        self._ours_s: dict[int, float] = {}
        self._busy_s = self._all_s = 0.0
        self.look()

    def look(self) -> MachineUse:
        """Return the use of the machine since the last call."""
        times = psutil.cpu_times()
        free_s = times.idle + getattr(times, "iowait", 0.0)
        # "steal" is what other virtual machines took; "user" already includes "guest".
        names = ("user", "nice", "system", "irq", "softirq")
        busy_s = sum(getattr(times, name, 0.0) for name in names)
        ours_s = self._times()
        grown_s = sum(s - self._ours_s.get(pid, 0.0) for pid, s in ours_s.items())
        passed_s = max(busy_s + free_s - self._all_s, 1e-3)
        share = (busy_s - self._busy_s - grown_s) / passed_s
        self._ours_s, self._busy_s, self._all_s = ours_s, busy_s, busy_s + free_s
        return MachineUse(_on_battery(), min(max(share, 0.0), 1.0))

    def _times(self) -> dict[int, float]:
        """Return the processor seconds of each of our processes."""
        found = {}
        for process in chain.from_iterable(map(_family, self._ours())):
            try:
                times = process.cpu_times()
            except psutil.Error:  # it has just ended
                continue
            found[process.pid] = times.user + times.system
        return found


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _on_battery() -> bool:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


async def heed_owner(
    rest: Callable[[str], None],
    look: Callable[[], Awaitable[MachineUse]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``rest`` for ever with the reason to rest, or ""; started after the first call."""
    state = Rest()
    is_first = True
    while True:
        state = judge(state, await look(), trio.current_time())
        rest(state.why)
        if is_first:
            task_status.started()
        is_first = False
        await trio.sleep(LOOK_S)


class WhenIdle:
    """Holds work up while the owner of this machine needs it.

    Args:
        tell: called with the reason when work is held up, and with "" when it goes on.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._why = tell, ""
        self._calm = trio.Event()
        self._calm.set()

    def rest(self, why: str) -> None:
        """Hold work up for this reason, or with "" let it go on."""
        if bool(why) == bool(self._why):
            return
        self._why = why
        self._tell(why)
        if why:
            self._calm = trio.Event()
        else:
            self._calm.set()

    async def wait(self) -> None:
        """Wait until work may go on."""
        await self._calm.wait()
