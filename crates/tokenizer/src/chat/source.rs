//! What has to change in a template's source before minijinja can run it.
//!
//! - `{% generation %}`, with which `transformers` marks the model's own words for training, becomes an `if`
//!   that is always true.
//! - `x[a:b:c]` becomes `x.__slice__(a, b, c)`. minijinja's own slices are no lists, and backwards they panic
//!   on an empty list (3.0.5).

use regex_automata::Input;
use regex_automata::meta::Regex;

/// What matters outside of tags: comments and raw blocks, which stay, and where tags begin.
const OUTSIDE: [&str; 3] = [
    r"(?s)\{#.*?#\}|\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw",
    r"(\{%[-+]?\s*)(generation|endgeneration)(\s*[-+]?%\})",
    r"\{\{|\{%",
];

/// What matters in a tag: strings, which stay, slices without brackets inside, and brackets, as `}}` may close
/// two dictionaries.
const INSIDE: [&str; 5] = [
    r#"(?s)'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*""#,
    r#"\[([^\[\]{}:,'"]*):([^\[\]{}:,'"]*)(?::([^\[\]{}:,'"]*))?\]"#,
    r"[({\[]",
    r"[%}]\}",
    r"[)}\]]",
];

/// The source with the above replaced. Lines stay where they are.
pub fn translate(source: &str) -> String {
    let compile = |patterns: &[&str]| Regex::new_many(patterns).expect("constant patterns");
    let (outside, inside) = (compile(&OUTSIDE), compile(&INSIDE));
    let (mut outside_captures, mut inside_captures) = (outside.create_captures(), inside.create_captures());
    let mut out = String::with_capacity(source.len() + source.len() / 16);
    let mut at = 0;
    // In a tag, how many brackets are open.
    let mut depth: Option<usize> = None;
    loop {
        let (regex, captures) = match depth {
            None => (&outside, &mut outside_captures),
            Some(_) => (&inside, &mut inside_captures),
        };
        regex.captures(Input::new(source).range(at..), captures);
        let Some(found) = captures.get_match() else { break };
        let group = |index| captures.get_group(index).map_or("", |span| source[span.range()].trim());
        let mut end = found.end();
        out.push_str(&source[at..found.start()]);
        match (depth, found.pattern().as_usize()) {
            (None, 1) => {
                let [open, close] = [1, 3].map(|index| captures.get_group(index).expect("always there"));
                out.push_str(&source[open.range()]);
                out.push_str(if group(2) == "generation" { "if true" } else { "endif" });
                out.push_str(&source[close.range()]);
                at = end;
                continue;
            }
            (None, 2) => depth = Some(0),
            (Some(_), 1) => {
                let [start, stop, step] = [1, 2, 3].map(|index| match group(index) {
                    "" => "none",
                    part => part,
                });
                // A slice may span lines, which errors count.
                let lines = "\n".repeat(source[found.range()].matches('\n').count());
                out.push_str(&format!(".__slice__({start}, {stop}, {step}{lines})"));
                at = end;
                continue;
            }
            (Some(open), 2) => depth = Some(open + 1),
            (Some(0), 3) => depth = None,
            (Some(open), 3 | 4) => {
                // Of two characters the second may begin something else.
                end = found.start() + 1;
                depth = Some(open.saturating_sub(usize::from(&source[found.start()..end] != "%")));
            }
            _ => {}
        }
        out.push_str(&source[found.start()..end]);
        at = end;
    }
    out + &source[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_changes() {
        let cases = [
            ("{%- generation -%}a{% endgeneration %}", "{%- if true -%}a{% endif %}"),
            (
                "{{ x[1:] }} [1:] {{ y[ : n - 1 ] }}",
                "{{ x.__slice__(1, none, none) }} [1:] {{ y.__slice__(none, n - 1, none) }}",
            ),
            ("{% for m in messages[::-1] %}", "{% for m in messages.__slice__(none, none, -1) %}"),
            (
                "{{ x[f(a):] }}{{ x[0][:-1] }}",
                "{{ x.__slice__(f(a), none, none) }}{{ x[0].__slice__(none, -1, none) }}",
            ),
            ("{{ '[1:]' ~ \"\\\"[1:]\" }}", "{{ '[1:]' ~ \"\\\"[1:]\" }}"),
            (
                "{# {{ x[1:] #}{% raw %}{{ x[1:] }}{% endraw %}",
                "{# {{ x[1:] #}{% raw %}{{ x[1:] }}{% endraw %}",
            ),
            (
                "{{ {'a': {'b': [1]}}['a'] ~ x[1:] }}[1:]",
                "{{ {'a': {'b': [1]}}['a'] ~ x.__slice__(1, none, none) }}[1:]",
            ),
            ("{{ [{'a': 1}] }}{{ 5 %2 }}", "{{ [{'a': 1}] }}{{ 5 %2 }}"),
            ("{{ x[1:\n] }}", "{{ x.__slice__(1, none, none\n) }}"),
            ("{{ 'open", "{{ 'open"),
        ];
        for (source, expected) in cases {
            assert_eq!(translate(source), expected);
        }
    }
}
