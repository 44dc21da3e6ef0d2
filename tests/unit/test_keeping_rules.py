"""Which backups stay: rules as tables, and what holds for all of them (retention of issue 6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.backups.keeping import AT_WORK, Kept, decide
from runner.backups.manifest import moment, new_id
from runner.plan import Keep

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def backup(at: str | datetime, *, whole: bool = True, rows: int = 10) -> Kept:
    when = datetime.fromisoformat(at).replace(tzinfo=UTC) if isinstance(at, str) else at
    return Kept(new_id(when), when, whole, rows)


def stays(backups: list[Kept], **keep: int | str) -> list[str]:
    """The times of those that stay, newest first."""
    found = decide(backups, Keep.model_validate(keep), NOW)
    return [f"{moment(name):%Y-%m-%d %H}" for name, why in found.items() if why]


HOURLY = [backup(datetime(2026, 11, 20, 11, tzinfo=UTC) - timedelta(hours=6 * n)) for n in range(8)]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ({"last": 3}, ["2026-11-20 11", "2026-11-20 05", "2026-11-19 23"]),
        ({"last": 1}, ["2026-11-20 11"]),
        ({"daily": 2}, ["2026-11-20 11", "2026-11-19 23"]),
        ({"daily": 9}, ["2026-11-20 11", "2026-11-19 23", "2026-11-18 23"]),
        ({"weekly": 2}, ["2026-11-20 11"]),
        ({"within": "12h"}, ["2026-11-20 11", "2026-11-20 05"]),
        ({"within": "1s"}, ["2026-11-20 11"]),
        ({"last": 2, "daily": 2}, ["2026-11-20 11", "2026-11-20 05", "2026-11-19 23"]),
        ({"last": 100}, [f"{item.at:%Y-%m-%d %H}" for item in HOURLY]),
    ],
    ids=str,
)
def test_rules_within_days(keep: dict[str, int | str], expected: list[str]) -> None:
    assert stays(HOURLY, **keep) == expected


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        # ISO puts 2025-12-29 to 2026-01-04 in one week
        ({"weekly": 1}, ["2026-01-04 00"]),
        ({"weekly": 2}, ["2026-01-04 00", "2025-12-28 00"]),
        ({"monthly": 2}, ["2026-01-04 00", "2025-12-31 00"]),
        ({"yearly": 2}, ["2026-01-04 00", "2025-12-31 00"]),
        ({"yearly": 3}, ["2026-01-04 00", "2025-12-31 00", "2024-12-31 00"]),
    ],
    ids=str,
)
def test_rules_over_a_new_year(keep: dict[str, int | str], expected: list[str]) -> None:
    days = ["2024-12-31", "2025-12-28", "2025-12-29", "2025-12-31", "2026-01-01", "2026-01-04"]
    assert stays([backup(day) for day in days], **keep) == expected


@pytest.mark.parametrize("keep", [None, Keep(), Keep(last=0), Keep(within="")], ids=str)
def test_without_a_rule_everything_stays(keep: Keep | None) -> None:
    assert all(decide(HOURLY, keep, NOW).values())


def test_empty_backups_do_not_push_out_the_last_one_that_holds_rows() -> None:
    nights = [backup(NOW - timedelta(days=n), rows=0 if n < 5 else 100) for n in range(10)]
    assert stays(nights, last=1) == ["2026-11-20 12", "2026-11-15 12"]


def test_a_backup_that_is_not_whole_counts_for_nothing() -> None:
    night = [
        backup(NOW - timedelta(minutes=59), whole=False),  # its run may not be over
        backup(NOW - timedelta(hours=5), whole=False),  # nothing newer is whole
        backup(NOW - timedelta(hours=6)),
        backup(NOW - timedelta(hours=7), whole=False),
        backup(NOW - timedelta(hours=8)),
    ]
    found = decide(night, Keep(last=1), NOW)
    assert [bool(why) for why in found.values()] == [True, True, True, False, False]
    assert [bool(why) for why in decide(night, Keep(last=2), NOW).values()] == [True, True, True, False, True]
    broken = [item for item in night if not item.whole]
    assert all(decide(broken, Keep(last=1), NOW).values()), "there is nothing better"


backups = st.lists(
    st.builds(
        lambda seconds, whole, rows: backup(NOW - timedelta(seconds=seconds), whole=whole, rows=rows),
        st.integers(-60, 3 * 365 * 86_400) | st.integers(0, 3 * 86_400),
        st.booleans(),
        st.sampled_from([0, 1, 1000]),
    ),
    max_size=40,
    unique_by=lambda item: item.id,
)
rules = st.builds(
    Keep,
    last=st.none() | st.integers(0, 5),
    daily=st.none() | st.integers(0, 9),
    weekly=st.none() | st.integers(0, 5),
    monthly=st.none() | st.integers(0, 5),
    yearly=st.none() | st.integers(0, 3),
    within=st.none() | st.sampled_from(["1h", "30d", "400d"]),
)


def kept(items: list[Kept], keep: Keep, now: datetime = NOW) -> set[str]:
    return {name for name, why in decide(items, keep, now).items() if why}


@given(backups, rules)
def test_what_never_goes(items: list[Kept], keep: Keep) -> None:
    stay = kept(items, keep)
    whole = sorted((item for item in items if item.whole), key=lambda item: item.at)
    assert {item.id for item in whole[-1:]} <= stay
    assert {item.id for item in [item for item in whole if item.rows][-1:]} <= stay
    assert {item.id for item in items if not item.whole and item.at > NOW - AT_WORK} <= stay
    assert kept(items[::-1], keep) == stay, "the order in which they are listed decides"


@given(backups, rules, rules)
def test_more_rules_keep_at_least_as_much(items: list[Kept], one: Keep, other: Keep) -> None:
    both = Keep.model_validate(
        {key: value for keep in (one, other) for key, value in keep.model_dump().items() if value}
    )
    some = Keep.model_validate({key: getattr(both, key) for key, value in one.model_dump().items() if value})
    if any(some.model_dump().values()):
        assert kept(items, some) <= kept(items, both)


@given(backups, rules)
def test_what_stays_goes_on_staying_once_the_rest_is_gone(items: list[Kept], keep: Keep) -> None:
    stay = kept(items, keep)
    assert kept([item for item in items if item.id in stay], keep) == stay


@given(backups, st.integers(1, 5))
def test_a_rule_keeps_no_more_than_it_says(items: list[Kept], count: int) -> None:
    whole = [item for item in items if item.whole]
    for rule in ("last", "daily", "weekly", "monthly", "yearly"):
        found = decide(items, Keep.model_validate({rule: count}), NOW)
        assert sum(rule in why for why in found.values()) == min(
            count, len(whole) if rule == "last" else len({_period(rule, item.at) for item in whole})
        )


def _period(rule: str, at: datetime) -> str:
    return at.strftime({"daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m", "yearly": "%Y"}[rule])
