"""Takes a rendered chart apart, for tools that know only some of it. Needs PyYAML.

    chart_objects.py core RENDERED     objects whose schema Kubernetes itself has, as YAML
    chart_objects.py rules RENDERED    the groups of the PrometheusRules, as Prometheus reads them
"""

import sys

import yaml

GROUPS_OF_OTHERS = ("gateway.networking.k8s.io/", "keda.sh/", "monitoring.coreos.com/")


def objects(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def main():
    what, *paths = sys.argv[1:]
    found = objects(paths[0])
    if what == "core":
        core = [one for one in found if not one["apiVersion"].startswith(GROUPS_OF_OTHERS)]
        print(yaml.safe_dump_all(core), end="")
    elif what == "rules":
        rules = [one for one in found if one["kind"] == "PrometheusRule"]
        groups = [group for rule in rules for group in rule["spec"]["groups"]]
        print(yaml.safe_dump({"groups": groups}), end="")
    else:
        sys.exit(f"no command {what}")


if __name__ == "__main__":
    main()
