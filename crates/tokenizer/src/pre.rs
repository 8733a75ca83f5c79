//! Pre-tokenizers: how byte-level vocabularies cut text into words before merging.
//!
//! A pre-tokenizer is a list of patterns, as published in the model's own `tokenizer.json`. Each pattern cuts
//! every piece that the patterns before it left; what it matches and what lies between its matches are the
//! new pieces. Nothing is lost.
//!
//! Most patterns end in `\s+(?!\S)|\s+`: a run of white space leaves its last character to the word that
//! follows. Nearly no other look-ahead is there, so this is taken out of the pattern and done by hand, and the
//! rest runs on a regex engine that is linear in the text.

use regex_automata::meta::Regex;

/// A row of the table: which names in `tokenizer.ggml.pre` mean which rule.
pub(crate) struct PreTokenizer {
    /// The names; the first is the canonical one.
    pub names: &'static [&'static str],
    /// The patterns, applied one after the other.
    patterns: &'static [&'static str],
    /// A word that is a token as a whole is taken without merging.
    pub ignore_merges: bool,
    /// BOS is added unless the file says otherwise.
    pub add_bos: bool,
}

/// The rule for files that name none, or one that is not in the table.
pub(crate) const DEFAULT: &str = "default";

const PLAIN: PreTokenizer = PreTokenizer { names: &[], patterns: &[], ignore_merges: false, add_bos: false };

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Numbers in groups of three digits from the right: 1 234 567. The one other look-ahead, also done by hand.
const THOUSANDS: &str = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Every pre-tokenizer, by the names that converters write.
pub(crate) const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[DEFAULT],
        patterns: &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "modern-bert",
            "roberta-bpe",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
        ],
        patterns: &[GPT2],
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], patterns: &[LLAMA3], ..PLAIN },
    PreTokenizer {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        patterns: &[QWEN2],
        ..PLAIN
    },
    PreTokenizer {
        // As qwen2, but combining marks belong to the letters.
        names: &["qwen35"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["gpt-4o", "o200k", "llama4", "kanana2", "talkie", "minimax-m2"],
        patterns: &[O200K],
        ..PLAIN
    },
    PreTokenizer {
        // As gpt-4o without contractions, and digits stand alone.
        names: &["tekken"],
        patterns: &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        patterns: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    PreTokenizer { names: &["falcon"], patterns: &[r"[\p{P}$+<=>^~|`]+", GPT2, r"[0-9][0-9][0-9]"], ..PLAIN },
    PreTokenizer {
        // The second pattern's class is the cased letters of the Unicode version that the model was trained
        // with; escaped where editors like to normalise.
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\x{1F5F}-\x{1F7D}ᾀ-ᾴᾶ-\x{1FBC}\x{1FBE}ῂ-ῄῆ-ῌ\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝ\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}ℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
        patterns: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        ..PLAIN
    },
    PreTokenizer {
        names: &["afmoe"],
        patterns: &[
            THOUSANDS,
            "[一-鿿㐀-䶿豈-\u{faff}぀-ゟ゠-ヿ･-ﾟ⼀-\u{2fdf}เ-\u{e7f}\u{e80}-\u{eff}ក-\u{17ff}က-႟ꩠ-ꩿꧠ-\u{a9ff}가-\u{d7af}ᄀ-ᇿ]+",
            DEEPSEEK3,
        ],
        ..PLAIN
    },
    PreTokenizer {
        // As gpt-4o, but runs of Chinese characters are words of their own.
        names: &["kimi-k2"],
        patterns: &[
            r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        // As gpt-4o after the scripts of East Asia, and digits stand alone.
        names: &["youtu"],
        patterns: &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: true,
        ..PLAIN
    },
    PreTokenizer { names: &["tiny_aya", "cohere2moe"], patterns: &[THOUSANDS, O200K], ..PLAIN },
    PreTokenizer { names: &["superbpe"], patterns: &[THOUSANDS], ..PLAIN },
    PreTokenizer { names: &["laguna"], patterns: &[r"\n+", QWEN2], ..PLAIN },
    PreTokenizer {
        // As qwen2 without contractions: in Turkish a suffix follows the apostrophe.
        names: &["ufakzeka"],
        patterns: &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
        ..PLAIN
    },
    PreTokenizer { names: &["bloom", "poro-chat", "gpt3-finnish"], patterns: &[SENTENCE], ..PLAIN },
    PreTokenizer { names: &["viking"], patterns: &[SENTENCE, r"\p{N}"], ..PLAIN },
    PreTokenizer {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["seed-coder"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["exaone-moe"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["minicpm5"],
        patterns: &[
            r"\p{N}{1,3}",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: true,
        ..PLAIN
    },
];

const SENTENCE: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// What stands in for the look-ahead at the end of a pattern.
const LOOK_AHEAD: &str = r"|\s+(?!\S)|\s+";

/// The compiled patterns of one pre-tokenizer.
pub(crate) struct Splitter {
    stages: Vec<Stage>,
}

struct Stage {
    /// Pattern 0 is the published one; pattern 1, if any, is the `\s+` that gives its last character back.
    regex: Regex,
    /// Whether what it finds are numbers to be cut into groups of three.
    thousands: bool,
}

impl PreTokenizer {
    /// The row that lists `name`.
    pub fn named(name: &str) -> Option<&'static PreTokenizer> {
        PRE_TOKENIZERS.iter().find(|row| row.names.contains(&name))
    }

    /// Compiles the patterns.
    pub fn splitter(&self) -> Splitter {
        let compile = |pattern: &&str| {
            let thousands = *pattern == THOUSANDS;
            let regex = match pattern.strip_suffix(LOOK_AHEAD) {
                _ if thousands => Regex::new(r"\p{N}+"),
                Some(head) => Regex::new_many(&[head, r"\s+"]),
                None => Regex::new(pattern),
            };
            Stage { regex: regex.expect("a test compiles every pattern of the table"), thousands }
        };
        Splitter { stages: self.patterns.iter().map(compile).collect() }
    }
}

impl Splitter {
    /// Calls `word` with every piece of `text`, in order. The pieces are not empty and together are the text.
    pub fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        cut(&self.stages, text, word);
    }
}

fn cut<'t>(stages: &[Stage], text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let Some((stage, rest)) = stages.split_first() else {
        return word(text);
    };
    let mut done = 0;
    while let Some((start, end)) = next_match(&stage.regex, text, done) {
        if start > done {
            cut(rest, &text[done..start], word);
        }
        if stage.thousands {
            groups_of_three(&text[start..end]).for_each(|group| cut(rest, group, word));
        } else {
            cut(rest, &text[start..end], word);
        }
        done = end;
    }
    if done < text.len() {
        cut(rest, &text[done..], word);
    }
}

/// Three characters each, but for the first group.
fn groups_of_three(number: &str) -> impl Iterator<Item = &str> {
    let mut rest = number;
    let mut length = number.chars().count().wrapping_sub(1) % 3 + 1;
    std::iter::from_fn(move || {
        let end = rest.char_indices().nth(length).map_or(rest.len(), |(end, _)| end);
        let (group, after) = rest.split_at(end);
        (rest, length) = (after, 3);
        Some(group).filter(|group| !group.is_empty())
    })
}

/// The first match of `regex` in `text` from byte `from` on.
fn next_match(regex: &Regex, text: &str, from: usize) -> Option<(usize, usize)> {
    let found = regex.find(regex_automata::Input::new(text).range(from..))?;
    let (start, mut end) = (found.start(), found.end());
    if found.pattern().as_usize() == 1 && end < text.len() {
        let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
        if end - last > start {
            end -= last;
        }
    }
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        let row = PreTokenizer::named(name).expect("a name of the table");
        row.splitter().split(text, &mut |word| words.push(word));
        words
    }

    #[test]
    fn names_are_unique_and_every_pattern_compiles() {
        let mut seen = std::collections::HashSet::new();
        for row in PRE_TOKENIZERS {
            for name in row.names {
                assert!(seen.insert(name), "{name} is listed twice");
            }
            assert_eq!(row.splitter().stages.len(), row.patterns.len());
            for pattern in row.patterns {
                let head = pattern.strip_suffix(LOOK_AHEAD).unwrap_or(pattern);
                assert!(
                    *pattern == THOUSANDS || !head.contains("(?!") && !head.contains("(?="),
                    "{pattern} looks ahead elsewhere"
                );
            }
        }
    }

    #[test]
    fn words_are_cut_as_published() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("gpt-2", "I'm  here\n", &["I", "'m", " ", " here", "\n"]),
            ("gpt-2", "a \n b", &["a", " \n", " b"]),
            ("gpt-2", "x12 ", &["x", "12", " "]),
            ("llama3", "WE'LL a\n\n b", &["WE", "'LL", " a", "\n\n", " b"]),
            ("llama3", "12345  \t z", &["123", "45", "  \t", " z"]),
            ("qwen2", "12 (a)\n", &["1", "2", " (", "a", ")\n"]),
            ("gpt-4o", "helloWorld's", &["hello", "World's"]),
            ("qwen35", "e\u{301}a\u{301} x", &["e\u{301}a\u{301}", " x"]),
            ("qwen2", "e\u{301}a", &["e", "\u{301}a"]),
            ("glm4", "1234 It'S", &["123", "4", " It", "'S"]),
            ("deepseek-v3", "1234中文かなa .b\n\n", &["123", "4", "中文かな", "a", " .", "b", "\n\n"]),
            ("deepseek-r1-qwen", "1234 x", &["1", "2", "3", "4", " x"]),
            ("deepseek-coder", "ab, 12中", &["ab", ",", " ", "1", "2", "中"]),
            ("kimi-k2", "中文abc 1234 Ab'S", &["中文", "abc", " ", "123", "4", " Ab'S"]),
            ("youtu", "한국 ABc 12", &["한국", " ABc", " ", "1", "2"]),
            ("afmoe", "1234567 中", &["1", "234", "567", " ", "中"]),
            ("tiny_aya", "123 12 x", &["123", " ", "12", " x"]),
            ("superbpe", "in a 1000 years", &["in a ", "1", "000", " years"]),
            ("laguna", "a \n\n b", &["a", " ", "\n\n", " b"]),
            ("ufakzeka", "Ankara'da 12", &["Ankara", "'da", " ", "1", "2"]),
            ("tekken", "helloWorld's", &["hello", "World", "'s"]),
            ("smollm", "a 12", &["a", " ", "1", "2"]),
            ("default", "a, 1234", &["a", ",", " ", "123", "4"]),
        ];
        for (name, text, expected) in cases {
            assert_eq!(words(name, text), *expected, "{name} on {text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in r"[ \t\r\na-cA-C0-9'.,é日🙂\u{301}]{0,40}") {
            static SPLITTERS: LazyLock<Vec<Splitter>> =
                LazyLock::new(|| PRE_TOKENIZERS.iter().map(PreTokenizer::splitter).collect());
            for splitter in SPLITTERS.iter() {
                let mut words = Vec::new();
                splitter.split(&text, &mut |word| words.push(word));
                prop_assert_eq!(words.concat(), text.as_str());
                prop_assert!(words.iter().all(|word| !word.is_empty()));
            }
        }
    }
}
