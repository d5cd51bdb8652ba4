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
    default = {name: given.get(name) or str(p.get("Default", "x" * 20)) for name, p in compute["Parameters"].items()}
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
    known = {}
    for labels, helper, name in re.findall(r'= \w+ "\w+" \[([^\]]*)\] "[^"]*"\s*=> CloudWatch::(service|processing)\("(\w+)"', table):
        known[("AnomalyDetection/" + helper.capitalize(), name)] = re.findall(r"\w+", labels)
    wrong, found = [], 0
    for stem, one in templates().items():
        for name, alarm in resources(one, "AWS::CloudWatch::Alarm").items():
            if str(alarm["Namespace"]).startswith("AnomalyDetection/"):
                found += 1
                if (alarm["Namespace"], alarm["MetricName"]) not in known:
                    wrong.append(f"{stem}.{name}: {alarm['Namespace']} {alarm['MetricName']} is told by nobody")
                # Told once by the service alone and once with all of the metric's labels.
                elif [d["Name"] for d in alarm["Dimensions"]] not in (["Service"], ["Service", *known[alarm["Namespace"], alarm["MetricName"]]]):
                    wrong.append(f"{stem}.{name} has dimensions that nobody tells")
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


def changeable(flowvigil):
    return {key: parameter.removeprefix("/flowvigil/") for key, (applies, _, parameter) in keys(flowvigil).items() if applies == "running"}


def reference(flowvigil):
    """deploy/settings.md, from the defaults as the binary prints them."""
    known = keys(flowvigil)
    out = ["# Settings", "", "Every setting with its default and the reason for it. Made from `flowvigil config` and `flowvigil config keys` by `tests/deploy.py "
           "settings FLOWVIGIL`; a test holds it to them.", "",
           "In the environment a key is written in capitals with two underscores for each dot (`FLOWVIGIL__STATISTICAL__WINDOW=1m`), in Parameter "
           "Store with slashes (`/flowvigil/statistical/window`). *Running*: applies without a restart when it comes from Parameter Store.", ""]
    table, comments, chosen, rows = None, [], False, 0
    for line in told(flowvigil, "config").splitlines():
        optional = line.startswith("#:")
        line = re.sub(r"^#: ?", "", line).strip()
        if line.startswith("[["):
            table, comments = None, []
        elif header := re.fullmatch(r"\[([a-z0-9_.]+)\]", line):
            table, chosen = header[1].removeprefix("when."), optional
            about = " ".join(comments)
            out += ["", f"## {table}", ""] + ([about, ""] if about else [])
            if chosen:
                out += ["*Takes part once the settings name this table, or a key of it.*", ""]
            out += ["| key | default | applies | |", "| --- | --- | --- | --- |"]
            comments = []
        elif line.startswith("#"):
            comments.append(line.lstrip("# "))
        elif not line:
            comments = []
        elif table and (pair := re.fullmatch(r"([a-z0-9_]+) = (.*)", line)):
            key = f"{table}.{pair[1]}"
            value = pair[2] if len(pair[2]) <= 60 else pair[2][:57] + "…"
            cell = lambda text: text.replace("|", "\\|")
            if key in known:
                out.append(f"| `{pair[1]}` | `{cell(value)}` | {known[key][0]} | {cell(' '.join(comments))} |")
                rows += 1
            comments = []
    return "\n".join(out) + "\n", rows


@check
def settings_that_the_function_changes_are_those_that_apply_while_running(flowvigil):
    wanted, here = changeable(flowvigil), json.loads((DEPLOY / "lambda/settings.json").read_text())
    if here == wanted:
        return []
    missing, gone = sorted(wanted.keys() - here.keys()), sorted(here.keys() - wanted.keys())
    return [f"deploy/lambda/settings.json is of another state (missing: {missing}, gone: {gone}); run tests/deploy.py settings FLOWVIGIL"]


@check
def the_reference_of_settings_is_of_this_state(flowvigil):
    wanted, rows = reference(flowvigil)
    wrong = [] if rows > 200 else [f"only {rows} settings are in it"]
    if (DEPLOY / "settings.md").read_text() != wanted:
        wrong.append("deploy/settings.md is of another state; run tests/deploy.py settings FLOWVIGIL")
    return wrong


@check
def the_cost_model_and_its_page_say_the_same(_):
    table = subprocess.run([sys.executable, str(DEPLOY / "cost.py")], capture_output=True, text=True, check=True).stdout.strip()
    return [] if table in (DEPLOY / "cost.md").read_text() else ["deploy/cost.md holds another table than deploy/cost.py prints"]


@check
def links_of_the_pages_lead_somewhere(_):
    wrong, found = [], 0
    for page in sorted(DEPLOY.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            found += 1
            if not (page.parent / target).exists():
                wrong.append(f"{page.name} links to {target}, which is not there")
    return wrong if found > 10 else [*wrong, f"only {found} links were found"]


@check
def commands_of_the_pages_are_commands_of_the_programs(flowvigil):
    """Every `flowvigil …` and `deploy/operate …` of the pages is taken by the program's own help."""
    wrong, found = [], 0
    operate_help = {}
    for page in [*sorted(DEPLOY.rglob("*.md"))]:
        for command in re.findall(r"(?:^|`)((?:flowvigil|(?:deploy/)?operate) [^`\n]+)", page.read_text(), re.M):
            words = command.split("#")[0].split("|")[0].split()
            options = [word.split("=")[0] for word in words if word.startswith("--")]
            if words[0] == "flowvigil":
                part = words[1:3] if words[1] in ("config", "models") and len(words) > 2 and words[2].isalpha() else words[1:2]
                arguments, program_name = [*part, "--help"], flowvigil
            else:
                verb = next((word for word in words[2:] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")), None)
                verb = verb or (words[1] if re.fullmatch(r"[a-z-]+", words[1]) else None)
                if verb is None:
                    continue
                arguments, program_name = ["x", verb, "--help"], str(DEPLOY / "operate")
            key = (program_name, *arguments)
            if key not in operate_help:
                command_line = [program_name, *arguments] if program_name == flowvigil else [sys.executable, program_name, *arguments]
                done = subprocess.run(command_line, capture_output=True, text=True)
                operate_help[key] = done.stdout if done.returncode == 0 else None
            found += 1
            if operate_help[key] is None:
                wrong.append(f"{page.name}: `{command}` is no command")
            else:
                wrong += [f"{page.name}: `{command}` has no option {option}" for option in options if option not in operate_help[key]]
    return wrong if found > 15 else [*wrong, f"only {found} commands were found"]


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
UNBOUND = {"ecr:GetAuthorizationToken", "ec2:DescribeManagedPrefixLists", "xray:PutTraceSegments", "xray:PutTelemetryRecords"}


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


def stand_in():
    """moto as tests/run has started it, in a region of its own, so that other tests see nothing of this one."""
    url = os.environ.get("FLOWVIGIL_TEST_MOTO", "")
    if not url.startswith("http://127.0.0.1:"):
        raise Skipped("no local AWS servers; tests/run deploy starts them")
    for name in [name for name in os.environ if name.startswith("AWS_ENDPOINT_URL_")]:
        del os.environ[name]
    os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID=ACCOUNT, AWS_SECRET_ACCESS_KEY="test", AWS_EC2_METADATA_DISABLED="true")
    return url


ACCOUNT = "123456789012"


def in_region(region):
    os.environ.update(AWS_REGION=region, AWS_DEFAULT_REGION=region)
    return region


@check
def functions(_):
    """The functions' own tests, tests/deploy_functions.py."""
    stand_in()
    in_region("eu-west-1")
    done = subprocess.run([sys.executable, "-m", "unittest", "deploy_functions"], cwd=ROOT / "tests",
                          env={**os.environ, "PYTHONPATH": str(DEPLOY / "lambda")}, capture_output=True, text=True)
    return [] if done.returncode == 0 else done.stderr.splitlines()


def operate():
    """deploy/operate as a module, for an account that exists only here.

    What moto cannot do is done beside it, and nothing else: outputs of stacks that a change set has made, termination protection, expiry
    of rows, the secrets, Cloud Map, and what a load balancer's parts are called.
    """
    import importlib.machinery
    import importlib.util

    loader = importlib.machinery.SourceFileLoader("operate", str(DEPLOY / "operate"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("operate", loader))
    loader.exec_module(module)
    module.WAIT_SECONDS = 0.1

    class Local(module.Operator):
        cache_url = "redis://127.0.0.1:1"

        def execute(self, stack, name, template, parameters):
            self.cloudformation.delete_change_set(StackName=self.stack_name(stack), ChangeSetName=name)
            there = self.described(stack)
            if not there:
                self.cloudformation.delete_stack(StackName=self.stack_name(stack))
            make = self.cloudformation.update_stack if there else self.cloudformation.create_stack
            make(StackName=self.stack_name(stack), TemplateBody=template.replace("!GetAtt Namespace.Arn", "!Ref Name"),
                 Parameters=parameters, Tags=self.tags(), Capabilities=["CAPABILITY_IAM"])
            if stack == "data":
                made = self.cloudformation.list_stack_resources(StackName=self.stack_name(stack))["StackResourceSummaries"]
                made = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in made}
                for name, table in resources(templates()["data"], "AWS::DynamoDB::Table").items():
                    if expiry := table.get("TimeToLiveSpecification"):
                        self.client("dynamodb").update_time_to_live(TableName=made[name], TimeToLiveSpecification=expiry)

        def protect(self, stack, protected):
            pass

        def secret(self, name, value):
            manager = self.client("secretsmanager")
            try:
                return manager.create_secret(Name=name, SecretString=value)["ARN"]
            except manager.exceptions.ResourceExistsException:
                return manager.describe_secret(SecretId=name)["ARN"]

        def outputs(self, stack):
            found = super().outputs(stack)
            if stack == "data" and found:
                found["CacheUrlSecretArn"] = self.secret(f"{self.name}-cache-url", self.cache_url)
                found["ApiTokenSecretArn"] = self.secret(f"{self.name}-token", json.dumps({"token": TOKEN}))
                found["CacheId"] = "valkey"
            if stack == "edge" and self.described(stack):
                made = self.cloudformation.list_stack_resources(StackName=self.stack_name(stack))["StackResourceSummaries"]
                made = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in made}
                found.update(
                    TargetGroupArn=made["TargetGroup"], TargetGroupFullName=made["TargetGroup"].split(":")[-1],
                    LoadBalancerFullName=made["LoadBalancer"].split(":loadbalancer/")[-1], ApiId=made["Api"], ApiName=self.name)
            return found

    return module, Local


TOKEN = "a token of the tests, long enough"


def environment(name="small"):
    return json.loads((DEPLOY / f"environments/{name}.json").read_text())


@check
def nothing_is_done_in_another_account_or_without_being_told_to(_):
    stand_in()
    in_region("eu-west-2")
    import boto3

    module, local = operate()
    given = {**environment(), "region": "eu-west-2"}
    wrong = []
    try:
        local({**given, "account": "999999999999"}, True)
        wrong.append("another account was not refused")
    except module.Refused:
        pass
    with quiet():
        local(given, False).deploy()
    left = boto3.client("cloudformation").describe_stacks()["Stacks"]
    wrong += [f"a dry run has left the stack {one['StackName']}" for one in left]
    return wrong


def quiet():
    import contextlib
    import io

    return contextlib.redirect_stdout(io.StringIO())


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def soon(so, seconds=60):
    """The first answer of `so` that is something, waiting for it as long as a busy machine may need."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := so():
            return answer
        time.sleep(0.2)
    return None


@check
def the_service_runs_on_what_the_templates_make(flowvigil):
    """From an empty account to a page: all stacks, the service with the task's own environment, a scan, a notification, a setting."""
    import shutil
    import tempfile

    url = stand_in()
    region = in_region("eu-central-1")
    redis = shutil.which("redis-server")
    if not redis:
        raise Skipped("no redis-server; tests/run deploy installs it")
    import boto3

    module, local = operate()
    given = environment()
    certificate = boto3.client("acm").request_certificate(DomainName="flowvigil.example.com")["CertificateArn"]
    given["parameters"]["edge"]["CertificateArn"] = certificate
    given["parameters"]["network"] = {"Nat": "each", "InterfaceEndpoints": "true"}
    assert given["account"] == ACCOUNT and given["region"] == region
    folder, processes, wrong = Path(tempfile.mkdtemp(prefix="deploy-")), [], []
    try:
        # Valkey's stand-in knows one user, with the rights that the template gives it.
        rights = next(iter(resources(templates()["data"], "AWS::ElastiCache::User").values()))["AccessString"]
        port = free_port()
        acl = folder / "users.acl"
        acl.write_text(f"user default off\nuser flowvigil {rights} >secret\n")
        processes.append(subprocess.Popen([redis, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--aclfile", str(acl),
                                           "--dir", str(folder)], stdout=subprocess.DEVNULL))
        local.cache_url = f"redis://flowvigil:secret@127.0.0.1:{port}"
        with quiet():
            operator = local(given, True)
            operator.deploy()
        with quiet() as again:
            operator.deploy(["network", "data", "messaging"])
        wrong += [f"done again: {line}" for line in again.getvalue().splitlines() if not line.endswith("is as it should be")]
        data, messaging = operator.outputs("data"), operator.outputs("messaging")
        sqs, sns, kinesis = boto3.client("sqs"), boto3.client("sns"), boto3.client("kinesis")

        def queue_that_hears(topic):
            queue = sqs.create_queue(QueueName=topic.split(":")[-1] + "-heard")["QueueUrl"]
            arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
            sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
            return queue

        pages = queue_that_hears(messaging["PagesTopicArn"])
        task = boto3.client("ecs").describe_task_definition(taskDefinition="flowvigil")["taskDefinition"]
        container = next(c for c in task["containerDefinitions"] if c["name"] == "flowvigil")
        listen = free_port()
        service_environment = {
            **{name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "PATH"},
            **{one["name"]: one["value"] for one in container["environment"] if one},
            # What differs here: buckets have no host names, the port is free, nobody collects traces, and it goes quicker.
            "FLOWVIGIL__INGEST__SNAPSHOT__S3__PATH_STYLE": "true",
            "FLOWVIGIL__API__LISTEN": f"127.0.0.1:{listen}",
            "FLOWVIGIL__TELEMETRY__OTLP__SAMPLE": "0",
            "FLOWVIGIL__PIPELINE__CLOCK_GAP_MAX": "0s",
            "FLOWVIGIL__TELEMETRY__EMF__INTERVAL": "1s",
            "FLOWVIGIL__SETTINGS__SSM__INTERVAL": "1s",
        }
        plan = subprocess.run([flowvigil, "migrate"], env=service_environment, capture_output=True, text=True)
        if plan.returncode != 0 or "create" in plan.stdout or "add index" in plan.stdout or "expire" in plan.stdout:
            wrong.append(f"the tables are not those of the service: {plan.stdout}{plan.stderr}")
        told, log = open(folder / "told", "w"), open(folder / "log", "w")
        # An empty folder that it may not write to: on AWS it keeps nothing in files.
        empty = folder / "empty"
        empty.mkdir(mode=0o555)
        service = subprocess.Popen([flowvigil, *container["command"]], cwd=empty, env=service_environment, stdout=told, stderr=log)
        processes.append(service)

        import urllib.error
        import urllib.request

        def get(path, token=TOKEN):
            request = urllib.request.Request(f"http://127.0.0.1:{listen}{path}", headers={"authorization": f"Bearer {token}"})
            try:
                return json.loads(urllib.request.urlopen(request, timeout=10).read())
            except (OSError, ValueError):
                return None

        health = [flowvigil, *container["healthCheck"]["command"][2:]]
        if not soon(lambda: subprocess.run(health, env=service_environment, capture_output=True).returncode == 0):
            return [*wrong, "the service did not answer", *(folder / "log").read_text().splitlines()[-20:]]
        for record in a_scan(service_environment["FLOWVIGIL__INGEST__FIELDS"]):
            kinesis.put_record(StreamName=data["StreamName"], Data=record, PartitionKey="eni-1")

        queue = sqs.get_queue_url(QueueName=messaging["NotificationQueueName"])["QueueUrl"]
        got = soon(lambda: sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"), 120)
        if not got:
            return [*wrong, f"no anomaly came to the queue: {get('/v1/status')}", *(folder / "log").read_text().splitlines()[-20:]]
        # The functions as the stack has configured them.
        sys.path.insert(0, str(DEPLOY / "lambda"))
        import configure
        import notify

        for name in ("NotifyFunctionName", "ConfigureFunctionName"):
            configured = boto3.client("lambda").get_function_configuration(FunctionName=messaging[name])
            os.environ.update(configured["Environment"]["Variables"])
        with quiet():
            batch = {"Records": [{"messageId": one["MessageId"], "body": one["Body"]} for one in [got[0], got[0]]]}
            failed = notify.handler(batch, None)["batchItemFailures"]
        heard = [json.loads(one["Body"]) for one in sqs.receive_message(QueueUrl=pages, MaxNumberOfMessages=10).get("Messages", [])]
        if failed or len(heard) != 1 or "10.0.1.1" not in heard[0]["Message"]:
            wrong.append(f"one page was to be sent: {failed} {heard}")
        found = get("/v1/anomalies")
        if not found or found["anomalies"][0]["actor"] != "10.0.1.1":
            wrong.append(f"the API tells {found}")
        if get("/v1/anomalies", "another token, as long as the first") is not None:
            wrong.append("another token is let in")

        # Valkey's user may do all that correlation sends; without, something lesser would stand in and say so.
        if (ready := get("/health/ready")) is None or ready["degraded"]:
            wrong.append(f"it is degraded: {ready}")

        # A setting is changed while it runs; one that makes no sense is refused by the service, which says so and goes on.
        def setting(value):
            configure.handler({"key": "statistical.port_scan.ports", "value": value, "by": "ada", "reason": "test"}, None)

        def degraded():
            answer = get("/health/ready")
            return [] if answer is None else [one for one in answer["degraded"] if "port_scan" in json.dumps(one) or "settings" in json.dumps(one)]

        setting("no number")
        if not soon(degraded):
            wrong.append(f"a bad setting is not told: {get('/health/ready')}")
        setting("40")
        if not soon(lambda: get("/health/ready") is not None and not degraded()):
            wrong.append(f"a good setting does not heal: {get('/health/ready')}")

        names = set()

        def metrics():
            for line in (folder / "told").read_text().splitlines():
                if '"_aws"' in line:
                    for one in json.loads(line)["_aws"]["CloudWatchMetrics"]:
                        if ["Service"] in one["Dimensions"]:
                            names.update((one["Namespace"], metric["Name"]) for metric in one["Metrics"])
            return ("AnomalyDetection/Processing", "QueueDepth") in names and ("AnomalyDetection/Service", "ProcessingLatency") in names

        if not soon(metrics):
            wrong.append(f"the metrics that scale it are not told: {sorted(names)}")
        service.terminate()
        try:
            if service.wait(timeout=container["stopTimeout"]) != 0:
                wrong.append(f"it ended with {service.returncode}")
        except subprocess.TimeoutExpired:
            wrong.append("it does not end within the task's StopTimeout")
        if wrong:
            wrong += (folder / "log").read_text().splitlines()[-10:]
        kept = boto3.client("s3").list_objects_v2(Bucket=data["SnapshotsBucketName"], Prefix="snapshots/").get("KeyCount", 0)
        if not kept:
            wrong.append("no snapshot lies in the bucket")
        with quiet():
            operator.back_up()
        backups = boto3.client("dynamodb").list_backups()["BackupSummaries"]
        if {one["TableName"] for one in backups} != {data["TableName"], data["ModelsTableName"]}:
            wrong.append(f"the tables are not backed up: {backups}")
        return wrong
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def a_scan(fields):
    """Records as CloudWatch Logs puts them on a stream: a host of ours tries sixty ports, then a quarter of an hour of quiet."""
    import gzip

    begin = 1_700_000_000

    def line(source, port, end, action):
        values = {"version": "5", "account-id": ACCOUNT, "interface-id": "eni-1", "srcaddr": source, "dstaddr": "10.0.0.9",
                  "pkt-srcaddr": source, "pkt-dstaddr": "10.0.0.9", "srcport": "40000", "dstport": str(port), "protocol": "6",
                  "packets": "1", "bytes": "40", "start": str(end - 30), "end": str(end), "action": action, "log-status": "OK",
                  "tcp-flags": "2", "type": "IPv4", "vpc-id": "vpc-1", "flow-direction": "ingress"}
        return " ".join(values.get(name, "-") for name in re.findall(r"\$\{([a-z-]+)\}", fields))

    minutes = [[line("10.0.1.1", 1000 + n, begin + 60, "REJECT") for n in range(60)]]
    minutes += [[line("10.0.2.2", 443, begin + 60 * n, "ACCEPT")] for n in range(2, 16)]
    for lines in minutes:
        events = [{"id": str(n), "timestamp": begin * 1000, "message": text} for n, text in enumerate(lines)]
        yield gzip.compress(json.dumps({
            "messageType": "DATA_MESSAGE", "owner": ACCOUNT, "logGroup": "/flowvigil/flow-logs", "logStream": "eni-1-all",
            "subscriptionFilters": ["to-the-stream"], "logEvents": events}).encode())


def main():
    name, flowvigil = sys.argv[1], os.path.abspath(sys.argv[2])
    if name == "settings":
        (DEPLOY / "lambda/settings.json").write_text(json.dumps(changeable(flowvigil), indent=0) + "\n")
        (DEPLOY / "settings.md").write_text(reference(flowvigil)[0])
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
