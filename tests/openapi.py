#!/usr/bin/env python3
"""Holds the API's description to OpenAPI 3.1, and answers to the description.

Reads {"document": …, "answers": [{"path", "method", "status", "media_type", "body"}, …]} from standard input, and prints what
is wrong, a line each. `path` is a path of the document, with its parameters in braces.
"""

import json
import sys

from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry
from referencing.jsonschema import DRAFT202012


def wrong_in(document):
    for error in OpenAPIV31SpecValidator(document).iter_errors():
        yield "/".join(map(str, getattr(error, "path", []))) + f": {getattr(error, 'message', error)}"


def wrong_answers(document, answers):
    registry = Registry().with_resource("urn:api", DRAFT202012.create_resource(document))
    for answer in answers:
        place = f"{answer['method']} {answer['path']} {answer['status']}"
        operation = document["paths"].get(answer["path"], {}).get(answer["method"])
        response = (operation or {}).get("responses", {}).get(str(answer["status"]))
        content = (response or {}).get("content", {}).get(answer["media_type"])
        if content is None:
            yield f"{place}: {answer['media_type']} is not described"
            continue
        # Names of a schema's own are resolved within the document.
        schema = json.loads(json.dumps(content["schema"]).replace('"#/', '"urn:api#/'))
        validator = OAS31Validator(schema, registry=registry, format_checker=oas31_format_checker)
        for error in validator.iter_errors(answer["body"]):
            yield f"{place}: {'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"


def main():
    given = json.load(sys.stdin)
    document, answers = given["document"], given["answers"]
    wrong = list(wrong_in(document)) + list(wrong_answers(document, answers))
    print("\n".join(wrong))


if __name__ == "__main__":
    main()
