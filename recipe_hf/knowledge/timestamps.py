"""Timestamps as text: ISO 8601 in UTC, so that later ones sort after earlier ones."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any


def now(after: str = "") -> str:
    """The present time, or the one right after `after` if the clock was set back."""
    present = _format(datetime.now(UTC))
    return present if present > after else _format(datetime.fromisoformat(after) + timedelta(microseconds=1))


def to_timestamp(value: Any, name: str) -> str:
    """A date, or a date and time, as the text that facts carry; UTC if it names no time zone.

    Args:
        value: A `datetime`, a `date`, or a string in ISO 8601.
        name: Its name in errors.

    Raises:
        ValueError: If it is not one of these.

    >>> to_timestamp("2026-05-01T12:00+02:00", "valid_from")
    '2026-05-01T10:00:00.000000+00:00'
    """
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00")) if isinstance(value, str) else value
        if type(moment) is date:
            moment = datetime.combine(moment, time())
        return _format(moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{name} must be a datetime or a string such as '2026-05-01' or '2026-05-01T12:00+02:00', got {value!r}."
        ) from error


def _format(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")
