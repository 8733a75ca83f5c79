//! Templates like those that models ship, against what Python renders (`tools/chat-templates/expected.py`).

use std::path::Path;

use serde_json::{Map, Value, json};
use torque_gguf::{Gguf, Metadata};
use torque_tokenizer::{ChatTemplate, Encode, Error, Tokenizer};

const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
const CHAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chat");

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(Path::new(CHAT).join(name)).unwrap()).unwrap()
}

/// Renders one of `conversations.json`.
fn render(template: &ChatTemplate, conversation: &Value) -> Result<String, Error> {
    let mut extra = conversation["extra"].as_object().cloned().unwrap_or_default();
    extra.entry("date_string").or_insert("03 Feb 2026".into());
    let generate = conversation["add_generation_prompt"].as_bool().unwrap();
    template.render(&conversation["messages"], conversation.get("tools"), generate, &extra)
}

/// What Python says of rendering this.
fn check(what: &str, found: Result<String, Error>, expected: &Value) {
    match (&found, expected["text"].as_str(), expected["refused"].as_str()) {
        (Ok(text), Some(expected), _) => assert_eq!(text, expected, "{what}"),
        (Err(Error::TemplateRender { reason, .. }), None, Some(expected)) => {
            assert_eq!(reason, expected, "{what}")
        }
        // Python's own errors have other words.
        (Err(_), None, None) => {}
        _ => panic!("{what}: expected {expected}, found {found:?}"),
    }
}

#[test]
fn templates_render_as_in_python() {
    let (expected, conversations) = (read("expected.json"), read("conversations.json"));
    let mut templates: Vec<_> = std::fs::read_dir(CHAT).unwrap().map(|entry| entry.unwrap().path()).collect();
    templates.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    assert!(templates.len() >= 13 && conversations.as_object().unwrap().len() >= 19);
    for path in templates {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let source = std::fs::read_to_string(&path).unwrap();
        let template = ChatTemplate::new(name, &source, Some("<s>"), Some("</s>")).unwrap();
        for (title, conversation) in conversations.as_object().unwrap() {
            let expected = expected["templates"][name].get(title).expect("run expected.py again");
            check(&format!("{name}, {title}"), render(&template, conversation), expected);
        }
    }
}

#[test]
fn single_constructs_work_as_in_python() {
    let (expected, snippets) = (read("expected.json"), read("snippets.json"));
    for source in snippets["sources"].as_array().unwrap() {
        let source = source.as_str().unwrap();
        let found = ChatTemplate::new("snippet", source, Some("<s>"), Some("</s>"))
            .and_then(|template| render(&template, &snippets["context"]));
        check(source, found, expected["snippets"].get(source).expect("run expected.py again"));
    }
}

#[test]
fn nothing_is_an_empty_list() {
    // Python refuses this, which would make many templates fail without tools or content.
    let template =
        ChatTemplate::new("none", "{% for tool in tools %}{{ tool }}{% endfor %}.", None, None).unwrap();
    assert_eq!(template.render(&json!([]), None, false, &Map::new()).unwrap(), ".");
}

#[test]
fn the_demo_model_talks() {
    let gguf = Gguf::open(Path::new(SHARED).join("demo/demo.gguf")).unwrap();
    let tokenizer = Tokenizer::from_metadata(gguf.metadata()).unwrap();
    let template = tokenizer.chat_template().unwrap();
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "<|end|>?"},
    ]);
    let prompt = template.render(&messages, None, true, &Map::new()).unwrap();
    assert_eq!(prompt, "\n<|user|>Hi<|assistant|>Hello.<|end|>\n<|user|><|end|>?<|assistant|>");

    let tokens = tokenizer.encode(&prompt, Encode { add_special: true, parse_special: true });
    assert_eq!(
        (tokens[0], tokens.last()),
        (tokenizer.bos().unwrap(), tokenizer.id_of("<|assistant|>").as_ref())
    );
    assert_eq!(tokenizer.decode(&tokens, true), format!("<|doc|>{prompt}"));
    assert_eq!(tokenizer.decode(&tokens, false), "\nHiHello.\n?");
    let end = tokenizer.id_of("<|end|>").unwrap();
    assert!(tokenizer.is_end_of_generation(end) && tokenizer.is_control(end));
    assert_eq!((tokenizer.eos(), tokenizer.eot()), (Some(end), Some(end)));
}

/// A vocabulary of these tokens, the letters of which are there.
fn vocabulary(special: &[&str], keys: &[(&str, &str)]) -> Metadata {
    let letters = ["a", "b"].map(String::from);
    let tokens: Vec<String> =
        letters.into_iter().chain(special.iter().map(|text| text.to_string())).collect();
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2".to_string());
    metadata.insert("tokenizer.ggml.pre", "gpt-2".to_string());
    metadata.insert(
        "tokenizer.ggml.token_type",
        torque_gguf::Value::Array(torque_gguf::Array::I32(vec![1; tokens.len()])),
    );
    metadata.insert("tokenizer.ggml.tokens", torque_gguf::Value::Array(torque_gguf::Array::String(tokens)));
    metadata.insert("tokenizer.ggml.merges", torque_gguf::Value::Array(torque_gguf::Array::String(vec![])));
    for (key, value) in keys {
        metadata.insert(*key, value.to_string());
    }
    metadata
}

#[test]
fn a_file_without_a_template_gets_the_one_its_tokens_belong_to() {
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": " U "},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    ]);
    let cases: &[(&[&str], Option<&str>)] = &[
        (
            &["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
            Some("S<｜User｜> U <｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>V<｜Assistant｜>"),
        ),
        (
            &["<|start|>", "<|channel|>", "<|message|>", "<|end|>"],
            Some(
                "<|start|>developer<|message|># Instructions\n\nS<|end|><|start|>user<|message|> U <|end|>\
                 <|start|>assistant<|channel|>final<|message|>A<|end|><|start|>user<|message|>V<|end|><|start|>assistant",
            ),
        ),
        (
            &["<|turn>", "<turn|>"],
            Some(
                "<|turn>system\nS<turn|>\n<|turn>user\nU<turn|>\n<|turn>model\nA<turn|>\n<|turn>user\nV<turn|>\n<|turn>model\n",
            ),
        ),
        (
            &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
            Some("[gMASK]<sop><|system|>\nS<|user|>\n U <|assistant|>\nA<|user|>\nV<|assistant|>\n"),
        ),
        (
            &["<|im_start|>", "<|im_end|>"],
            Some(
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U <|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n\
                 <|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
            ),
        ),
        (
            &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            Some(
                "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nV\
                 <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
        ),
        (
            &["<start_of_turn>", "<end_of_turn>"],
            Some(
                "<start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nV\
                 <end_of_turn>\n<start_of_turn>model\n",
            ),
        ),
        (
            &["<|user|>", "<|assistant|>", "<|end|>"],
            Some(
                "<|system|>\nS<|end|>\n<|user|>\n U <|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n",
            ),
        ),
        (&["[INST]", "[/INST]"], Some("[INST] S\n\n U  [/INST] A[INST] V [/INST]")),
        (&["[INST]"], None),
    ];
    for (tokens, expected) in cases {
        let tokenizer = Tokenizer::from_metadata(&vocabulary(tokens, &[])).unwrap();
        let warned = tokenizer
            .warnings()
            .iter()
            .any(|warning| warning.contains("chat_template") && warning.contains(tokens[0]));
        assert_eq!(warned, expected.is_some(), "{:?}", tokenizer.warnings());
        let prompt = tokenizer.chat_template().map(|t| t.render(&messages, None, true, &Map::new()).unwrap());
        assert_eq!(prompt.as_deref(), *expected);
    }
}

#[test]
fn tools_have_a_template_of_their_own() {
    let keys = [("tokenizer.chat_template", "plain"), ("tokenizer.chat_template.tool_use", "{{ tools[0] }}")];
    let tokenizer = Tokenizer::from_metadata(&vocabulary(&[], &keys)).unwrap();
    let template = tokenizer.chat_template().unwrap();
    let render = |tools: Option<&Value>| template.render(&json!([]), tools, false, &Map::new()).unwrap();
    assert_eq!(render(None), "plain");
    assert_eq!(render(Some(&json!(["t"]))), "t");
}

#[test]
fn errors_name_the_key_and_the_line() {
    let key = "tokenizer.chat_template";
    let error = Tokenizer::from_metadata(&vocabulary(&[], &[(key, "a\n{% if %}")])).err().unwrap();
    assert!(error.to_string().starts_with("`tokenizer.chat_template`, line 2: "), "{error}");

    let cases = [
        ("\n{{ raise_exception('No ' ~ 'way') }}", "`tokenizer.chat_template`, line 2: No way"),
        ("{{ messages.x.y }}", "`tokenizer.chat_template`, line 1: "),
        ("{{ strftime_now('%Q%') }}", "`tokenizer.chat_template`, line 1: strftime_now"),
        ("{{ messages[::0]\n[1] }}", "`tokenizer.chat_template`, line 1: slice step cannot be zero"),
        ("{{ nothing | tojson }}", "`tokenizer.chat_template`, line 1: tojson: "),
        ("{{ 'a' + 1 }}", "`tokenizer.chat_template`, line 1: "),
    ];
    for (source, expected) in cases {
        let tokenizer = Tokenizer::from_metadata(&vocabulary(&[], &[(key, source)])).unwrap();
        let error =
            tokenizer.chat_template().unwrap().render(&json!([]), None, false, &Map::new()).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{source}: {error}");
    }
}

#[test]
fn the_clock_is_there() {
    let template = ChatTemplate::new("clock", "{{ strftime_now('%Y-%m-%d %H:%M') }}", None, None).unwrap();
    let now = template.render(&json!([]), None, false, &Map::new()).unwrap();
    assert!(now.len() == 16 && now.starts_with("20"), "{now}");
}
