"""Hold the JSON schema of a rollout's file against jsonschema, by the examples of the documentation.

    python schema.py MUSTER

Needs jsonschema and PyYAML of tests/fixtures/requirements-peers.txt. Every example that is a rollout must conform, and none may with a word
misspelt. Prints a line for each; exits with 1 if one comes out otherwise.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import yaml


def misspelt(value):
    """The same with one key misspelt, once for each key of a table that the form fixes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {(key + "x" if name == key else name): each for name, each in value.items()}
            # What arguments are called is the template's to say.
            for changed in misspelt(inner) if key != "args" else ():
                yield {**value, key: changed}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], changed, *value[at + 1 :]] for changed in misspelt(inner))


def examples():
    for page in sorted(Path("docs").glob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S):
            read = yaml.safe_load(block)
            if isinstance(read, dict) and "bundle" in read:
                yield page, read


def main(muster):
    schema = json.loads(subprocess.run([muster, "rollout", "schema"], capture_output=True, check=True).stdout)
    jsonschema.Draft7Validator.check_schema(schema)
    conforms = jsonschema.Draft7Validator(schema).is_valid
    seen, wrong = 0, 0
    for page, rollout in examples():
        changed = list(misspelt(rollout))
        good = conforms(rollout) and not any(map(conforms, changed))
        print(f"{'same' if good else 'OTHERWISE':9} {page}: {', '.join(rollout)}; {len(changed)} misspelt")
        seen, wrong = seen + 1, wrong + (not good)
    print(f"{seen - wrong} of {seen} examples as expected")
    return 1 if wrong or not seen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
