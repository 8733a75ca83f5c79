"""Writes expected.json: every template on every conversation, as Python's transformers renders it.

Needs jinja2. An entry is {"text": …} or {"error": …}.
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks text; it does not change it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise jinja2.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)

conversations = json.loads((HERE / "conversations.json").read_text())
expected = {}
for path in sorted(HERE.glob("*.jinja")):
    template = environment.from_string(path.read_text())
    expected[path.stem] = {}
    for name, conversation in conversations.items():
        context = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
        context["date_string"] = "03 Feb 2026"
        context |= {key: value for key, value in conversation.items() if key != "extra"}
        context |= conversation.get("extra", {})
        try:
            expected[path.stem][name] = {"text": template.render(context)}
        except (jinja2.TemplateError, TypeError) as error:
            expected[path.stem][name] = {"error": str(error)}

(HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
