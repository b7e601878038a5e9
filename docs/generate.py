"""Writes the pages of docs/reference that are made from the source; run by ``make docs``.

``PAGES`` maps each page to the function that makes its text; tests compare the two.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

import strandline
from strandline import errors, sync
from strandline.cli.reference import markdown as commands_page
from strandline.settings import PREFIX, Settings
from strandline.telemetry import alerts, catalogue, grafana

DOCS = Path(__file__).parent
SCHEMA = Path(strandline.__file__).parent / "postgres" / "schema"
INNER = {
    "append_prepared",
    "bind",
    "keys_of",
    "opened_runtime",
    "pieces",
    "pools",
    "requests",
    "store",
    "waiting",
}
QUEUES = ("strandline", "river", "graphile-worker", "pgqueuer", "procrastinate")
SHOWN_OF_JOBS = (
    ("bulk_insert", "rate", "enqueued in bulk"),
    ("insert_1", "rate", "one by one, 1 producer"),
    ("insert_16", "rate", "16 producers"),
    ("insert_64", "rate", "64 producers"),
    ("drain_1", "rate", "drained by one process"),
    ("drain_2", "rate", "drained by two"),
    ("start_latency_p99", "p50", "from enqueue to start at 100 jobs/s, p50"),
    ("start_latency_p99", "p99", "p99"),
    ("drain_1", "server_cpu", "CPU of the server for 10,000 jobs"),
    ("drain_1", "worker_cpu", "CPU of the worker for 10,000 jobs"),
)
NUMBERS = re.compile(r"(<!-- numbers[^\n]*-->\n)(.*?)(<!-- /numbers -->)", re.DOTALL)
SHOWN = {
    "append_1": "appends, 1 task",
    "append_64": "appends, 64 tasks",
    "append_batch_100": "appends of 100 events",
    "import": "import",
    "catch_up": "catch-up, documents",
    "table_catch_up": "catch-up, table",
    "visible_latency_p99": "visible after append, p99",
}
MADE = "<!-- Made by `make docs`; change the source, not this page. -->\n"


def settings_page() -> str:
    """Every option with its default and its reason."""
    lines = [
        "# Settings",
        MADE,
        "Arguments of `App(...)` win over the environment, the environment over the table",
        "`[tool.strandline]` of the TOML file given as `toml=`. Durations are seconds. A name that is",
        "not in this list, or a value that cannot work, is refused with `InvalidSetting`.",
        "",
        "| setting | environment | default | at least | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in fields(Settings):
        least = one.metadata["least"]
        lines.append(
            f"| `{one.name}` | `{PREFIX}{one.name.upper()}` | `{_shown(one.default)}`"
            f" | {'' if least is None else f'{least:,}'} | {one.metadata['reason']} |"
        )
    lines += [
        "",
        "Read besides these, for the embedded server only:",
        "",
        "| environment | meaning |",
        "| --- | --- |",
        "| `STRANDLINE_POSTGRES_BIN` | directory with `postgres` and `initdb` to use |",
        "",
        "How they hang together is told in [operate/settings](../operate/settings.md).",
    ]
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """The tree of errors, and each with what to do."""
    tree = inspect.cleandoc(errors.__doc__ or "")
    lines = [
        "# Errors",
        MADE,
        tree.split("\n", 1)[0],
        "So `except sl.ConflictError: decide again` and `retry on sl.Unavailable` are whole policies.",
        "The driver's own error is always chained as `__cause__`. The groups and those met most often are",
        "names of `sl`; all of them are in `strandline.errors`.",
        "",
        "```text",
        inspect.cleandoc(tree.split("\n", 1)[1]),
        "```",
        "",
    ]
    for cls in _error_classes():
        parent = cls.__mro__[1].__name__
        group = cls.__mro__[1] is errors.StrandlineError or cls is errors.StrandlineError
        lines.append(f"{'##' if group else '###'} `{cls.__name__}`")
        lines.append("")
        lines.append(inspect.getdoc(cls) or "")
        lines.append("")
        facts = _facts(cls)
        if facts:
            lines += [f"Attributes: {', '.join(f'`{one}`' for one in facts)}.", ""]
        if not group:
            lines += [f"Caught by `except {parent}` too.", ""]
    return "\n".join(lines).rstrip() + "\n"


def sql_page() -> str:
    """The SQL functions, and the tables as they are."""
    text = (SCHEMA / "current.sql").read_text(encoding="utf-8")
    lines = [
        "# SQL",
        MADE,
        "The tables are in the schema `strandline`, unless the setting `schema` says otherwise. Read",
        "them as you like. Write events only with the function `append`, jobs with `enqueue`, and nothing else by",
        "hand: the [proof](../concepts/positions.md) rests on the order in which `append` takes its locks.",
        "",
        "## `append`",
        "",
        *_comment_above("0001_events.sql", "append("),
        "",
        "```sql",
        "SELECT version, position",
        '  FROM strandline.append(\'account-1\', \'[{"type": "money-deposited", "data": {"amount": 5}}]\',',
        "                         expected => -1, tenant => 'default', stream_type => 'account');",
        "```",
        "",
        "| argument | type | default |",
        "| --- | --- | --- |",
        *(
            f"| `{name}` | {kind} | {default} |"
            for name, kind, default in _arguments(text, "append")
        ),
        "",
        "`expected` is a version, 0 (there is no such stream), -1 (any) or -2 (the stream exists).",
        "Its use is told in [append from SQL](../howto/append-from-sql.md).",
        "",
        "`append_batch` and `append_together` are what the library itself calls; their argument may",
        "change with any version.",
        "",
        "## `enqueue`",
        "",
        *_comment_above("0005_jobs.sql", "enqueue("),
        "",
        "```sql",
        "SELECT strandline.enqueue('send_receipt', '{\"order\": \"order-1\"}',",
        "                          queue => 'mail', run_at => now() + interval '1 h');",
        "```",
        "",
        "| argument | type | default |",
        "| --- | --- | --- |",
        *(
            f"| `{name}` | {kind} | {default} |"
            for name, kind, default in _arguments(text, "enqueue")
        ),
        "",
        "Its use is told in [enqueue from SQL](../howto/enqueue-from-sql.md). All other functions are what the",
        "library itself calls, and may change with any version.",
        "",
        "## Tables",
        "",
    ]
    comments = dict(
        re.findall(r"^COMMENT ON TABLE strandline\.(\w+) IS '(.*)';$", text, re.MULTILINE)
    )
    for name, body in re.findall(
        r"^CREATE TABLE strandline\.(\w+) \(\n(.*?)\n\)", text, re.MULTILINE | re.DOTALL
    ):
        lines += [f"### `{name}`", ""]
        if name in comments:
            lines += [comments[name].replace("''", "'"), ""]
        lines += ["```sql", *(line.strip() for line in body.splitlines()), "```", ""]
    lines += [
        "Documents of projection `accounts`, version 1, are in `doc_accounts_v1`: `tenant`, `id`,",
        "`data` (jsonb), `version` and `position` of the last event folded in.",
    ]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Every public name with its signature and docstring."""
    lines = [
        "# API",
        MADE,
        "`import strandline as sl`. What is not listed here or in [testing](../howto/test.md) may",
        "change with any version. The errors have [a page of their own](errors.md).",
        "",
    ]
    known = {cls.__name__ for cls in _error_classes()}
    for name in strandline.__all__:
        if name not in known:
            lines += _described(f"sl.{name}", getattr(strandline, name))
    lines += [
        "## Blocking twins: `strandline.sync`",
        "",
        "`sync.App` and `sync.Transaction` have the methods listed here with the same arguments:",
        "",
    ]
    for cls in (sync.App, sync.Transaction):
        names = [name for name in dir(cls) if not name.startswith("_") and name not in INNER]
        lines += [f"* `sync.{cls.__name__}`: {', '.join(f'`{name}`' for name in names)}"]
    return "\n".join(lines).rstrip() + "\n"


def metrics_page() -> str:
    """Every metric with kind, unit and attributes."""
    lines = [
        "# Metrics",
        MADE,
        "Counted in the process, and shown to Prometheus at `/metrics` of the [ops port](../operate/health.md) (extra",
        "`prometheus`) and through the OpenTelemetry API (extra `otlp`, or an SDK of your own). `metrics = false` turns",
        "all of it off. Every series has the attribute `node`, the node's name, besides its own;",
        "[attributes](attributes.md) tells what each is. `/metrics` has `process_*` of the process too.",
        "",
        "A metric has at most `series_limit` series: values of its labels beyond that are counted as `other`, except those of",
        "labels that have few values. No label has a value for each stream, event, job or tenant. Counters begin at 0 wherever",
        "their series can be known before anything happens, so that the first increase shows.",
        "",
        "What to alert on is told in [alerts](../operate/alerts.md).",
        "",
    ]
    for title, group in catalogue.GROUPS.items():
        lines += [
            f"## {title}",
            "",
            "| metric | kind | unit | attributes | meaning |",
            "| --- | --- | --- | --- | --- |",
        ]
        for one in group:
            attributes = ", ".join(f"`{name}`" for name in one.attributes)
            lines.append(
                f"| `{one.name}` | {one.kind} | {one.unit.strip('{}')} | {attributes} | {one.meaning} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def attributes_page() -> str:
    """Every attribute with its key on spans, its values, and the metrics that have it."""
    lines = [
        "# Attributes",
        MADE,
        "What tells series, spans and log records apart. The name is the label of metrics and the field of log records, the",
        "key is the attribute of spans: that of a stable semantic convention of OpenTelemetry where there is one.",
        "",
        "| name | key | meaning | for example | metrics |",
        "| --- | --- | --- | --- | --- |",
    ]
    having: dict[str, list[str]] = {"node": ["all"]}
    for metric in catalogue.CATALOGUE.values():
        for name in metric.attributes:
            having.setdefault(name, []).append(f"`{metric.name.removeprefix('strandline_')}`")
    for name, one in sorted(catalogue.ATTRIBUTES.items()):
        shown = ", ".join(f"`{value}`" for value in one.values) or (
            f"`{one.example}`" if one.example else ""
        )
        lines.append(
            f"| `{name}` | `{one.key}` | {one.meaning} | {shown} | {', '.join(having.get(name, ()))} |"
        )
    lines += [
        "",
        "Where a metric knows all values of one of its attributes:",
        "",
        "| metric | attribute | values |",
    ]
    lines.append("| --- | --- | --- |")
    for metric in catalogue.CATALOGUE.values():
        for name, values in metric.values.items():
            lines.append(
                f"| `{metric.name}` | `{name}` | {', '.join(f'`{value}`' for value in values)} |"
            )
    return "\n".join(lines) + "\n"


def spans_page() -> str:
    """Every span with kind, parent, links and attributes."""
    lines = [
        "# Spans",
        MADE,
        "Made through the OpenTelemetry API where a provider is set: by your program, or for `strandline node` by the",
        "environment; see [operate/tracing](../operate/tracing.md). One that failed has the status `ERROR`, the error as an",
        "event, and `error.type`. Keys are told in [attributes](attributes.md).",
        "",
        "| span | kind | spans | parent | links to | attributes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in catalogue.SPANS.values():
        keys = ", ".join(f"`{catalogue.ATTRIBUTES[name].key}`" for name in one.attributes)
        parent = (
            f"`{one.parent}`" if one.parent in catalogue.SPANS else one.parent or "the current span"
        )
        lines.append(
            f"| `{one.name}` | {one.role} | {one.meaning} | {parent} | {one.links} | {keys} |"
        )
    return "\n".join(lines) + "\n"


def log_events_page() -> str:
    """Every log event with level, message, further fields and meaning; and every field."""
    lines = [
        "# Log events",
        MADE,
        "Each record of the loggers `strandline.*` is one of these: its name is the attribute `event`, and every",
        "field is an attribute of its own name. `%(shard)s` in a message stands for the field `shard`. How to write",
        "them as JSON, and what else a record has, is told in [operate/logs](../operate/logs.md).",
        "",
    ]
    for title, group in catalogue.LOG_GROUPS.items():
        lines += [
            f"## {title}",
            "",
            "| event | level | message | further fields | meaning |",
            "| --- | --- | --- | --- | --- |",
        ]
        for one in sorted(group, key=lambda one: one.name):
            message = one.message.replace("|", "\\|").replace("\n", " ")
            further = ", ".join(f"`{name}`" for name in one.fields)
            lines.append(
                f"| `{one.name}` | {one.level} | `{message}` | {further} | {one.meaning} |"
            )
        lines.append("")
    shown = {
        name
        for one in catalogue.LOG_EVENTS.values()
        for name in re.findall(r"%\((\w+)\)", one.message)
    }
    used = (
        shown
        | {name for one in catalogue.LOG_EVENTS.values() for name in one.fields}
        | {"error_text"}
    )
    known = {**catalogue.ATTRIBUTES, **catalogue.LOG_FIELDS}
    lines += ["## Fields", "", "| field | meaning | example |", "| --- | --- | --- |"]
    for name in sorted(used):
        example = f"`{known[name].example}`" if known[name].example else ""
        lines.append(f"| `{name}` | {known[name].meaning} | {example} |")
    return "\n".join(lines) + "\n"


def alerts_page() -> str:
    """Every alert by group: how urgent, when, what it says, what to type first."""
    lines = [
        "# Alerts",
        MADE,
        "`strandline telemetry alerts` writes them as a rules file for Prometheus; [monitoring](monitoring.md) tells how to use it.",
        "Each has a runbook: what it means, where to look, what cures it, what to do if it comes back.",
        "",
        "*page*: somebody has to look now. *ticket*: today. *info*: when there is time.",
        "",
    ]
    groups = yaml.safe_load(alerts.PATH.read_text(encoding="utf-8"))["groups"]
    known = {one.name: one for one in alerts.alerts()}
    for group in groups:
        title = group["name"].removeprefix("strandline-").replace("-", " ").capitalize()
        lines += [
            f"## {title}",
            "",
            "| alert | urgency | after | fires when | first |",
            "| --- | --- | --- | --- | --- |",
        ]
        for rule in group["rules"]:
            one = known[rule["alert"]]
            expression = " ".join(rule["expr"].split()).replace("|", "\\|")
            link = f"[{one.name.removeprefix(alerts.PREFIX)}](runbooks/{one.runbook}.md)"
            lines.append(
                f"| {link} | {one.severity} | {one.pending or 'at once'} | `{expression}` | `{one.command}` |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "../deploy/grafana/strandline.json": grafana.text,
    "operate/alerts.md": alerts_page,
    "reference/api.md": api_page,
    "reference/attributes.md": attributes_page,
    "reference/cli.md": commands_page,
    "reference/errors.md": errors_page,
    "reference/log-events.md": log_events_page,
    "reference/metrics.md": metrics_page,
    "reference/settings.md": settings_page,
    "reference/spans.md": spans_page,
    "reference/sql.md": sql_page,
}


def with_numbers(readme: str) -> str:
    """README with its table of measured numbers, if there are any."""
    table = _numbers()
    return NUMBERS.sub(lambda found: found[1] + table + found[3], readme)


def with_job_numbers(page: str) -> str:
    """docs/compare/jobs.md with its table of measured numbers, if there are any."""
    table = _job_numbers()
    return NUMBERS.sub(lambda found: found[1] + table + found[3], page)


def main() -> None:
    """Write every page that is not up to date."""
    readme = DOCS.parent / "README.md"
    readme.write_text(with_numbers(readme.read_text(encoding="utf-8")), encoding="utf-8")
    compared = DOCS / "compare/jobs.md"
    compared.write_text(with_job_numbers(compared.read_text(encoding="utf-8")), encoding="utf-8")
    for page, make in PAGES.items():
        path = DOCS / page
        text = make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{page}")


def _numbers() -> str:
    """One row a workload, one column a system, of the last run of the benchmarks."""
    path = DOCS.parent / "bench/results/events.json"
    if not path.exists():
        return "`make bench` measures; no result is recorded yet.\n"
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = {
        (one["workload"], one["system"]): one
        for one in rows
        if one["metric"] == ("p99" if "p99" in one["workload"] else "rate")
    }
    lines = [
        "`make bench`: one run, 2 cores for client and server; events/s unless said otherwise."
        " `eventsourcing` 9.5 with C driver and database functions (its fast mode); the limit is plain SQL.",
        "",
        "| | strandline | eventsourcing | limit |",
        "| --- | ---: | ---: | ---: |",
    ]
    for workload, title in SHOWN.items():
        cells = [
            _cell(found.get((workload, one))) for one in ("strandline", "eventsourcing", "limit")
        ]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _job_numbers() -> str:
    """One row a workload and metric, one column a job queue, of the last run of their benchmark."""
    path = DOCS.parent / "bench/results/jobs.json"
    if not path.exists():
        return "`make bench-jobs` measures; no result is recorded yet.\n"
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = {(one["workload"], one["metric"], one["system"]): one for one in rows}
    lines = [
        "`make bench-jobs`: medians of one run, 2 cores for client, worker and server; jobs/s unless said otherwise.",
        "",
        f"| | {' | '.join(QUEUES)} |",
        f"| --- |{' ---: |' * len(QUEUES)}",
    ]
    for workload, metric, title in SHOWN_OF_JOBS:
        cells = [_cell(found.get((workload, metric, one))) for one in QUEUES]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    value, unit = row["value"], row["unit"]
    if "/s" in unit:
        return f"{value:,.0f}"
    return f"{value:,.2f} s" if unit.startswith("s/") else f"{value:,.1f} {unit}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        '""'
        if value == ""
        else f"{value:,}".replace(",", "_")
        if isinstance(value, int)
        else str(value)
    )


def _error_classes() -> list[type[Any]]:
    return [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.StrandlineError)
    ]


def _facts(cls: type[Any]) -> list[str]:
    if "__init__" not in vars(cls):
        return []
    return re.findall(r"self\.(\w+) = ", inspect.getsource(cls.__init__))


def _comment_above(file: str, function: str) -> list[str]:
    text = (SCHEMA / file).read_text(encoding="utf-8")
    before = text.split("CREATE FUNCTION {schema}." + function)[0].rstrip().splitlines()
    found: list[str] = []
    while before and before[-1].startswith("--"):
        found.insert(0, before.pop().removeprefix("--").strip())
    return found


def _arguments(text: str, function: str) -> Iterator[tuple[str, str, str]]:
    found = re.search(rf"FUNCTION strandline\.{function}\(([^)]*)\)", text)
    for one in (found[1] if found else "").split(", "):
        declared, _, default = one.partition(" DEFAULT ")
        name, _, kind = declared.partition(" ")
        value = default.split("::")[0]
        value = value.strip("'") if "integer" in default else value
        yield name, kind, f"`{value}`" if value else ""


def _described(title: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        lines = [f"## `{title}`", "", *_text(value)]
        for name, member in (
            vars(value).items() if not issubclass(value, strandline.App) else _of_app()
        ):
            if (
                name.startswith("_")
                or name in INNER
                or not (inspect.isfunction(member) or isinstance(member, property))
            ):
                continue
            if not inspect.getdoc(member):
                continue
            lines += [f"### `{title}.{name}`", "", *_signature(name, member), *_text(member)]
        return lines
    if inspect.isfunction(value):
        return [f"## `{title}`", "", *_signature(value.__name__, value), *_text(value)]
    return [f"## `{title}`", "", f"`{value!r}`; see `sl.{type(value).__name__}`.", ""]


def _of_app() -> list[tuple[str, Any]]:
    """The members of App and of the classes it is put together from, by name."""
    names = sorted(name for name in dir(strandline.App) if not name.startswith("_"))
    return [(name, inspect.getattr_static(strandline.App, name)) for name in names]


def _signature(name: str, member: Any) -> list[str]:
    if not inspect.isfunction(member):
        return []
    function = inspect.unwrap(member)
    signature = str(inspect.signature(function)).replace("(self, ", "(").replace("(self)", "()")
    head = "async def " if inspect.iscoroutinefunction(function) else "def "
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", f"{head}{name}{signature}")
    text = re.sub(r"<\w+\.(\w+): -?\d+>", r"sl.\1", text)
    text = re.sub(r"<built-in method (\w+) of [^>]*>", r"\1", text)
    if len(text) > 100:
        opening, _, rest = text.partition("(")
        inside, _, answer = rest.rpartition(")")
        parts = re.split(r", (?![^\[\(]*[\]\)])", inside)
        text = opening + "(\n" + "".join(f"    {one},\n" for one in parts) + ")" + answer
    return ["```text", text, "```", ""]


def _text(value: Any) -> list[str]:
    """The docstring, its sections as lists."""
    lines = []
    for line in (inspect.getdoc(value) or "").splitlines():
        section = re.match(r"^(Args|Returns|Raises|Attributes):$", line)
        item = re.match(r"^    (\w+): (.*)$", line)
        if section:
            lines += [f"**{section[1]}**", ""]
        elif item:
            lines.append(f"* `{item[1]}`: {item[2]}")
        else:
            lines.append(
                line.removeprefix("    ")
                if not line.startswith("        ")
                else "  " + line.strip()
            )
    return [*lines, ""]


if __name__ == "__main__":
    main()
