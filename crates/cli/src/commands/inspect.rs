//! `torque inspect`: what is in a file.

use crate::flags::kv_format_names;
use crate::table::Table;
use crate::text::{count, thousands};
use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value as Json, json};
use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torque_engine::gguf::{Array, Gguf, Metadata, Value};
use torque_engine::tokenizer::Tokenizer;
use torque_engine::{Config, Plan, Policy, human_bytes};

/// Show what is in a model file, and what its context costs
///
/// Also for files that Torque cannot run: it says why.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Inspect {
    /// The file (GGUF; any part of a split one)
    file: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// List all metadata, long values cut
    #[arg(long)]
    metadata: bool,
    /// Print JSON; with --metadata, values are whole
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  torque inspect model.gguf
  torque inspect model.gguf --tensors | less
  torque inspect model.gguf --json | jq .kv_bytes_per_token";

impl Inspect {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let gguf = Gguf::open(&self.file)?;
        let mut out = BufWriter::new(anstream::stdout().lock());
        if self.json {
            let mut json = Facts::of(&gguf).json(&gguf);
            if self.tensors {
                json.insert("tensors".into(), gguf.tensors().iter().map(tensor_json).collect());
            }
            if self.metadata {
                let values = gguf.metadata().iter().map(|(key, value)| (key.to_string(), value_json(value)));
                json.insert("metadata".into(), Json::Object(values.collect()));
            }
            writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        } else {
            Facts::of(&gguf).print(&gguf, &mut out)?;
            if self.tensors {
                writeln!(out, "\n{}", tensor_table(&gguf))?;
            }
            if self.metadata {
                writeln!(out)?;
                for (key, value) in gguf.metadata().iter() {
                    writeln!(out, "{key} = {value}")?;
                }
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What a file says about itself. Read leniently: a key that is missing or odd is `None`.
struct Facts<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
    parameters: u64,
    bytes: u64,
    /// Type, tensors, parameters, bytes; most bytes first.
    types: Vec<(String, u64, u64, u64)>,
    /// Why Torque cannot run it, if it cannot.
    obstacle: Option<String>,
    config: Option<Config>,
    tokenizer: Result<Tokenizer, String>,
}

impl<'a> Facts<'a> {
    fn of(gguf: &'a Gguf) -> Facts<'a> {
        let metadata = gguf.metadata();
        let mut types: Vec<(String, u64, u64, u64)> = Vec::new();
        for tensor in gguf.tensors() {
            let (name, parameters) = (tensor.kind.name(), tensor.shape.iter().product::<u64>());
            let place = types.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
                types.push((name.into_owned(), 0, 0, 0));
                types.len() - 1
            });
            let sums = &mut types[place];
            *sums = (
                std::mem::take(&mut sums.0),
                sums.1 + 1,
                sums.2 + parameters,
                sums.3 + tensor.data.len() as u64,
            );
        }
        types.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
        let config = Config::from_metadata(metadata);
        let obstacle = match &config {
            Err(error) => Some(error.to_string()),
            Ok(_) if gguf.tensors().is_empty() => Some("the file has no tensors, only a vocabulary".into()),
            Ok(_) => None,
        };
        Facts {
            metadata,
            architecture: metadata.string("general.architecture").ok().flatten().unwrap_or("unknown"),
            parameters: types.iter().map(|(_, _, parameters, _)| parameters).sum(),
            bytes: types.iter().map(|(.., bytes)| bytes).sum(),
            types,
            obstacle,
            config: config.ok(),
            tokenizer: Tokenizer::from_metadata(metadata).map_err(|error| error.to_string()),
        }
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.metadata.string(key).ok().flatten()
    }

    /// A number under the architecture's prefix; the largest, if there is one a layer.
    fn number(&self, key: &str) -> Option<u64> {
        let key = format!("{}.{key}", self.architecture);
        let each = self.metadata.u32s(&key).ok().flatten();
        self.metadata.u64(&key).ok().flatten().or_else(|| each?.iter().max().map(|&n| n.into()))
    }

    /// The KV cache in every format that holds keys and values; `None` where a head of this size cannot be stored in it.
    fn kv_plans(&self) -> Vec<(&'static str, Option<Plan>)> {
        let Some(config) = &self.config else { return Vec::new() };
        kv_format_names().map(|name| (name, config.plan(&Policy::uniform(name, name)).ok())).collect()
    }

    /// Channels of a key of the first layer that has them.
    fn head_dim(&self) -> Option<usize> {
        self.config.as_ref()?.attention_layers().next().map(|layer| layer.kv.head_dim[0])
    }

    fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.parameters.max(1) as f64
    }

    fn print(&self, gguf: &Gguf, out: &mut dyn Write) -> io::Result<()> {
        let mut line = |name: &str, value: Option<String>| match value {
            Some(value) => writeln!(out, "{name:<14}{value}"),
            None => Ok(()),
        };
        let number = |key| self.number(key).map(thousands);
        let counted =
            |n: Option<u64>, what: &str| n.filter(|&n| n > 0).map(|n| format!(", {} {what}", thousands(n)));
        let join = |parts: &[Option<String>]| parts.iter().flatten().map(String::as_str).collect::<String>();

        line("name", self.text("general.name").map(str::to_string))?;
        line("architecture", Some(self.architecture.into()))?;
        line("runs here", Some(self.obstacle.as_ref().map_or("yes".into(), |why| format!("no: {why}"))))?;
        line("parameters", (self.parameters > 0).then(|| count(self.parameters)))?;
        let size =
            || format!("{}, {:.2} bits per weight", human_bytes(self.bytes as f64), self.bits_per_weight());
        line("weights", (self.parameters > 0).then(size))?;
        line("context", number("context_length").map(|n| format!("{n} tokens")))?;
        let layers = [
            number("block_count")
                .map(|n| format!("{n} × {} wide", number("embedding_length").unwrap_or("?".into()))),
            counted(self.number("feed_forward_length"), "in the feed-forward layer"),
        ];
        line("layers", layers[0].is_some().then(|| join(&layers)))?;
        let experts =
            [number("expert_count"), counted(self.number("expert_used_count"), "of them used by a token")];
        line("experts", self.number("expert_count").filter(|&n| n > 0).map(|_| join(&experts)))?;
        let head_dim = self.head_dim().map(|n| n as u64);
        let heads = [
            number("attention.head_count"),
            counted(self.number("attention.head_count_kv"), "for keys and values"),
            head_dim.or(self.number("attention.key_length")).map(|n| format!(", {n} wide")),
            counted(self.number("attention.sliding_window"), "tokens of sliding window"),
        ];
        line("heads", heads[0].is_some().then(|| join(&heads)))?;
        line("tokenizer", Some(self.tokenizer_line()))?;
        let template = match self.tokenizer.as_ref().map(|t| t.chat_template().is_some()) {
            Ok(true) if self.text("tokenizer.chat_template").is_none() => {
                "none in the file, known from the vocabulary"
            }
            Ok(true) => "yes",
            _ => "none",
        };
        line("chat template", Some(template.into()))?;
        line("licence", self.text("general.license").map(str::to_string))?;
        line(
            "file",
            Some(format!(
                "GGUF {}, {} keys, {} tensors",
                gguf.version(),
                gguf.metadata().len(),
                gguf.tensors().len()
            )),
        )?;

        if !self.types.is_empty() {
            let mut table = Table::new(&["weights", ">tensors", ">parameters", ">size", ">share"]);
            for (name, tensors, parameters, bytes) in &self.types {
                let share = 100.0 * *bytes as f64 / self.bytes.max(1) as f64;
                table.row([
                    name.clone(),
                    tensors.to_string(),
                    count(*parameters),
                    human_bytes(*bytes as f64),
                    format!("{share:.1} %"),
                ]);
            }
            write!(out, "\n{table}")?;
        }
        let plans = self.kv_plans();
        if !plans.is_empty() {
            let mut table = Table::new(&["KV cache", ">bytes per token", ">32K tokens"]);
            for (name, plan) in &plans {
                let cell = |cell: fn(&Plan) -> String| plan.as_ref().map_or("–".into(), cell);
                table.row([
                    name.to_string(),
                    cell(|plan| thousands(plan.bytes_per_token().round() as u64)),
                    cell(|plan| human_bytes(plan.sequence_bytes(32 << 10, 512) as f64)),
                ]);
            }
            write!(out, "\n{table}")?;
        }
        Ok(())
    }

    fn tokenizer_line(&self) -> String {
        let tokenizer = match &self.tokenizer {
            Ok(tokenizer) => tokenizer,
            Err(error) => return format!("not usable: {error}"),
        };
        let kind = self.text("tokenizer.ggml.model").unwrap_or("?");
        // Only byte-level BPE cuts text into words first.
        let pre = self.text("tokenizer.ggml.pre").filter(|_| kind == "gpt2");
        let pre = pre.map(|pre| format!("/{pre}")).unwrap_or_default();
        let special = |name: &str, id: Option<u32>| {
            let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
            id.map(|id| format!(", {name} {id} {}", text(id))).unwrap_or_default()
        };
        let ids = special("BOS", tokenizer.bos())
            + &special("EOS", tokenizer.eos())
            + &special("EOT", tokenizer.eot());
        format!("{kind}{pre}, {} tokens{ids}", thousands(tokenizer.len() as u64))
    }

    fn json(&self, gguf: &Gguf) -> Map<String, Json> {
        let types = self.types.iter().map(|(name, tensors, parameters, bytes)| {
            json!({ "type": name, "tensors": tensors, "parameters": parameters, "bytes": bytes })
        });
        let bytes_per_token = |plan: Option<Plan>| json!(plan.map(|plan| plan.bytes_per_token()));
        let kv_bytes =
            self.kv_plans().into_iter().map(|(name, plan)| (name.to_string(), bytes_per_token(plan)));
        let tokenizer = match &self.tokenizer {
            Err(error) => json!({ "error": error }),
            Ok(tokenizer) => json!({
                "model": self.text("tokenizer.ggml.model"),
                "pre": self.text("tokenizer.ggml.pre"),
                "tokens": tokenizer.len(),
                "bos": tokenizer.bos(),
                "eos": tokenizer.eos(),
                "eot": tokenizer.eot(),
            }),
        };
        let json = json!({
            "version": gguf.version(),
            "name": self.text("general.name"),
            "architecture": self.architecture,
            "runs": self.obstacle.is_none(),
            "obstacle": self.obstacle,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight(),
            "types": types.collect::<Vec<_>>(),
            "context": self.number("context_length"),
            "layers": self.number("block_count"),
            "embedding": self.number("embedding_length"),
            "feed_forward": self.number("feed_forward_length"),
            "heads": self.number("attention.head_count"),
            "kv_heads": self.number("attention.head_count_kv"),
            "head_dim": self.head_dim(),
            "sliding_window": self.number("attention.sliding_window"),
            "experts": self.number("expert_count"),
            "experts_used": self.number("expert_used_count"),
            "kv_bytes_per_token": Json::Object(kv_bytes.collect()),
            "tokenizer": tokenizer,
            "chat_template": self.text("tokenizer.chat_template"),
        });
        match json {
            Json::Object(map) => map,
            _ => unreachable!("made as an object above"),
        }
    }
}

fn shape(shape: &[u64], separator: &str) -> String {
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join(separator)
}

fn tensor_table(gguf: &Gguf) -> impl Display {
    let mut table = Table::new(&["tensor", "type", ">shape", ">size"]);
    for tensor in gguf.tensors() {
        let size = human_bytes(tensor.data.len() as f64);
        table.row([tensor.name.clone(), tensor.kind.to_string(), shape(&tensor.shape, " × "), size]);
    }
    table
}

fn tensor_json(tensor: &torque_engine::gguf::Tensor) -> Json {
    let kind = tensor.kind.name();
    json!({ "name": tensor.name, "type": kind, "shape": tensor.shape, "bytes": tensor.data.len() })
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Bool(x) => json!(x),
        Value::String(x) => json!(x),
        Value::Array(x) => array_json(x),
        Value::F32(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        // Every other integer prints as itself.
        integer => integer.to_string().parse::<i64>().map_or(Json::Null, |x| json!(x)),
    }
}

fn array_json(array: &Array) -> Json {
    (0..array.len()).filter_map(|i| array.get(i)).map(|value| value_json(&value)).collect()
}
