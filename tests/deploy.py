#!/usr/bin/env python3
"""Holds deploy/ against the binary and against local stand-ins of AWS; tests/it/deploy.rs runs it, check by check.

    tests/deploy.py CHECK FLOWVIGIL        where FLOWVIGIL is the binary

A check prints what is wrong, a line each, and ends with 1; where what it needs is not here it prints `skipped: …` and ends with 0.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
TEMPLATES = sorted((DEPLOY / "cloudformation").glob("*.yaml"))
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


class Skipped(Exception):
    """What the check needs is not here."""


# === what is read ===


def template(path):
    """A template with its intrinsic functions as `{"Fn::Sub": …}` and `{"Ref": …}`."""
    try:
        import yaml
    except ImportError:
        raise Skipped("no PyYAML; tests/run deploy installs it") from None

    class Loader(yaml.SafeLoader):
        pass

    def intrinsic(loader, suffix, node):
        if isinstance(node, yaml.ScalarNode):
            value = loader.construct_scalar(node)
        elif isinstance(node, yaml.SequenceNode):
            value = loader.construct_sequence(node, deep=True)
        else:
            value = loader.construct_mapping(node, deep=True)
        if suffix == "GetAtt" and isinstance(value, str):
            value = value.split(".", 1)
        return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}

    Loader.add_multi_constructor("!", intrinsic)
    return yaml.load(path.read_text(), Loader)


def templates():
    return {path.stem: template(path) for path in TEMPLATES}


def resources(one, kind):
    return {name: r["Properties"] for name, r in one["Resources"].items() if r["Type"] == kind}


def walk(value):
    """Everything inside, itself included."""
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from walk(one)


def listed(value):
    return value if isinstance(value, list) else [value]


def code():
    """The sources without their tests and comments."""
    for path in sorted((ROOT / "src").rglob("*.rs")):
        if path.name == "tests.rs" or "tests" in path.parent.parts:
            continue
        text = path.read_text().split("#[cfg(test)]")[0]
        yield path, "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))


def told(flowvigil, *arguments):
    return subprocess.run([flowvigil, *arguments], capture_output=True, text=True, check=True).stdout


def keys(flowvigil):
    """Settings: key to (applies, environment name, parameter name)."""
    lines = (line.split() for line in told(flowvigil, "config", "keys").splitlines())
    return {words[1]: (words[0], words[2], words[3]) for words in lines}


def defaults(flowvigil):
    """The defaults as `flowvigil config` prints them, chosen backends included: key to value."""
    try:
        import tomllib
    except ImportError:
        raise Skipped("Python before 3.11 reads no TOML") from None
    text = re.sub(r"^#: ?", "", told(flowvigil, "config"), flags=re.M)
    flat = {}

    def flatten(table, path):
        for name, value in table.items():
            if isinstance(value, dict):
                flatten(value, [*path, name])
            else:
                flat[".".join([*path, name])] = value

    flatten(tomllib.loads(text), [])
    return flat


def program(name):
    """A linter of tests/deploy.txt, from the environment that tests/run made."""
    own = ROOT / "tests/.tools/lint/bin" / name
    if not own.exists():
        raise Skipped(f"no {name}; tests/run deploy installs it")
    return str(own)


def lint(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [] if done.returncode == 0 else (done.stdout + done.stderr).splitlines()


# === linters ===


@check
def cloudformation(_):
    wrong = lint(program("cfn-lint"), "--regions", "us-east-1", "eu-central-1", "--", *map(str, TEMPLATES))
    for path in TEMPLATES:
        if "cfn-lint" in path.read_text():
            wrong.append(f"{path.name} tells cfn-lint to look away")
        if path.stat().st_size > 51_200:
            wrong.append(f"{path.name} is larger than the 51,200 bytes that CloudFormation takes without a bucket")
    return wrong


@check
def dockerfile(_):
    return lint(program("hadolint"), "Dockerfile")


@check
def scripts(_):
    found = [path for path in [ROOT / ".ci/run", *(ROOT / "tests").iterdir(), *DEPLOY.rglob("*")]
             if path.is_file() and path.read_bytes()[:20].split(b"\n")[0] in (b"#!/bin/sh", b"#!/usr/bin/env bash")]
    return lint(program("shellcheck"), "--external-sources", *map(str, found)) if found else ["no script was found"]


@check
def workflows(_):
    folder = ROOT / ".github/workflows"
    files = [str(path) for path in sorted(folder.glob("*.yml"))]
    wrong = lint(program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *files)
    return wrong + lint(program("zizmor"), "--offline", "--no-progress", "--format", "plain", "--min-severity", "medium", *files)


# === agreement with the code ===


@check
def settings_of_the_task_are_settings_of_the_service(flowvigil):
    known = {environment: key for key, (_, environment, _) in keys(flowvigil).items()}
    chosen = {one["Name"]: one["Value"] for one in task_environment() if one["Name"].startswith("FLOWVIGIL__")}
    wrong = [f"{name} is no setting" for name in chosen if name not in known]
    if len(chosen) < 20:
        wrong.append(f"only {len(chosen)} settings were found")
    image = re.findall(r"\b(FLOWVIGIL__\w+)=", (ROOT / "Dockerfile").read_text())
    wrong += [f"Dockerfile: {name} is no setting" for name in image if name not in known]
    for path in sorted(DEPLOY.rglob("*.md")):
        wrong += [f"{path.name}: {name} is no setting" for name in re.findall(r"\b(FLOWVIGIL__[A-Z0-9_]+)\b", path.read_text())
                  if name not in known]
    return wrong


def task_environment():
    task = next(iter(resources(templates()["compute"], "AWS::ECS::TaskDefinition").values()))
    entries = next(c for c in task["ContainerDefinitions"] if c["Name"] == "flowvigil")["Environment"]
    return [one["Fn::If"][1] if "Fn::If" in one else one for one in entries]


@check
def the_service_takes_the_settings_of_the_task(flowvigil):
    """With every reference replaced by its default, the settings are checked by the binary itself."""
    compute = templates()["compute"]
    given = {"IsolationForestEndpointName": "isolation-forest-endpoint", "LstmEndpointName": "lstm-model-endpoint"}
    default = {name: given.get(name) or str(p.get("Default", "x")) for name, p in compute["Parameters"].items()}
    environment = {"PATH": os.environ["PATH"]}
    for one in task_environment():
        value = one["Value"]
        if isinstance(value, dict):
            value = default[value["Ref"]] if "Ref" in value else re.sub(
                r"\$\{(\w+)\}", lambda match: default[match[1]], value["Fn::Sub"])
        environment[one["Name"]] = value
    done = subprocess.run([flowvigil, "config", "check", "/dev/null"], env=environment, capture_output=True, text=True)
    return [] if done.returncode == 0 else (done.stdout + done.stderr).splitlines()


@check
def defaults_of_parameters_are_defaults_of_the_service(flowvigil):
    """A parameter whose description begins with the name of a setting has that setting's default."""
    known = defaults(flowvigil)
    # The service knows of no format until it is told; the deployment chooses one.
    other = {"ingest.fields"}
    wrong, compared = [], 0
    for stem, one in templates().items():
        for name, parameter in one["Parameters"].items():
            key = re.match(r"[a-z0-9_]+(\.[a-z0-9_]+)+", parameter.get("Description", ""))
            if not key or "Default" not in parameter or key[0] in other:
                continue
            if key[0] not in known:
                wrong.append(f"{stem}.{name}: there is no setting {key[0]}")
                continue
            compared += 1
            there, here = known[key[0]], parameter["Default"]
            here = json.loads(here) if isinstance(there, list) else here
            if str(there) != str(here):
                wrong.append(f"{stem}.{name}: {here!r}, and {key[0]} is {there!r}")
    if compared < 10:
        wrong.append(f"only {compared} parameters were compared")
    log_format = next(iter(resources(templates()["source"], "AWS::EC2::FlowLog").values()))["LogFormat"]
    fields = templates()["compute"]["Parameters"]["FlowLogFields"]["Default"]
    if log_format != fields:
        wrong.append("LogFormat of source.yaml and FlowLogFields of compute.yaml are not the same")
    return wrong


@check
def the_service_reads_the_format_of_the_sources(flowvigil):
    fields = templates()["compute"]["Parameters"]["FlowLogFields"]["Default"]
    values = {"version": "5", "srcaddr": "10.0.0.1", "dstaddr": "10.0.0.2", "pkt-srcaddr": "10.0.0.1", "pkt-dstaddr": "10.0.0.2",
              "srcport": "40000", "dstport": "443", "protocol": "6", "packets": "9", "bytes": "900", "start": "1700000000",
              "end": "1700000050", "action": "ACCEPT", "log-status": "OK", "tcp-flags": "2", "interface-id": "eni-1",
              "flow-direction": "ingress", "account-id": "123456789012", "type": "IPv4"}
    line = " ".join(values.get(name, "-") for name in re.findall(r"\$\{([a-z-]+)\}", fields))
    done = subprocess.run([flowvigil, "detect", "-", "--fields", fields, "--format", "json"], input=line + "\n",
                          capture_output=True, text=True)
    read = json.loads(done.stdout)["statistics"] if done.returncode == 0 else {}
    return [] if read.get("records") == 1 else [f"{read} {done.stderr}"]


@check
def metrics_of_alarms_and_dashboards_are_told_by_the_service(_):
    table = (ROOT / "src/telemetry.rs").read_text()
    known = set()
    for helper, name in re.findall(r'CloudWatch::(service|processing)\("(\w+)"', table):
        known.add(("AnomalyDetection/" + helper.capitalize(), name))
    wrong, found = [], 0
    for stem, one in templates().items():
        for name, alarm in resources(one, "AWS::CloudWatch::Alarm").items():
            if str(alarm["Namespace"]).startswith("AnomalyDetection/"):
                found += 1
                if (alarm["Namespace"], alarm["MetricName"]) not in known:
                    wrong.append(f"{stem}.{name}: {alarm['Namespace']} {alarm['MetricName']} is told by nobody")
                if [d["Name"] for d in alarm["Dimensions"]] != ["Service"]:
                    wrong.append(f"{stem}.{name}: the dimension is Service")
    dashboard = json.loads((DEPLOY / "dashboards/service.json").read_text())
    for metric in (m for w in dashboard["widgets"] for m in w["properties"].get("metrics", [])):
        if isinstance(metric[0], str) and metric[0].startswith("AnomalyDetection/"):
            found += 1
            if (metric[0], metric[1]) not in known:
                wrong.append(f"the dashboard shows {metric[0]} {metric[1]}, which nobody tells")
    body = next(iter(resources(templates()["observability"], "AWS::CloudWatch::Dashboard").values()))["DashboardBody"]["Fn::Sub"]
    if json.loads(body) != dashboard:
        wrong.append("the dashboard of observability.yaml is another than dashboards/service.json")
    return wrong if found > 20 else [*wrong, f"only {found} metrics were found"]


@check
def every_alarm_has_a_page_in_the_runbook(_):
    runbook = (DEPLOY / "runbook.md").read_text()
    pages = {heading.lower() for heading in re.findall(r"^## (.+)$", runbook, re.M)}
    wrong, found, named = [], 0, set()
    for stem, one in templates().items():
        for name, alarm in resources(one, "AWS::CloudWatch::Alarm").items():
            found += 1
            page = re.search(r"Runbook: (.+)$", alarm["AlarmDescription"])
            if not page or page[1].lower() not in pages:
                wrong.append(f"{stem}.{name}: the runbook has no page `{page and page[1]}`")
            else:
                named.add(page[1].lower())
            suffix = alarm["AlarmName"]["Fn::Sub"].replace("${Name}-", "")
            if f"`{suffix}`" not in runbook:
                wrong.append(f"{stem}.{name}: the runbook does not name the alarm `{suffix}`")
    return wrong if found > 20 else [*wrong, f"only {found} alarms were found"]


@check
def events_that_rules_wait_for_are_events_of_the_service(_):
    sources = "\n".join(text for _, text in code()) + (DEPLOY / "lambda/configure.py").read_text()
    wrong, found = [], 0
    for name, rule in resources(templates()["messaging"], "AWS::Events::Rule").items():
        for kind in rule["EventPattern"].get("detail-type", []):
            found += 1
            if f'"{kind}"' not in sources and kind != "Setting Change Requested":
                wrong.append(f"{name} waits for `{kind}`, which nobody announces")
    return wrong if found >= 4 else [*wrong, "rules were not found"]


@check
def tables_are_those_that_the_service_would_make(_):
    """The same keys, indexes and expiry as src/publish/dynamodb/schema.rs, read from its text."""
    schema = (ROOT / "src/publish/dynamodb/schema.rs").read_text()
    tables = resources(templates()["data"], "AWS::DynamoDB::Table")
    wrong = []
    for name, variable in (("Anomalies", "anomalies"), ("ModelConfiguration", "models")):
        text = re.search(rf"let {variable} = Table \{{(.*?)\n    \}};", schema, re.S)[1]
        wanted_keys = re.search(r'keys: \("(\w+)", "(\w+)"\)', text).groups()
        wanted_indexes = dict((i, (h, r)) for i, h, r in re.findall(r'\("(\w+)", "(\w+)", "(\w+)"\)', text))
        expires = re.search(r'expires: Some\("(\w+)"\)', text)
        properties = tables[name]
        both = lambda schema: tuple(one["AttributeName"] for one in schema)
        here = {i["IndexName"]: both(i["KeySchema"]) for i in properties.get("GlobalSecondaryIndexes", [])}
        if both(properties["KeySchema"]) != wanted_keys:
            wrong.append(f"{name} has the keys {both(properties['KeySchema'])}, and should have {wanted_keys}")
        if here != wanted_indexes:
            wrong.append(f"{name} has the indexes {here}, and should have {wanted_indexes}")
        ttl = properties.get("TimeToLiveSpecification", {}).get("AttributeName")
        if ttl != (expires and expires[1]):
            wrong.append(f"{name} expires by {ttl}")
        if not properties["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"]:
            wrong.append(f"{name} cannot be restored")
    return wrong


@check
def ports_are_those_of_the_image(_):
    port = int(re.search(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text(), re.M)[1])
    everything = templates()
    wrong = []
    task = next(iter(resources(everything["compute"], "AWS::ECS::TaskDefinition").values()))
    service = next(iter(resources(everything["compute"], "AWS::ECS::Service").values()))
    group = next(iter(resources(everything["edge"], "AWS::ElasticLoadBalancingV2::TargetGroup").values()))
    container = next(c for c in task["ContainerDefinitions"] if c["Name"] == "flowvigil")
    ingress = everything["network"]["Resources"]["TaskFromLoadBalancer"]["Properties"]
    for what, there in (("container", container["PortMappings"][0]["ContainerPort"]), ("target group", group["Port"]),
                        ("service", service["LoadBalancers"][0]["ContainerPort"]), ("security group", ingress["FromPort"])):
        if there != port:
            wrong.append(f"{what}: port {there}, and the image has {port}")
    health = re.search(r"HEALTHCHECK .*CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.M)[1]
    if container["HealthCheck"]["Command"] != ["CMD", *json.loads(health)]:
        wrong.append("the health checks of image and task are not the same")
    if f"{container['User']}" != re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)[-1]:
        wrong.append("the users of image and task are not the same")
    if not container["ReadonlyRootFilesystem"]:
        wrong.append("the root file system of the task can be written to")
    return wrong


@check
def settings_that_the_function_changes_are_those_that_apply_while_running(flowvigil):
    wanted = {key: parameter.removeprefix("/flowvigil/") for key, (applies, _, parameter) in keys(flowvigil).items()
              if applies == "running"}
    here = json.loads((DEPLOY / "lambda/settings.json").read_text())
    if here == wanted:
        return []
    missing, gone = sorted(wanted.keys() - here.keys()), sorted(here.keys() - wanted.keys())
    return [f"deploy/lambda/settings.json is of another state (missing: {missing}, gone: {gone}); tests/deploy.py settings FLOWVIGIL "
            "writes it"]


# === what the roles allow ===

# Operations of the SDKs whose permission has another name, or several.
PERMISSIONS = {
    "dynamodb": {"transact_write_items": ["UpdateItem"]},
    "s3": {"list_objects_v2": ["ListBucket"], "head_object": ["GetObject"]},
    "sqs": {"send_message_batch": ["SendMessage"], "delete_message_batch": ["DeleteMessage"]},
}
SERVICES = {"aws_sdk_dynamodb": "dynamodb", "aws_sdk_eventbridge": "events", "aws_sdk_kinesis": "kinesis", "aws_sdk_s3": "s3",
            "aws_sdk_sagemakerruntime": "sagemaker", "aws_sdk_sqs": "sqs"}
JSON_SERVICES = {"SSM": "ssm", "SECRETS": "secretsmanager", "CLOUD_MAP": "servicediscovery"}
# Calls that the task does not make, each with the reason.
ELSEWHERE = {
    "kinesis:PutRecords": "replay, which people run",
    "s3:PutObject on models": "train, which people and SageMaker run",
    "dynamodb:UpdateTable": "migrate --apply; the template makes the tables",
    "dynamodb:UpdateTimeToLive": "migrate --apply; the template makes the tables",
    "servicediscovery:RegisterInstance": "ECS registers its tasks by itself",
    "servicediscovery:DeregisterInstance": "ECS registers its tasks by itself",
    "kinesis:DescribeStreamSummary": "enhanced fan-out, which the template does not choose",
    "kinesis:DescribeStreamConsumer": "enhanced fan-out",
    "kinesis:RegisterStreamConsumer": "enhanced fan-out",
    "kinesis:SubscribeToShard": "enhanced fan-out",
}


def operations_of(service):
    """The operations of a service as the SDK for Rust spells them, from the service's model."""
    try:
        import botocore.session
        from botocore import xform_name
    except ImportError:
        raise Skipped("no botocore; tests/run deploy installs it") from None
    name = {"sagemaker": "sagemaker-runtime"}.get(service, service)
    return {xform_name(one) for one in botocore.session.get_session().get_service_model(name).operation_names}


def calls_of_the_code():
    """Every call of AWS in the sources: permission to the files that make it."""
    found, unread = {}, []
    for path, text in code():
        inside = str(path.relative_to(ROOT))
        services = [name for crate, name in SERVICES.items() if crate in text]
        # `Client` may come from the file above; a file below src/publish/dynamodb/ speaks to DynamoDB.
        if not services and "dynamodb" in inside:
            services = ["dynamodb"]
        known = {service: operations_of(service) for service in services}
        for match in re.finditer(r"(?<!self)\.send\(\)", text):
            # The nearest name before it that is an operation of a service whose SDK the file names.
            named = re.findall(r"\.\s*([a-z][a-z_0-9]+)\(\)", text[: match.start()])
            call = next(((s, o) for o in reversed(named) for s in services if o in known[s]), None)
            if call is None:
                unread.append(f"{inside}: the call before `{text[match.start() - 60:match.start()].split()[-1]}` was not understood")
                continue
            service, operation = call
            name = PERMISSIONS.get(service, {}).get(operation, ["".join(p.capitalize() for p in operation.split("_"))])
            for one in name:
                found.setdefault(f"{service}:{one}", set()).add(inside)
        for operation in re.findall(r'\.call(?:::<[^>]*>)?\("(\w+)"', text):
            named = [name for constant, name in JSON_SERVICES.items() if re.search(rf"\b{constant}\b", text)]
            found.setdefault(f"{named[0] if named else '?'}:{operation}", set()).add(inside)
    return found, unread


def statements():
    """Every statement of every role and resource policy: (template, role, statement)."""
    for stem, one in templates().items():
        for name, resource in one["Resources"].items():
            policies = [p["PolicyDocument"] for p in resource["Properties"].get("Policies", [])] if resource["Type"] == "AWS::IAM::Role" else []
            if resource["Type"] == "AWS::IAM::RolePolicy":
                policies.append(resource["Properties"]["PolicyDocument"])
            for policy in policies:
                for statement in policy["Statement"]:
                    yield stem, name, statement


@check
def the_task_may_do_what_the_code_calls_and_nothing_else(_):
    calls, wrong = calls_of_the_code()
    allowed = {action for stem, role, statement in statements() if stem == "compute" and role in ("TaskRole", "EndpointsPolicy")
               for action in listed(statement["Action"])}
    # Not calls of their own: DynamoDB, Kinesis, S3 and SQS use the key in the caller's name; the collector's are not the service's.
    allowed -= {"kms:Decrypt", "kms:GenerateDataKey", "xray:PutTraceSegments", "xray:PutTelemetryRecords"}
    wanted = set(calls) - set(ELSEWHERE)
    if len(wanted) < 20:
        wrong.append(f"only {len(wanted)} calls were found: {sorted(wanted)}")
    wrong += [f"{call} is called in {sorted(calls[call])}, and the task may not" for call in sorted(wanted - allowed)]
    wrong += [f"the task may {action}, which nothing calls" for action in sorted(allowed - wanted)]
    return wrong


# Actions that AWS lets nobody bind to a resource (service authorization reference), or not before it exists.
UNBOUND = {"ecr:GetAuthorizationToken", "xray:PutTraceSegments", "xray:PutTelemetryRecords"}


@check
def no_role_has_a_wildcard_where_a_resource_can_be_named(_):
    wrong, found = [], 0
    for stem, role, statement in statements():
        found += 1
        actions = listed(statement["Action"])
        wrong += [f"{stem}.{role}: the action {action} is a wildcard" for action in actions if "*" in action]
        if "*" in listed(statement["Resource"]) and not set(actions) <= UNBOUND:
            wrong.append(f"{stem}.{role}: {actions} on every resource")
    return wrong if found > 20 else [*wrong, f"only {found} statements were found"]


@check
def everything_that_is_kept_is_encrypted_and_closed(_):
    wrong = []
    for stem, one in templates().items():
        for name, bucket in resources(one, "AWS::S3::Bucket").items():
            if not all(bucket["PublicAccessBlockConfiguration"].values()) or "LifecycleConfiguration" not in bucket:
                wrong.append(f"{stem}.{name} is open, or keeps everything for ever")
            if "aws:kms" not in json.dumps(bucket["BucketEncryption"]):
                wrong.append(f"{stem}.{name} is not encrypted with the key")
        for name, queue in resources(one, "AWS::SQS::Queue").items():
            if "KmsMasterKeyId" not in queue:
                wrong.append(f"{stem}.{name} is not encrypted")
        for name, group in resources(one, "AWS::Logs::LogGroup").items():
            days = group.get("RetentionInDays", {}).get("Ref")
            if one["Parameters"].get(days, {}).get("AllowedValues") != [30, 90]:
                wrong.append(f"{stem}.{name} is kept neither 30 nor 90 days")
        for name, resource in one["Resources"].items():
            if resource["Type"] in ("AWS::DynamoDB::Table", "AWS::S3::Bucket", "AWS::KMS::Key", "AWS::Kinesis::Stream",
                                    "AWS::Logs::LogGroup", "AWS::Cognito::UserPool") and "DeletionPolicy" not in resource:
                wrong.append(f"{stem}.{name} does not say what becomes of it with its stack")
    return wrong


@check
def functions_run_on_a_runtime_that_is_not_deprecated(_):
    wrong = []
    for name, function in resources(templates()["messaging"], "AWS::Lambda::Function").items():
        module, handler = function["Handler"].split(".")
        if function["Runtime"] != "python3.14":
            wrong.append(f"{name} runs on {function['Runtime']}")
        if f"def {handler}(" not in (DEPLOY / f"lambda/{module}.py").read_text():
            wrong.append(f"{name}: there is no {module}.{handler}")
        source = (DEPLOY / f"lambda/{module}.py").read_text()
        given = set(function["Environment"]["Variables"])
        read = set(re.findall(r'os\.environ\["(\w+)"', source)) | set(re.findall(r'"(\w+_TOPIC_ARN)"', source))
        if given != read:
            wrong.append(f"{name} is given {sorted(given)}, and reads {sorted(read)}")
    return wrong


@check
def steps_of_the_training_pipeline_are_commands_of_the_binary(flowvigil):
    pipeline = next(iter(resources(templates()["ml"], "AWS::SageMaker::Pipeline").values()))
    body = pipeline["PipelineDefinition"]["PipelineDefinitionBody"]["Fn::Sub"][0]
    definition = json.loads(re.sub(r"\$\{FalseAlertRateMax\}", "0.003", body))
    wrong, names = [], []
    for step in definition["Steps"]:
        names.append(step["Name"])
        entry = step["Arguments"].get("AppSpecification", {}).get("ContainerEntrypoint")
        if entry:
            help_text = told(flowvigil, entry[1], "--help")
            wrong += [f"{step['Name']}: {entry[1]} has no {word}" for word in entry if word.startswith("--") and word not in help_text]
            places = {one["S3Input"]["LocalPath"] for one in step["Arguments"]["ProcessingInputs"]} | {
                one["S3Output"]["LocalPath"] for one in step["Arguments"]["ProcessingOutputConfig"]["Outputs"]}
            wrong += [f"{step['Name']}: nothing is mounted at {word}" for word in entry[2:]
                      if word.startswith("/") and not any(word.startswith(place) for place in places)]
    if names != ["Preprocess", "Train", "Evaluate", "HoldsItsRate"]:
        wrong.append(f"the steps are {names}")
    # What the condition reads is what `evaluate` writes.
    condition = definition["Steps"][-1]["Arguments"]["Conditions"][0]["LeftValue"]["Std:JsonGet"]["Path"]
    out = Path(os.environ.get("TMPDIR", "/tmp")) / f"evaluation-{os.getpid()}.json"
    subprocess.run([flowvigil, "evaluate", "--simulated", "1", "--hosts", "4", "--duration", "6h", "--out", str(out)],
                   check=True, capture_output=True)
    evaluation = json.loads(out.read_text())
    out.unlink()
    value = evaluation
    for part in re.findall(r"\w+", condition):
        value = value[int(part)] if part.isdigit() else value[part]
    at = evaluation["realised"]["all"][2]["target"]
    if not isinstance(value, float) or at != 0.001:
        wrong.append(f"{condition} is {value}, of the rate {at}")
    hyper = definition["Steps"][1]["Arguments"]["HyperParameters"]
    trainer = (ROOT / "src/cli/train.rs").read_text()
    wrong += [f"train has no hyperparameter {name}" for name in hyper if f'"{name}" =>' not in trainer]
    return wrong


# === against the stand-ins of AWS ===


@check
def functions(_):
    """The functions' own tests, against the local AWS."""
    if not os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://127.0.0.1:"):
        raise Skipped("no local AWS servers; tests/run starts them")
    done = subprocess.run([sys.executable, "-m", "unittest", "-v", "tests_of_functions"], cwd=ROOT / "deploy/lambda/tests",
                          env={**os.environ, "PYTHONPATH": str(ROOT / "deploy/lambda"), "PYTHONDONTWRITEBYTECODE": "1",
                               "AWS_DEFAULT_REGION": os.environ.get("AWS_REGION", "us-east-1")},
                          capture_output=True, text=True)
    return [] if done.returncode == 0 else done.stderr.splitlines()


def main():
    name, flowvigil = sys.argv[1], sys.argv[2]
    if name == "settings":
        wanted = {key: parameter.removeprefix("/flowvigil/") for key, (applies, _, parameter) in keys(flowvigil).items()
                  if applies == "running"}
        (DEPLOY / "lambda/settings.json").write_text(json.dumps(wanted, indent=0) + "\n")
        return 0
    chosen = CHECKS if name == "all" else {name: CHECKS[name]}
    failed = 0
    for one, function in chosen.items():
        try:
            wrong = function(flowvigil)
        except Skipped as reason:
            print(f"skipped: {reason}")
            continue
        failed |= bool(wrong)
        for line in wrong:
            print(f"{one}: {line}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
