"""Tells anomalies to people: from the queue of the bus to a topic by severity, each once.

    critical, high   the topic that wakes somebody
    medium           the topic that is read today

Lower ones never come here (the rule on the bus leaves them out). An update is told only where it raises the severity of what was
told: whoever was woken once is not woken again by the same scan. What was told is a row under the anomaly's id, written on the
condition that it says something new, so that a message that is delivered twice is sent once.

What cannot be sent is given back alone (`batchItemFailures`): the rest of the batch counts as done. After five tries it lies in
the queue of failed notifications, which has an alarm.
"""

import json
import logging
import os
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

log = logging.getLogger()
log.setLevel(logging.INFO)

RANK = {"medium": 1, "high": 2, "critical": 3}
# For how long an anomaly's row is remembered after it was last told, s; an episode of a beacon may rest for a day.
REMEMBERED = 30 * 24 * 3600
# SNS takes subjects of at most 100 characters, without line breaks.
SUBJECT_MAX = 100

_clients = {}


def client(name):
    """A client of AWS that is made when it is first needed and kept for the next batch."""
    if name not in _clients:
        _clients[name] = boto3.client(name, config=Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 3}))
    return _clients[name]


def handler(event, _context):
    """Sends each message of a batch; answers those that must come again."""
    failed = []
    for record in event.get("Records", []):
        try:
            tell(json.loads(record["body"]))
        except Exception as error:
            log.error(json.dumps({"message": "notification failed", "id": record.get("messageId"), "cause": str(error)}))
            failed.append({"itemIdentifier": record.get("messageId", "")})
    return {"batchItemFailures": failed}


def tell(event):
    """Sends one event of the bus, unless it says nothing new."""
    anomaly = event["detail"]
    severity = anomaly["severity"]
    rank = RANK.get(severity)
    if rank is None:
        return False
    if not remember(anomaly["anomaly_id"], rank):
        return False
    try:
        topic = os.environ["PAGES_TOPIC_ARN" if rank >= RANK["high"] else "TICKETS_TOPIC_ARN"]
        client("sns").publish(
            TopicArn=topic,
            Subject=subject(anomaly),
            Message=message(event, anomaly),
            MessageAttributes={
                "severity": {"DataType": "String", "StringValue": severity},
                "threat": {"DataType": "String", "StringValue": anomaly["threat"]},
            },
        )
    except Exception:
        # It was not told: the row must not keep the next try from telling it.
        forget(anomaly["anomaly_id"], rank)
        raise
    log.info(json.dumps({"message": "told", "anomaly_id": anomaly["anomaly_id"], "severity": severity}))
    return True


def remember(anomaly_id, rank):
    """Whether this is news: writes the severity under the id, unless as much was told before."""
    now = int(time.time())
    try:
        client("dynamodb").put_item(
            TableName=os.environ["NOTIFICATIONS_TABLE"],
            Item={"id": {"S": anomaly_id}, "told": {"N": str(rank)}, "expires": {"N": str(now + REMEMBERED)}},
            # DynamoDB deletes what has expired within days; until then it counts as deleted.
            ConditionExpression="attribute_not_exists(id) OR told < :rank OR expires < :now",
            ExpressionAttributeValues={":rank": {"N": str(rank)}, ":now": {"N": str(now)}},
        )
        return True
    except ClientError as error:
        if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
            return False
        raise


def forget(anomaly_id, rank):
    """Takes a row back that this function wrote and could not stand by."""
    try:
        client("dynamodb").delete_item(
            TableName=os.environ["NOTIFICATIONS_TABLE"],
            Key={"id": {"S": anomaly_id}},
            ConditionExpression="told = :rank",
            ExpressionAttributeValues={":rank": {"N": str(rank)}},
        )
    except Exception as error:
        log.error(json.dumps({"message": "row not taken back", "anomaly_id": anomaly_id, "cause": str(error)}))


def subject(anomaly):
    text = f"[{anomaly['severity']}] {anomaly['threat']}: {anomaly.get('summary', anomaly['actor'])}"
    # What is no printable ASCII would be refused, and with it the message.
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return text if len(text) <= SUBJECT_MAX else text[: SUBJECT_MAX - 3] + "..."


def message(event, anomaly):
    targets = [target["address"] for target in anomaly.get("targets", [])]
    shown = ", ".join(targets[:5]) + (f" and {len(targets) - 5} more" if len(targets) > 5 else "")
    lines = [
        anomaly.get("summary", ""),
        "",
        f"severity    {anomaly['severity']}, confidence {anomaly.get('confidence', 0):.2f}",
        f"actor       {anomaly['actor']}",
        f"targets     {shown or 'none'}",
        f"seen        {anomaly.get('first_seen', '?')} to {anomaly.get('last_seen', '?')}",
        f"account     {anomaly.get('account_id') or event.get('account', '?')}, {event.get('region', '?')}",
        f"ATT&CK      {', '.join(anomaly.get('mitre', [])) or 'none'}",
        "",
        f"id          {anomaly['anomaly_id']}",
        f"all of it   GET /v1/anomalies/{anomaly['anomaly_id']}",
        f"was it one? POST /v1/anomalies/{anomaly['anomaly_id']}/feedback",
    ]
    return "\n".join(lines)
