#!/usr/bin/env python3
"""Holds exported findings to what takes them.

Reads {"ocsf": [finding, …], "asff": [finding, …]} from standard input, and prints what is wrong, a line each: against models of OCSF's
classes, and against the shapes with which the AWS SDK sends findings to Security Hub.
"""

import json
import sys

import botocore.session
from botocore.validate import ParamValidator
from py_ocsf_models.events.findings.detection_finding import DetectionFinding
from pydantic import ValidationError


def main():
    given = json.load(sys.stdin)
    for finding in given["ocsf"]:
        try:
            DetectionFinding.model_validate(finding)
        except ValidationError as error:
            print("OCSF:", *str(error).splitlines())
        if finding["type_uid"] != finding["class_uid"] * 100 + finding["activity_id"]:
            print("OCSF: type_uid is not of class_uid and activity_id")
    request = botocore.session.get_session().get_service_model("securityhub").operation_model("BatchImportFindings")
    report = ParamValidator().validate({"Findings": given["asff"]}, request.input_shape)
    if report.has_errors():
        print("ASFF:", *report.generate_report().splitlines())
    # What the SDK does not know of: a field that the service would drop, and lengths that it would refuse.
    known = request.input_shape.members["Findings"].member.members
    for finding in given["asff"]:
        for name in finding.keys() - known.keys():
            print(f"ASFF: nobody knows {name}")
        for field in finding["Network"].keys() - known["Network"].members.keys() if "Network" in finding else ():
            print(f"ASFF: nobody knows Network.{field}")
        for name, most in (("Title", 256), ("Description", 1024)):
            if len(finding.get(name, "")) > most:
                print(f"ASFF: {name} has more than {most} characters")
        if len(finding["ProductFields"]) > 50 or not 1 <= len(finding["Resources"]) <= 32:
            print("ASFF: too many fields or resources")


if __name__ == "__main__":
    main()
