"""Lists dependencies that no source file of their package names. `.ci/run` fails on any.

A dependency that is used only by its features or by generated code is in KEPT, with the reason.
"""

import pathlib
import re
import subprocess
import sys
import tomllib

KEPT = {
    "prost-types": "the generated code of well-known types names it",
    "tonic-prost": "the generated code names it",
}


def read(path: pathlib.Path) -> str:
    """Returns the text of a source file, with the files that it includes by their path."""
    text = path.read_text()
    for included in re.findall(r'#\[path = "([^"]+)"\]', text):
        text += read(path.parent / included)
    return text


def library_of(folder: pathlib.Path, name: str, dependency: object) -> str:
    """Returns the name under which a dependency is imported."""
    if isinstance(dependency, dict) and "path" in dependency:
        manifest = tomllib.loads((folder / dependency["path"] / "Cargo.toml").read_text())
        name = manifest.get("lib", {}).get("name", name)
    return name.replace("-", "_")


def main() -> int:
    root = pathlib.Path(__file__).resolve().parents[2]
    listed = subprocess.run(
        ["git", "ls-files", "*.rs", "*Cargo.toml"], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split()
    manifests = [path for path in listed if path.endswith("Cargo.toml")]
    folders = {str(pathlib.PurePath(path).parent) for path in manifests}
    unused = []
    for manifest in manifests:
        folder = str(pathlib.PurePath(manifest).parent)
        package = tomllib.loads((root / manifest).read_text())
        nested = [other for other in folders if other != folder and (folder == "." or other.startswith(folder + "/"))]
        sources = [
            path
            for path in listed
            if path.endswith(".rs")
            and (folder == "." or path.startswith(folder + "/"))
            and not any(path.startswith(other + "/") for other in nested)
        ]
        sources += [f"{folder}/{example['path']}" for example in package.get("example", []) if "path" in example]
        text = "\n".join(read(root / path) for path in sources)
        for table in ("dependencies", "dev-dependencies", "build-dependencies"):
            for name in package.get(table, {}):
                word = library_of(root / folder, name, package[table][name])
                if name not in KEPT and not re.search(rf"\b{word}\b", text):
                    unused.append(f"{manifest}: {table}: {name}")
    for line in unused:
        print(f"{line} is not named by any source file; remove it")
    return 1 if unused else 0


sys.exit(main())
