//! The schema that Proxmox publishes, as a second opinion on requests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::record::Request;
use crate::schema::{Format, Kind, Param, validate};

/// The published schema: parameters by endpoint.
#[derive(Debug)]
pub struct Published {
    endpoints: BTreeMap<String, (&'static [Param], bool)>,
}

impl Published {
    /// The schema's file: below `$FORGE_SHARED`, else in a folder `shared` beside one of `here`'s parents.
    #[must_use]
    pub fn find(here: &Path) -> Option<PathBuf> {
        let named = std::env::var_os("FORGE_SHARED").map(PathBuf::from);
        let beside = here.ancestors().map(|above| above.join("shared"));
        named
            .into_iter()
            .chain(beside)
            .map(|place| place.join("pve-api/schema.json"))
            .find(|file| file.is_file())
    }

    /// Reads the schema. What is read is kept until the program ends.
    ///
    /// # Errors
    /// No such file, or not a schema.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let all: Map<String, Value> =
            serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
        let endpoints = all.iter().map(|(name, endpoint)| {
            let open = endpoint["additionalProperties"] == true;
            (name.clone(), (params(&endpoint["params"]), open))
        });
        Ok(Self { endpoints: endpoints.collect() })
    }

    /// What the schema has against a request; nothing for paths that it does not know.
    #[must_use]
    pub fn objections(&self, request: &Request) -> Vec<String> {
        let Some(endpoint) = &request.endpoint else {
            return vec![format!("{} {}: no such endpoint", request.method, request.path)];
        };
        let Some((params, open)) = self.endpoints.get(endpoint) else {
            return Vec::new();
        };
        let mut given = request.params.clone();
        // A secret that is not written down cannot be looked at; all are free text.
        given.retain(|_, value| value != "<redacted>");
        let missing = |name: &str| request.params.contains_key(name) && !given.contains_key(name);
        let errors = validate(&[params], 9, &given).err().unwrap_or_default();
        errors
            .into_iter()
            .filter(|(name, _)| !missing(name))
            .filter(|(_, text)| !*open || text != crate::schema::NOT_DEFINED)
            .map(|(name, text)| format!("{endpoint}: {name}: {}", text.trim_end()))
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn endpoint(&self, name: &str) -> Option<&'static [Param]> {
        self.endpoints.get(name).map(|(params, _)| *params)
    }
}

fn leak(text: &str) -> &'static str {
    String::from(text).leak()
}

fn params(given: &Value) -> &'static [Param] {
    let list: Vec<Param> =
        given.as_object().into_iter().flatten().map(|(name, facts)| param(name, facts)).collect();
    list.leak()
}

fn param(name: &str, facts: &Value) -> Param {
    let text = |key: &str| facts[key].as_str().map(leak);
    let mut param = match facts["type"].as_str() {
        Some("integer") => Param::int(leak(name.trim_end_matches("[n]"))),
        Some("number") => Param::number(leak(name.trim_end_matches("[n]"))),
        Some("boolean") => Param::flag(leak(name.trim_end_matches("[n]"))),
        Some("array") => Param::list(leak(name.trim_end_matches("[n]"))),
        _ => Param::text(leak(name.trim_end_matches("[n]"))),
    };
    param.optional = facts["optional"] == true || facts["alias"].is_string() || name.ends_with("[n]");
    param.in_path = facts["in"] == "path";
    param.last_index = facts["n_max"].as_u64().map(|last| last as u32);
    param.pattern = text("pattern");
    param.requires = text("requires");
    param.alias = text("alias");
    param.key_alias = text("keyAlias");
    param.default_key = facts["default_key"] == true;
    param.minimum = facts["minimum"].as_f64();
    param.maximum = facts["maximum"].as_f64();
    param.shortest = facts["minLength"].as_u64().map(|length| length as usize);
    param.longest = facts["maxLength"].as_u64().map(|length| length as usize);
    let choices: Vec<&'static str> =
        facts["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(leak).collect();
    param.choices = choices.leak();
    param.format = match &facts["format"] {
        Value::String(name) => Format::Name(leak(name)),
        Value::Object(_) => Format::Keys(params(&facts["format"])),
        _ => Format::None,
    };
    if param.kind == Kind::List {
        param.format = Format::None;
    }
    param
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    /// What our table says otherwise on purpose, and why.
    const KNOWN: &[(&str, &str)] = &[
        ("GET /: ", "the index of the whole API is not in the extract"),
        ("qemu/{vmid}/agent: ", "release 8 had this endpoint; 9 has dropped it"),
        ("disk: format", "the schema lists every disk; ours is the pattern of them"),
        ("disk: choices", "the schema lists every disk; ours is the pattern of them"),
        ("target-disk: choices", "the schema lists every disk; the code checks it"),
        ("agent.freeze-fs-on-backup", "an alias in release 9, a key of its own in 8"),
        ("agent.guest-fsfreeze", "an alias of one key in release 9, of another in 8"),
        ("cpu.reported-model", "the list of models is QEMU's, not ours"),
        ("machine: ", "a property string that only a migration fills"),
        ("tmpfilename", "internal: the server fills it in"),
        ("command: ", "a list whose items are plain text"),
    ];

    fn differences(at: &str, ours: &[Param], theirs: &[Param], found: &mut Vec<String>) {
        for their in theirs {
            let Some(our) =
                ours.iter().find(|our| our.name == their.name && our.last_index == their.last_index)
            else {
                found.push(format!("{at}{}: not in our table", their.name));
                continue;
            };
            let at_this = format!("{at}{}: ", our.name);
            let mut differ = |what: &str, ours: String, theirs: String| {
                if ours != theirs {
                    found.push(format!("{at_this}{what}: {ours}, published {theirs}"));
                }
            };
            differ("kind", format!("{:?}", our.kind), format!("{:?}", their.kind));
            differ("optional", our.optional.to_string(), their.optional.to_string());
            differ("pattern", format!("{:?}", our.pattern), format!("{:?}", their.pattern));
            differ("requires", format!("{:?}", our.requires), format!("{:?}", their.requires));
            differ("alias", format!("{:?}", our.alias), format!("{:?}", their.alias));
            differ("key alias", format!("{:?}", our.key_alias), format!("{:?}", their.key_alias));
            differ("default key", our.default_key.to_string(), their.default_key.to_string());
            differ("minimum", format!("{:?}", our.minimum), format!("{:?}", their.minimum));
            differ("maximum", format!("{:?}", our.maximum), format!("{:?}", their.maximum));
            differ("shortest", format!("{:?}", our.shortest), format!("{:?}", their.shortest));
            differ("longest", format!("{:?}", our.longest), format!("{:?}", their.longest));
            differ("choices", format!("{:?}", our.choices), format!("{:?}", their.choices));
            match (our.format, their.format) {
                (Format::Keys(ours), Format::Keys(theirs)) => {
                    differences(&format!("{at}{}.", our.name), ours, theirs, found);
                }
                (Format::Name(ours), Format::Name(theirs)) if ours == theirs => {}
                (Format::None, Format::None) => {}
                (ours, theirs) => {
                    let name = |format| match format {
                        Format::None => "none",
                        Format::Name(name) => name,
                        Format::Keys(_) => "keys",
                    };
                    found.push(format!("{at_this}format: {}, published {}", name(ours), name(theirs)));
                }
            }
        }
        for our in ours {
            if !theirs.iter().any(|their| our.name == their.name && our.last_index == their.last_index) {
                found.push(format!("{at}{}: not published", our.name));
            }
        }
    }

    #[test]
    fn our_table_says_what_proxmox_publishes() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let Some(file) = Published::find(here) else {
            println!("nothing is compared: the published schema is not there");
            return;
        };
        let published = Published::load(&file).unwrap();
        let mut found = Vec::new();
        for endpoint in api::all() {
            let name = format!("{} {}", endpoint.method, endpoint.path.replace('*', ""));
            let ours: Vec<Param> = endpoint.params.iter().copied().flatten().copied().collect();
            match published.endpoint(&name) {
                Some(theirs) => differences(&format!("{name}: "), &ours, theirs, &mut found),
                None => found.push(format!("{name}: not published")),
            }
        }
        found.retain(|text| !KNOWN.iter().any(|(part, _)| text.contains(part)));
        assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
    }
}
