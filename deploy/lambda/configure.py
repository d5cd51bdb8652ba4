"""Changes a setting of the running service, and says on the bus who did.

It is called with, or with an event of the bus whose detail is

    {"key": "statistical.port_scan.ports", "value": "40", "by": "ada", "reason": "CHG-17"}

and `"value": null` takes the parameter away, so that the settings below it count again. Only keys that apply while the service runs
are taken (`settings.json`, which `flowvigil config keys` makes); the service reads Parameter Store every minute, checks all that is new
as one, and refuses it as one where a value is bad: /health/ready says so, and the alarm `degraded` tells.

Every change is announced as `Setting Changed` with what stood there before, which is what a change back needs; the archive of the bus
keeps it. A change that is refused is announced as `Setting Change Refused`, and raises, so that it is counted.
"""

import json
import logging
import os
from pathlib import Path

import boto3
from botocore.config import Config

log = logging.getLogger()
log.setLevel(logging.INFO)

# Parameter Store takes 4 KB in its standard tier.
VALUE_MAX = 4096

_clients = {}


def client(name):
    """A client of AWS that is made when it is first needed and kept for the next call."""
    if name not in _clients:
        _clients[name] = boto3.client(name, config=Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 3}))
    return _clients[name]


class Refused(Exception):
    """A change that is not made."""


def changeable():
    """Keys that apply while the service runs, with the rest of their names in Parameter Store."""
    return json.loads(Path(__file__).with_name("settings.json").read_text())


def handler(event, _context):
    """Makes one change; answers what stood there and what stands there now."""
    change = event.get("detail", event)
    try:
        key, value, by, reason = checked(change)
        name = os.environ["SETTINGS_PATH"] + changeable()[key]
        before = read(name)
        write(name, before, value)
    except Refused as refused:
        announce("Setting Change Refused", {"change": shown(change), "cause": str(refused)})
        raise
    told = {"key": key, "parameter": name, "before": before, "now": value, "by": by, "reason": reason}
    announce("Setting Changed", told)
    log.info(json.dumps({"message": "setting changed", **told}))
    return told


def checked(change):
    """The parts of a change, if it can be made."""
    if not isinstance(change, dict):
        raise Refused("a change is an object with key, value, by and reason")
    unknown = set(change) - {"key", "value", "by", "reason"}
    if unknown:
        raise Refused(f"unknown: {', '.join(sorted(unknown))}")
    key, by, reason = (change.get(name) for name in ("key", "by", "reason"))
    for name, text in (("key", key), ("by", by), ("reason", reason)):
        if not isinstance(text, str) or not text.strip():
            raise Refused(f"`{name}` is missing")
    if key not in changeable():
        raise Refused(f"`{key}` is no setting that applies while the service runs; `flowvigil config keys` lists them")
    if "value" not in change:
        raise Refused("`value` is missing; null takes the parameter away")
    value = change["value"]
    if value is None:
        return key, None, by, reason
    # As the environment has it: text as it is, everything else as JSON.
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.strip():
        raise Refused("Parameter Store keeps no empty values; null takes the parameter away")
    if len(text.encode()) > VALUE_MAX:
        raise Refused(f"the value has more than {VALUE_MAX} bytes")
    return key, text, by, reason


def read(name):
    try:
        return client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    except client("ssm").exceptions.ParameterNotFound:
        return None


def write(name, before, value):
    if value is not None:
        client("ssm").put_parameter(Name=name, Value=value, Type="String", Overwrite=True)
    elif before is not None:
        client("ssm").delete_parameter(Name=name)


def shown(change):
    """A change that was refused, short enough for an event."""
    return json.dumps(change, default=str)[:1000]


def announce(kind, detail):
    entry = {
        "EventBusName": os.environ["BUS_NAME"],
        "Source": os.environ["EVENT_SOURCE"],
        "DetailType": kind,
        "Detail": json.dumps(detail),
    }
    answer = client("events").put_events(Entries=[entry])
    if answer["FailedEntryCount"]:
        raise RuntimeError(f"the bus did not take `{kind}`: {answer['Entries'][0].get('ErrorMessage')}")
