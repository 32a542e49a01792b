"""What the guard counts; names and labels are an interface of dashboards and alerts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "kuznia_guard_requests_total",
    "Requests by tenant and what was done: pass, flag, mask, pseudonymise, block, refuse, fault.",
    ("tenant", "verdict"),
    registry=REGISTRY,
)
ADDED = Histogram(
    "kuznia_guard_added_seconds",
    "Time that the guard's own work took of a request, all its events together.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
    registry=REGISTRY,
)
RELOADS = Counter(
    "kuznia_guard_reloads_total",
    "Configurations that came: taken, or refused with the last good one kept.",
    ("outcome",),
    registry=REGISTRY,
)
AGE = Gauge(
    "kuznia_guard_config_age_seconds",
    "Since the configuration in use was written.",
    registry=REGISTRY,
)
JUDGED = Counter(
    "kuznia_guard_judged_total",
    "Texts that a judge was asked about: passed, blocked, or no answer.",
    ("outcome",),
    registry=REGISTRY,
)
CAPTURES = Counter(
    "kuznia_guard_captures_total",
    "Requests whose content was kept, or could not be.",
    ("outcome",),
    registry=REGISTRY,
)
