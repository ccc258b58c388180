//! The codes of this crate's diagnostics, which are part of its interface. `docs/diagnostics.md` is generated from this and its siblings in
//! the other crates.

#![doc(hidden)]

use crate::diagnostic::Code;

/// By name.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    Code::error("config-missing", "a key that is required is not there"),
    Code::warning("config-truthiness", "a value that is not a boolean where one is due: LLaMA-Factory checks no type there and goes by its truth in Python"),
    Code::error("config-type", "a value has another type than its key takes"),
    Code::warning("config-unchecked", "a value of another type or range than its key takes, with which LLaMA-Factory runs all the same"),
    Code::error("config-unknown-key", "a key that the section does not have; the help names the nearest"),
    Code::error("config-value", "a value of the right type is not one that its key takes"),
    Code::error("json-bom", "a byte order mark, which Python's JSON reader refuses"),
    Code::error("json-comment", "a comment, which DeepSpeed's hjson reader takes and Hugging Face's strict one does not"),
    Code::warning("json-constant", "NaN, Infinity or half of a character, which are not JSON and which Python's reader takes"),
    Code::warning("json-duplicate-key", "a key occurs twice in one object: the later one counts for accelerate and LLaMA-Factory, and DeepSpeed's own reader refuses the file"),
    Code::error("json-hjson", "hjson beyond comments, such as a string without quotes or a comma after the last member; no other reader of such files takes it"),
    Code::error("json-syntax", "the text is not valid JSON"),
    Code::error("json-too-deep", "more levels or more values than any config has"),
    Code::error("json-too-large", "a file larger than any config"),
    Code::error("registry-core-version", "a linked plugin was built against another version of the core crate"),
    Code::error("registry-name", "a linked plugin's name is not of the form `vendor/name`"),
    Code::error("registry-twice", "two linked crates register the same name"),
    Code::error("unknown-precision", "`shardwright.precision.name` names a policy that is not linked"),
    Code::error("unknown-strategy", "`dist_config.name` names a strategy that is not linked"),
    Code::warning("yaml-bool-word", "PyYAML reads an unquoted `no` as false where the word is meant"),
    Code::error("yaml-duplicate-key", "a key occurs twice in one mapping, which OmegaConf rejects and PyYAML silently lets the last win"),
    Code::warning("yaml-exponent", "PyYAML reads `5e8` and `1e-4` as strings: a float needs a dot and a signed exponent there"),
    Code::error("yaml-key", "a list or a mapping as a key"),
    Code::warning("yaml-key-type", "PyYAML reads a key as another type than a string"),
    Code::error("yaml-many-documents", "a second document in one file"),
    Code::error("yaml-merge", "a merge key `<<` of something that is not a mapping"),
    Code::warning("yaml-octal", "PyYAML reads `010` as octal and `0o10` as a string"),
    Code::error("yaml-recursive-alias", "an alias inside of its own anchor"),
    Code::warning("yaml-sexagesimal", "PyYAML reads `1:30` in base 60"),
    Code::error("yaml-syntax", "the text is not valid YAML"),
    Code::error("yaml-tab", "a tab between values of an accelerate YAML, whose reader refuses it; LLaMA-Factory's takes it"),
    Code::error("yaml-tag", "a tag that is not read, or that its value does not fit"),
    Code::error("yaml-too-deep", "collections nested deeper than in any config"),
    Code::error("yaml-too-large", "a file larger than any config"),
    Code::error("yaml-too-many-values", "more values than any config has, aliases expanded"),
];
