"""The command `lethe`. What a command needs is imported by that command, so that `lethe --help` is there at once."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from api.commands.audit import app as of_audit
from api.commands.datasets import app as of_datasets
from api.commands.jobs import app as of_jobs
from api.commands.keys import app as of_keys
from api.commands.keys import principals as of_principals
from api.commands.models import app as of_models
from api.commands.prove import app as of_proofs
from api.commands.report import app as of_reports
from core.errors import EXIT_INTERNAL, LetheError

app = typer.Typer(
    name="lethe",
    help="Make a language model forget on request, measure it, and hand back evidence anyone can check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_AT_ITS_DATABASE = "At a service's database (LETHE_DATABASE_URL)"
app.add_typer(of_keys, name="keys", rich_help_panel=_AT_ITS_DATABASE)
app.add_typer(of_principals, name="principals", rich_help_panel=_AT_ITS_DATABASE)
app.add_typer(of_audit, name="audit", rich_help_panel=_AT_ITS_DATABASE)
_AT_A_SERVICE = "At a service (LETHE_URL, LETHE_API_KEY)"
for group in (of_jobs, of_reports):
    for command in group.registered_commands:
        command.rich_help_panel = _AT_A_SERVICE
    app.registered_commands += group.registered_commands
app.registered_commands += of_proofs.registered_commands
app.add_typer(of_datasets, name="datasets", rich_help_panel=_AT_A_SERVICE)
app.add_typer(of_models, name="models", rich_help_panel=_AT_A_SERVICE)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document instead of lines")]
_ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the command line; ends the process. An error of Lethe's is one line on stderr and its exit code."""
    try:
        app()
    except LetheError as error:
        print(f"lethe: {error.message}", file=sys.stderr)
        # The service's errors name no exit code: at a command line they are all about what was given.
        sys.exit(2 if error.exit_code == EXIT_INTERNAL else error.exit_code)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="a JSON file as for POST /jobs, with paths instead of ids")],
    out: Annotated[Path, typer.Option(help="folder for checkpoints, model and report")],
) -> NoReturn:
    """Carry out a spec here, without the service. Ctrl-C leaves a checkpoint; the same command resumes it."""
    _become("core.run", str(spec), "--out", str(out))


@app.command()
def finetune(
    spec: Annotated[Path, typer.Argument(help="a JSON file: model, data.train, optimizer, training")],
    out: Annotated[Path, typer.Option(help="folder for checkpoints, model and finetune.json")],
) -> NoReturn:
    """Train a model on a set, as what is to forget must first have learnt. The same command resumes it."""
    _become("core.finetune", str(spec), "--out", str(out))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def evaluate(context: typer.Context) -> NoReturn:
    """Measure any model folder: metrics, attacks, gates, verdict. `lethe evaluate --help` lists the options."""
    _become("core.evaluate", *context.args)


@app.command()
def series(
    spec: Annotated[Path, typer.Argument(help="a JSON file as for run, with `series` and a list of sets to forget")],
    out: Annotated[Path, typer.Option(help="folder for the runs and series.json")],
) -> NoReturn:
    """Carry out a request for growing forget sets, or for one after another. The same command resumes it."""
    _become("core.series", str(spec), "--out", str(out))


def _become(engine: str, *arguments: str) -> NoReturn:
    # This process becomes the engine, so that signals and exit codes are the engine's own. -P: a folder named `core`
    # where the user happens to be must not be taken for ours.
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", engine, *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


Home = Annotated[Path, typer.Option(help="folder for the service's database, artifacts, keys and logs")]


@app.command()
def up(
    home: Home = Path(".lethe"),
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="port to listen on; 0: a free one")] = 8000,
) -> None:
    """Run the whole service here until Ctrl-C: SQLite, a private Redis, one worker, the API with its docs at /docs."""
    from api.embedded import interruptible, service

    with interruptible(), service(home, host=host, port=port) as running:
        running.wait_ready()
        print(f"Lethe is at {running.url}, its documentation at {running.url}/docs")
        if running.new_key:
            print(f"API key (shown this once): {running.new_key}")
        else:
            print("Its API key was shown at the first start; docs/service.md says how to make another.")
        print(f"All its files are under {running.home}; models are registered from {running.home / 'models'}.")
        print(f"Reports are signed; whoever verifies them needs {running.public_key}. Ctrl-C stops the service.")
        sys.stdout.flush()
        running.tend_on()


@app.command()
def demo(
    home: Home = Path(".lethe") / "demo",
    as_json: AsJson = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave the service running until Ctrl-C")] = False,
) -> None:
    """Make a small model forget two of twelve invented people, through the service. Exit 0: the verdict is `passed`."""
    from rich.console import Console

    from api import demo as demonstration
    from api.demo_screen import Lines, Screen, print_result
    from api.embedded import interruptible, service

    # With --json, stdout holds the document and nothing else; Ctrl-C and SIGTERM end every part that was started.
    console = Console(stderr=as_json)
    with interruptible(), service(home, key_name="demo") as running:
        if as_json:
            result = demonstration.run(running, Lines(), running.tend)
        else:
            with Screen(console) as screen:
                result = demonstration.run(running, screen, running.tend)
        if as_json:
            print(json.dumps(result.document, indent=2, ensure_ascii=False), flush=True)
        else:
            print_result(console, result.document)
        if keep:
            print(f"The service stays at {running.url} with key {running.new_key}; Ctrl-C stops it.", file=sys.stderr)
            running.tend_on()
    sys.exit(0 if result.passed else 1)


@app.command()
def verify(
    report: Annotated[Path, typer.Argument(help="the signed envelope, or the report with its envelope beside it")],
    key: Annotated[Path, typer.Option(help="the public key (PEM) of whoever signed")],
    model: Annotated[Path | None, typer.Option(help="the output model's folder, to compare its files")] = None,
    destruction: Annotated[Path | None, typer.Option(help="the signed record that its data was destroyed")] = None,
    as_json: AsJson = False,
) -> NoReturn:
    """Check a signed report offline. Exit 0: all matches; 1: something does not; 2: something cannot be read."""
    from core.report.verify import verify_files

    try:
        found = verify_files(report, model, key, destruction)
    except LetheError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "error": error.as_dict()}, indent=2))
        sys.exit(error.exit_code)
    if as_json:
        print(json.dumps({"ok": found.ok, **vars(found)}, indent=2))
    else:
        for mark, lines in (("ok", found.checked), ("--", found.unchecked), ("FAILED", found.failures)):
            for line in lines:
                print(f"{mark:<7}{line}")
        print("The evidence matches." if found.ok else "The evidence does not match.")
    sys.exit(found.exit_code)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """Every method and retain term: what it minimises, what it needs, defaults, published names, source."""
    from core.spec.table import methods_table, methods_text

    print(json.dumps(methods_table(), indent=2, ensure_ascii=False) if as_json else methods_text())


@app.command()
def presets(as_json: AsJson = False) -> None:
    """Every preset: published settings under a name, where they were published, and what of them was not."""
    from core.spec.catalogue import catalogue
    from core.spec.table import presets_text

    print(json.dumps(catalogue()["presets"], indent=2, ensure_ascii=False) if as_json else presets_text())


if __name__ == "__main__":
    main()
