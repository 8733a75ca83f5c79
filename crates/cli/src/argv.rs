//! llama.cpp's short flags of several letters (`-ctk`), which clap has no notion of, and flags that say a value
//! (`--context-shift`): each is replaced by its long name before parsing. Their help says so.

use std::ffi::OsString;

/// Their names and ours. Those of the second half are not flags of Torque: under its long name, the message about an
/// unknown flag names what was typed, where clap would take `-ngl 99` for `-n gl`.
const NAMES: &[(&str, &str)] = &[
    ("--context-shift", "--context-overflow=shift"),
    ("--no-context-shift", "--context-overflow=stop"),
    ("-cram", "--cache-ram"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-sp", "--special"),
    ("-sys", "--system-prompt"),
    ("-cnv", "--conversation"),
    ("-no-cnv", "--no-conversation"),
    ("-fa", "--flash-attn"),
    ("-hf", "--hf-repo"),
    ("-mg", "--main-gpu"),
    ("-ngl", "--n-gpu-layers"),
    ("-sm", "--split-mode"),
    ("-tb", "--threads-batch"),
    ("-ts", "--tensor-split"),
    ("-ub", "--ubatch-size"),
];

/// The arguments with long names, up to `--`.
pub fn with_long_names(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut options = true;
    arguments
        .map(|argument| {
            options &= argument != "--";
            let Some(text) = argument.to_str().filter(|_| options) else { return argument };
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            match NAMES.iter().find(|(short, _)| *short == name) {
                Some((_, long)) => format!("{long}{value}").into(),
                None => argument,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_long_ones() {
        let check = |given: &str, expected: &str| {
            let found = with_long_names(given.split(' ').map(OsString::from));
            assert_eq!(found, expected.split(' ').map(OsString::from).collect::<Vec<_>>());
        };
        check("run -ctk q8_0 -n 3", "run --cache-type-k q8_0 -n 3");
        check("run -ctv=turbo3", "run --cache-type-v=turbo3");
        check("run --context-shift", "run --context-overflow=shift");
        check("run -ngl 99", "run --n-gpu-layers 99");
        check("run -c 5 -- -ctk", "run -c 5 -- -ctk");
    }
}
