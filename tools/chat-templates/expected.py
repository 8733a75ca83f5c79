"""Writes what Python renders, for the tests of chat templates to compare with.

    pip install jinja2
    python tools/chat-templates/expected.py [FOLDER]

In FOLDER (the tests' own, crates/tokenizer/tests/chat, by default) every template `*.jinja` is rendered with
every conversation of `conversations.json`, and every snippet of `snippets.json` by itself, as `transformers`
does it; the results go to `expected.json` there. A result is {"text": …}, {"refused": …} with the message of
`raise_exception`, or {"error": …} with an error of Python's.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

TESTS = pathlib.Path(__file__).parents[2] / "crates/tokenizer/tests/chat"


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks text; it does not change it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class Refused(jinja2.TemplateError):
    """The template does not want these messages."""


def raise_exception(message):
    raise Refused(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)


def render(source, conversation):
    context = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    context["date_string"] = "03 Feb 2026"
    context |= {key: value for key, value in conversation.items() if key != "extra"}
    context |= conversation.get("extra", {})
    try:
        return {"text": environment.from_string(source).render(context)}
    except Refused as refused:
        return {"refused": str(refused)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else TESTS
conversations = json.loads((folder / "conversations.json").read_text())
snippets = json.loads((folder / "snippets.json").read_text())
expected = {
    "templates": {
        path.stem: {name: render(path.read_text(), conversation) for name, conversation in conversations.items()}
        for path in sorted(folder.glob("*.jinja"))
    },
    "snippets": {source: render(source, snippets["context"]) for source in snippets["sources"]},
}
(folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
