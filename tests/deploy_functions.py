"""The functions of deploy/lambda against a local AWS, through their handlers; tests/deploy.py runs it with moto's address."""

import json
import os
import unittest
import uuid

import boto3

import configure
import notify


def setUpModule():
    for clients in (configure._clients, notify._clients):
        clients.clear()


def anomaly(**changed):
    detail = {
        "anomaly_id": str(uuid.uuid4()), "threat": "port_scan", "severity": "high", "confidence": 0.97, "actor": "203.0.113.9",
        "targets": [{"address": "10.0.0.5"}], "summary": "203.0.113.9 tried 1,022 ports of 10.0.0.5", "mitre": ["T1046"],
        "first_seen": "2026-11-20T10:00:00Z", "last_seen": "2026-11-20T10:00:47Z", "account_id": "123456789012", **changed,
    }
    return {"source": "anomaly-detection-service", "detail-type": "Anomaly Detected", "region": "eu-west-1", "detail": detail}


def batch(*events):
    bodies = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return {"Records": [{"messageId": f"m{n}", "body": body} for n, body in enumerate(bodies)]}


class Notify(unittest.TestCase):
    def setUp(self):
        self.sns, self.sqs, self.dynamodb = boto3.client("sns"), boto3.client("sqs"), boto3.client("dynamodb")
        name = "n" + uuid.uuid4().hex
        self.table = name
        self.dynamodb.create_table(
            TableName=name, BillingMode="PAY_PER_REQUEST", KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}])
        self.queues = {}
        for topic in ("pages", "tickets"):
            arn = self.sns.create_topic(Name=f"{name}-{topic}")["TopicArn"]
            queue = self.sqs.create_queue(QueueName=f"{name}-{topic}")["QueueUrl"]
            queue_arn = self.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
            self.sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue_arn)
            self.queues[topic] = queue
            os.environ[f"{topic.upper()}_TOPIC_ARN"] = arn
        os.environ["NOTIFICATIONS_TABLE"] = name

    def sent(self, topic):
        messages = []
        while got := self.sqs.receive_message(QueueUrl=self.queues[topic], MaxNumberOfMessages=10).get("Messages"):
            for one in got:
                messages.append(json.loads(one["Body"]))
                self.sqs.delete_message(QueueUrl=self.queues[topic], ReceiptHandle=one["ReceiptHandle"])
        return messages

    def test_severity_decides_who_is_told(self):
        told = notify.handler(batch(*(anomaly(severity=s) for s in ("critical", "high", "medium", "low"))), None)
        self.assertEqual(told, {"batchItemFailures": []})
        self.assertEqual([m["Subject"].split("]")[0] for m in self.sent("pages")], ["[critical", "[high"])
        self.assertEqual([m["Subject"].split("]")[0] for m in self.sent("tickets")], ["[medium"])

    def test_a_message_that_comes_twice_is_told_once(self):
        event = anomaly()
        notify.handler(batch(event, event), None)
        notify.handler(batch(event), None)
        self.assertEqual(len(self.sent("pages")), 1)

    def test_an_update_is_told_only_where_it_is_worse(self):
        event = anomaly(severity="medium")
        for severity in ("medium", "high", "medium", "high", "critical"):
            event["detail"]["severity"] = severity
            notify.handler(batch(event), None)
        self.assertEqual(len(self.sent("tickets")), 1)
        self.assertEqual([m["Subject"].split("]")[0] for m in self.sent("pages")], ["[high", "[critical"])

    def test_what_was_told_a_month_ago_is_news_again(self):
        event = anomaly()
        row = {"id": {"S": event["detail"]["anomaly_id"]}, "told": {"N": "3"}, "expires": {"N": "1"}}
        self.dynamodb.put_item(TableName=self.table, Item=row)
        notify.handler(batch(event), None)
        self.assertEqual(len(self.sent("pages")), 1)

    def test_only_what_failed_comes_again(self):
        good = anomaly()
        told = notify.handler(batch("no JSON", good, {"detail": {}}), None)
        self.assertEqual(told, {"batchItemFailures": [{"itemIdentifier": "m0"}, {"itemIdentifier": "m2"}]})
        self.assertEqual(len(self.sent("pages")), 1)

    def test_what_could_not_be_sent_is_sent_by_the_next_try(self):
        event, topic = anomaly(), os.environ["PAGES_TOPIC_ARN"]
        os.environ["PAGES_TOPIC_ARN"] = topic + "-gone"
        self.assertEqual(len(notify.handler(batch(event), None)["batchItemFailures"]), 1)
        os.environ["PAGES_TOPIC_ARN"] = topic
        self.assertEqual(notify.handler(batch(event), None), {"batchItemFailures": []})
        self.assertEqual(len(self.sent("pages")), 1)

    def test_a_message_says_who_what_and_where_to_look(self):
        event = anomaly(targets=[{"address": f"10.0.0.{n}"} for n in range(9)])
        notify.handler(batch(event), None)
        text = self.sent("pages")[0]["Message"]
        for part in ("203.0.113.9 tried 1,022 ports", "and 4 more", f"/v1/anomalies/{event['detail']['anomaly_id']}/feedback", "T1046"):
            self.assertIn(part, text)

    def test_a_subject_is_what_sns_takes(self):
        event = anomaly(summary="ä\n" * 90)
        notify.handler(batch(event), None)
        subject = self.sent("pages")[0]["Subject"]
        self.assertLessEqual(len(subject), 100)
        self.assertTrue(subject.isascii() and subject.isprintable(), subject)


class Configure(unittest.TestCase):
    def setUp(self):
        self.ssm, self.events, self.sqs = boto3.client("ssm"), boto3.client("events"), boto3.client("sqs")
        name = "c" + uuid.uuid4().hex
        self.path = f"/{name}/"
        self.events.create_event_bus(Name=name)
        self.queue = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        self.events.put_rule(Name=name, EventBusName=name, EventPattern=json.dumps({"source": ["operations"]}))
        self.events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "q", "Arn": arn}])
        os.environ.update(SETTINGS_PATH=self.path, BUS_NAME=name, EVENT_SOURCE="operations")

    def announced(self):
        messages = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages", [])
        for one in messages:
            self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=one["ReceiptHandle"])
        return [(e["detail-type"], e["detail"]) for e in (json.loads(m["Body"]) for m in messages)]

    def value(self, key):
        try:
            return self.ssm.get_parameter(Name=self.path + key)["Parameter"]["Value"]
        except self.ssm.exceptions.ParameterNotFound:
            return None

    change = {"key": "statistical.port_scan.ports", "value": "40", "by": "ada", "reason": "CHG-17"}

    def test_a_change_is_made_and_announced_with_what_stood_before(self):
        configure.handler(self.change, None)
        self.assertEqual(self.value("statistical/port_scan/ports"), "40")
        told = configure.handler({"detail": {**self.change, "value": 50}}, None)
        self.assertEqual((told["before"], told["now"]), ("40", "50"))
        kinds = [(kind, detail["before"], detail["by"]) for kind, detail in self.announced()]
        self.assertEqual(kinds, [("Setting Changed", None, "ada"), ("Setting Changed", "40", "ada")])

    def test_null_takes_a_parameter_away_and_doing_it_again_is_no_failure(self):
        configure.handler(self.change, None)
        for _ in range(2):
            configure.handler({**self.change, "value": None}, None)
            self.assertIsNone(self.value("statistical/port_scan/ports"))

    def test_what_is_no_change_is_refused_announced_and_leaves_everything_as_it_was(self):
        for wrong in ({"key": "api.token"}, {"key": "../x"}, {"by": ""}, {"reason": None}, {"value": ""}, {"value": "x" * 5000}, {"more": 1}):
            with self.subTest(wrong), self.assertRaises(configure.Refused):
                configure.handler({**self.change, **wrong}, None)
        with self.assertRaises(configure.Refused):
            configure.handler({k: v for k, v in self.change.items() if k != "value"}, None)
        self.assertIsNone(self.value("statistical/port_scan/ports"))
        self.assertEqual({kind for kind, _ in self.announced()}, {"Setting Change Refused"})

    def test_lists_are_written_as_the_environment_has_them(self):
        configure.handler({**self.change, "key": "statistical.port_scan.client_ports", "value": [80, 443]}, None)
        self.assertEqual(self.value("statistical/port_scan/client_ports"), "[80, 443]")


if __name__ == "__main__":
    unittest.main()
