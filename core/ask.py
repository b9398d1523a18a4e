"""Ask model folders questions: `python -m core.ask --model DIR [--model DIR ...]`, questions as JSON lines on stdin.

Answers come as one JSON object a line, `{"answers": [one a model]}`, in the order of the questions.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

from core.environment import available_threads, prepare
from core.errors import DataError, LetheError
from core.evaluation.generate import generate_answers
from core.events import StopFlag
from core.model import load
from core.spec.records import Record
from core.spec.sources import PromptFormat
from core.tokens import Encoder


def ask(
    folder: Path, questions: list[str], *, prompt_format: PromptFormat = "plain", max_new_tokens: int = 64
) -> list[str]:
    """Greedy answers of a model folder. Raises ModelError."""
    model, tokenizer = load(folder, prepare(available_threads()))
    encoder = Encoder(tokenizer, prompt_format, 1 << 30)
    prompts = [encoder.prompt_ids(Record(question, "")) for question in questions]
    return generate_answers(model, tokenizer, prompts, max_new_tokens, StopFlag())


def _question(line: str, number: int) -> str:
    try:
        question = json.loads(line)
    except ValueError:
        question = None
    if not isinstance(question, str):
        raise DataError(f"standard input, line {number}: expected a JSON string, a question in double quotes")
    return question


def main(arguments: list[str] | None = None) -> None:
    """Read questions, print answers."""
    parser = argparse.ArgumentParser(prog="python -m core.ask", description=__doc__)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--prompt", default="plain", choices=get_args(PromptFormat))
    options = parser.parse_args(arguments)
    try:
        questions = [_question(line, number) for number, line in enumerate(sys.stdin, 1) if line.strip()]
        columns = [ask(folder, questions, prompt_format=options.prompt) for folder in options.model]
    except LetheError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)
    for answers in zip(*columns, strict=True):
        print(json.dumps({"answers": answers}, ensure_ascii=False))


if __name__ == "__main__":
    main()
