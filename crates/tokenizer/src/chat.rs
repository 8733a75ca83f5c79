//! Chat templates: messages to the prompt that the model was trained on.
//!
//! A model ships its template as a Jinja program written for Python's `transformers`. It runs here in
//! minijinja, set up to behave as there: block tags swallow their line ends, values print as in Python and
//! have Python's methods, `tojson` prints as `json.dumps` does, and `raise_exception` and `strftime_now` exist.
//!
//! Known to differ: `none` is an empty list to loops rather than an error; texts marked safe do not make
//! what is joined to them escaped; `%` does not format strings; macros have no `varargs` and `kwargs`.

mod fallback;
mod json;
mod methods;
mod python;
mod source;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde_json::{Map, Value};
use torque_gguf::Metadata;

use crate::Error;
use crate::vocabulary::Vocabulary;

const KEY: &str = "tokenizer.chat_template";
const TOOL_USE_KEY: &str = "tokenizer.chat_template.tool_use";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Under this name the environment knows the template, and errors mention it.
    name: String,
    /// Whether there is a template of its own for conversations with tools.
    tool_use: bool,
    /// `bos_token` and `eos_token`, as far as the model has them.
    special: Map<String, Value>,
}

impl ChatTemplate {
    /// Compiles a template that does not come from the model file. `name` is what errors call it; `bos_token`
    /// and `eos_token` are the texts of these tokens.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn new(
        name: &str,
        source: &str,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<ChatTemplate, Error> {
        let mut special = Map::new();
        for (key, text) in [("bos_token", bos_token), ("eos_token", eos_token)] {
            special.extend(text.map(|text| (key.to_string(), text.into())));
        }
        let mut template =
            ChatTemplate { environment: environment(), name: name.into(), tool_use: false, special };
        template.add(name, source)?;
        Ok(template)
    }

    /// The template of a model file. If it has none, the one that the special tokens of the vocabulary belong
    /// to, with a warning; `None` if they tell nothing.
    pub(crate) fn from_metadata(
        metadata: &Metadata,
        vocabulary: &Vocabulary,
        bos: Option<u32>,
        eos: Option<u32>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<ChatTemplate>, Error> {
        let text = |id: Option<u32>| id.and_then(|id| std::str::from_utf8(vocabulary.text(id)).ok());
        let (bos, eos) = (text(bos), text(eos));
        let default = metadata.string(KEY)?;
        let tool_use = metadata.string(TOOL_USE_KEY)?;
        let Some(source) = default.or(tool_use) else {
            let Some(fallback) = fallback::for_vocabulary(vocabulary) else { return Ok(None) };
            warnings.push(format!(
                "`{KEY}` is missing; the {} template is used, as the vocabulary has `{}`",
                fallback.name, fallback.tokens[0]
            ));
            return ChatTemplate::new(fallback.name, fallback.source, bos, eos).map(Some);
        };
        let mut template = ChatTemplate::new(KEY, source, bos, eos)?;
        if let Some(source) = tool_use {
            template.add(TOOL_USE_KEY, source)?;
            template.tool_use = true;
        }
        Ok(Some(template))
    }

    fn add(&mut self, name: &str, source: &str) -> Result<(), Error> {
        let source = source::translate(source);
        self.environment.add_template_owned(name.to_string(), source).map_err(|error| Error::TemplateSyntax {
            key: name.into(),
            line: error.line().unwrap_or(1),
            reason: reason(&error),
        })
    }

    /// The prompt for these messages.
    ///
    /// `messages` is a list of objects with `role`, `content` and whatever else the template knows
    /// (`tool_calls`, …). `tools` are function definitions as in the OpenAI API. With `add_generation_prompt`
    /// the prompt ends where the model's answer begins. `extra` are further variables, for example
    /// `enable_thinking`; they win over the others.
    ///
    /// Most templates print the BOS token themselves: encode the prompt with `parse_special`, and
    /// `add_special` for the rest.
    ///
    /// # Errors
    /// What the template cannot do with these messages, or its own refusal by `raise_exception`.
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, Error> {
        let mut context = self.special.clone();
        context.insert("messages".into(), messages.clone());
        context.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        context.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));

        let name = if self.tool_use && tools.is_some() { TOOL_USE_KEY } else { &self.name };
        let failed = |error: minijinja::Error| Error::TemplateRender {
            key: name.into(),
            line: error.line().unwrap_or(1),
            reason: reason(&error),
        };
        let template = self.environment.get_template(name).map_err(failed)?;
        template.render(minijinja::Value::from(Serde(context))).map_err(failed)
    }
}

/// The detail of an error without the place, which is given apart.
fn reason(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), String::from)
}

/// Jinja as `transformers` sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("only the handling of white space differs from the default"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    python::add_to(&mut environment);
    environment
}
