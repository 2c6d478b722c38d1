"""Record which options vLLM's server takes, from its wheel, which need not be installed.

    pip download vllm --no-deps && python tools/vllm_flags.py vllm-*.whl

It writes tests/serve/vllm_flags.json, which the tests hold `luthier serve --engine vllm` against.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

OUT = Path(__file__).parents[1] / "tests/serve/vllm_flags.json"
ENGINE = "vllm/engine/arg_utils.py"
SERVER = "vllm/entrypoints/common/cli_args.py"
CHOICES = {  # of an option: where its values are listed, and under which name
    "--max-lora-rank": ("vllm/config/lora.py", "MaxLoRARanks"),
    "--dtype": ("vllm/config/model.py", "ModelDType"),
}


def added(tree: ast.Module) -> set[str]:
    """What ``add_argument`` is called with."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "add_argument"
    ]
    values = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
    return {value for value in values if isinstance(value, str) and value.startswith("--")}


def fields(tree: ast.Module) -> set[str]:
    """The fields of the classes whose fields become options."""
    return {
        "--" + statement.target.id.replace("_", "-")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in ("BaseFrontendArgs", "FrontendArgs")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def literal(tree: ast.Module, name: str) -> list[str]:
    """The values of ``name = Literal[...]``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            assert isinstance(node.value, ast.Subscript)
            return [str(value) for value in ast.literal_eval(node.value.slice)]
    raise SystemExit(f"{name} is not where it was: look at the wheel, and change CHOICES")


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:

        def parsed(name: str) -> ast.Module:
            return ast.parse(archive.read(name))

        options = added(parsed(ENGINE)) | added(parsed(SERVER)) | fields(parsed(SERVER))
        choices = {flag: literal(parsed(file), name) for flag, (file, name) in CHOICES.items()}
    found = {"version": wheel.name.split("-")[1], "options": sorted(options), "choices": choices}
    OUT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"{OUT}: {len(options)} options of vLLM {found['version']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
