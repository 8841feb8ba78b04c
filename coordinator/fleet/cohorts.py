"""Cohorts: which devices, in words. `site=lab, profile=jetson-nano, share=25%, name=dev1|dev2`; nothing means all.

All terms must hold. `name` and `id` match the device, `profile` its profile's name, `share` a fixed part of all devices, drawn by
hashing their ids so that the same device is in the same share every time; any other word is a label.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.fleet.device import Device
from shared.errors import ConfigError
from shared.text import clean_text

_MAX_NAME = 64  # characters
_WHOLE = 1 << 64


@dataclass(frozen=True)
class Cohort:
    """A parsed selector. `terms` are (key, accepted values); `share` is between 0 and 1."""

    terms: tuple[tuple[str, frozenset[str]], ...] = ()
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Cohort":
        """Raises `ConfigError`."""
        terms: dict[str, frozenset[str]] = {}
        share = 1.0
        for term in filter(None, (part.strip() for part in text.split(","))):
            key, separator, value = (part.strip() for part in term.partition("="))
            values = frozenset(part.strip() for part in value.split("|"))
            if not (separator and key and all(values)):
                raise ConfigError(f"a cohort is made of KEY=VALUE terms, not {term!r}")
            if key in terms or (key == "share" and share != 1.0):
                raise ConfigError(f"a cohort names {key!r} twice; use {key}=a|b for either")
            if key == "share":
                share = _parse_share(value)
            else:
                terms[key] = values
        return cls(tuple(sorted(terms.items())), share)

    def admits(self, device: Device) -> bool:
        return all(_value(device, key) in accepted for key, accepted in self.terms) and _in_share(device.id, self.share)

    def members(self, devices: Iterable[Device]) -> list[Device]:
        return [device for device in devices if self.admits(device)]


def _value(device: Device, key: str) -> str:
    match key:
        case "id":
            return device.id
        case "name":
            return device.name
        case "profile":
            return profile_name(device.profile_json)
    return device.labels.get(key, "")


def profile_name(profile_json: str) -> str:
    """The profile's name, fit to be shown, or nothing if the device sent none."""
    try:
        profile = json.loads(profile_json or "{}")
    except ValueError:
        return ""
    return clean_text(str(profile.get("name", "")), _MAX_NAME) if isinstance(profile, dict) else ""


def _parse_share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"share is a part such as 25% or 0.25, not {text!r}")
    return share


def _in_share(device_id: str, share: float) -> bool:
    place = int.from_bytes(hashlib.sha256(b"shoal cohort share" + device_id.encode()).digest()[:8], "big")
    return place < share * _WHOLE
