"""What Prometheus is told: base units, one prefix, a registry of its own per gateway."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from p2pinfer.core.trust import AuditVerdict, Trust

CONTENT_TYPE = CONTENT_TYPE_LATEST

FIRST_TOKEN_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
"""From a turn of a warm session to a long prompt through a slow swarm."""

INTER_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
"""From 200 tokens a second down to a chain that hangs."""


Counts = Mapping[str, float]


class _Counted(Collector):
    """Counters that are kept elsewhere."""

    def __init__(self, name: str, text: str, label: str, values: Callable[[], Counts]) -> None:
        self._name, self._text, self._label, self._values = name, text, label, values

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield all of them."""
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, count in self._values().items():
            family.add_metric([value], count)
        yield family


class Pace:
    """Times the tokens of one answer."""

    def __init__(self, metrics: "Metrics", now_s: float) -> None:
        self._metrics, self._before_s, self._seen = metrics, now_s, 0

    def note(self, tokens: int, now_s: float) -> None:
        """Note how many tokens there are by now."""
        if tokens > self._seen:
            metrics = self._metrics
            times = metrics.inter_token if self._seen else metrics.first_token
            times.observe(now_s - self._before_s)
            self._seen, self._before_s = tokens, now_s


class Metrics:
    """Counts and times of one gateway."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.first_token = Histogram(
            "p2pinfer_time_to_first_token_seconds",
            "From a question's arrival to its first token.",
            registry=registry,
            buckets=FIRST_TOKEN_BUCKETS_S,
        )
        self.inter_token = Histogram(
            "p2pinfer_inter_token_seconds",
            "Between two tokens of an answer.",
            registry=registry,
            buckets=INTER_TOKEN_BUCKETS_S,
        )
        self.requests = Counter(
            "p2pinfer_requests",
            "Requests to OpenAI's endpoints, by the status code of what they got.",
            ["status"],
            registry=registry,
        )
        self.tokens = Counter(
            "p2pinfer_tokens",
            "Tokens of prompts (of which some were reused) and of answers.",
            ["role"],
            registry=registry,
        )

        self._answers = Counter(
            "p2pinfer_answers",
            "Answers by what was checked of them: held, broken, unchecked, or unfinished.",
            ["trust"],
            registry=registry,
        )
        self._audits = Counter(
            "p2pinfer_audits",
            "Stages that were run again by somebody else, or opened rows, by what that found.",
            ["verdict"],
            registry=registry,
        )

        self._rows_proved = Counter(
            "p2pinfer_rows_proved",
            "Rows that stages opened, and whose every step holds; of some, a part of the layers.",
            registry=registry,
        )
        self._rows_signed = Counter(
            "p2pinfer_rows_of_proved_stages",
            "Rows that these stages computed for those answers: the odds are those of a sample.",
            registry=registry,
        )
        self._unproved = Counter(
            "p2pinfer_stages_not_proved",
            "Stages that were to open rows, and of which nothing was learned.",
            registry=registry,
        )

    def pace(self, now_s: float) -> "Pace":
        """Begin to time the tokens of an answer."""
        return Pace(self, now_s)

    def judge(self, trust: Trust | None, *, whole: bool) -> None:
        """Count what was checked of an answer, which may have ended before it was whole."""
        if trust:
            self._answers.labels("held" if trust.held else "broken").inc()
        else:
            self._answers.labels("unchecked" if whole else "unfinished").inc()
        if not trust:
            return
        for audit in trust.audits:
            self._audits.labels(audit.verdict.value).inc()
            if audit.verdict is AuditVerdict.PROVED:
                self._rows_proved.inc(audit.rows_seen(trust.positions))
                self._rows_signed.inc(trust.positions)
        self._unproved.inc(len(trust.unproved))

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is read whenever somebody asks."""
        Gauge(f"p2pinfer_{name}", text, registry=self._registry).set_function(value)

    def count(self, name: str, text: str, label: str, values: Callable[[], Counts]) -> None:
        """Show counts that are kept elsewhere, by the values of a label."""
        self._registry.register(_Counted(f"p2pinfer_{name}", text, label, values))

    def render(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self._registry)
