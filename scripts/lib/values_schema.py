"""Lays Kubernetes' own types into helm/values.schema.json, so that a typo inside them fails too.

    values_schema.py CHART      writes CHART/values.schema.json anew; needs the package kubernetes-validate

What the schema refers to as `#/definitions/io.k8s.…` is replaced, with all that these types refer to. Descriptions
are left out: they are long, and the release's Secret holds the schema. The rest of the file is written by hand, save
that the names of the alerts are read from `rules/token-broker.yaml`.
"""

import importlib.util
import json
import pathlib
import re
import sys

# A field that a later version added is refused until this is raised.
KUBERNETES = "1.37.0"
PREFIX = "#/definitions/"
KEPT = {"type", "properties", "required", "items", "enum", "oneOf", "additionalProperties", "$ref"}


def references(node):
    if isinstance(node, dict):
        target = node.get("$ref")
        if isinstance(target, str):
            yield target.rsplit("/", 1)[-1]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def plain(schema):
    """Without descriptions and extensions, and draft 7's place of definitions."""
    kept = {}
    for key, value in schema.items():
        if key not in KEPT:
            continue
        if key == "properties":
            value = {name: plain(inner) for name, inner in value.items()}
        elif key == "oneOf":
            # A value that may be null would be of both kinds.
            return {"type": sorted({kind for one in value for kind in as_list(one["type"])})}
        elif key == "$ref":
            value = PREFIX + value.rsplit("/", 1)[-1]
        elif isinstance(value, dict):
            value = plain(value)
        kept[key] = value
    return kept


def as_list(value):
    return value if isinstance(value, list) else [value]


def main():
    chart = pathlib.Path(sys.argv[1])
    package = pathlib.Path(importlib.util.find_spec("kubernetes_validate").origin).parent
    folder = package / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict"
    types = json.loads((folder / "_definitions.json").read_text())["$defs"]
    path = chart / "values.schema.json"
    schema = json.loads(path.read_text())
    schema.pop("definitions", None)
    wanted, definitions = sorted(set(references(schema))), {}
    while wanted:
        name = wanted.pop()
        if name not in definitions:
            definitions[name] = plain(types[name])
            wanted.extend(references(definitions[name]))
    schema["definitions"] = dict(sorted(definitions.items()))
    rules = (chart / "rules" / "token-broker.yaml").read_text()
    alerts = re.findall(r"^ *- alert: (\w+)$", rules, re.MULTILINE)
    schema["properties"]["prometheusRule"]["properties"]["disabled"]["items"]["enum"] = alerts
    path.write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main()
