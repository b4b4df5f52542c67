//! Parameters out of queries, forms and JSON bodies, traps included.

use serde_json::{Map, Value};

/// Decodes `%XX` (and `+` in forms); the bytes are UTF-8.
pub(crate) fn percent_decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 2;
            }
            None if plus && bytes[at] == b'+' => out.push(b' '),
            None => out.push(bytes[at]),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|error| error.into_bytes().into_iter().map(char::from).collect())
}

/// Reads a form: `&` and `;` separate, a second `=` cuts the value, a repeated key makes a list.
pub(crate) fn parse_form(text: &str) -> Map<String, Value> {
    let mut found = Map::new();
    for pair in text.split(['&', ';']).filter(|pair| !pair.is_empty()) {
        let mut parts = pair.split('=');
        let key = percent_decode(parts.next().unwrap_or_default(), true);
        let value = Value::String(percent_decode(parts.next().unwrap_or_default(), true));
        match found.get_mut(&key) {
            Some(Value::Array(list)) => list.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
            None => drop(found.insert(key, value)),
        }
    }
    found
}

/// Reads a JSON body.
///
/// # Errors
/// The text that the server answers with a 500.
pub(crate) fn parse_json(text: &str) -> Result<Map<String, Value>, String> {
    const FILE: &str = "/usr/share/perl5/PVE/APIServer/AnyEvent.pm";
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(format!("Not a HASH reference at {FILE} line 957.\n")),
        Err(_) if text.is_empty() => Err(format!(
            "malformed JSON string, neither tag, array, object, number, string or atom, at character \
             offset 0 (before \"(end of string)\") at {FILE} line 917.\n"
        )),
        Err(error) => Err(format!(
            "'\"' expected, at character offset {} (before \"(end of string)\") at {FILE} line 917.\n",
            error.column()
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn forms_have_their_traps() {
        let form = parse_form("vmid=310&boot=order=virtio0;ide2&name=a+b%2Bc&c=1&c=2&c=3&e=");
        let expected = json!({
            "vmid": "310", "boot": "order", "ide2": "", "name": "a b+c", "c": ["1", "2", "3"], "e": "",
        });
        assert_eq!(Value::Object(form), expected);
        assert_eq!(parse_form("d=%C3%A9%E2%82%AC")["d"], "é€");
    }

    #[test]
    fn json_bodies_must_be_objects() {
        assert_eq!(parse_json("{\"a\":1}").unwrap()["a"], 1);
        assert!(parse_json("[1]").unwrap_err().starts_with("Not a HASH reference"));
        assert!(parse_json("").unwrap_err().starts_with("malformed JSON string"));
        assert!(parse_json("{\"vmid\":310,").unwrap_err().contains("character offset 12"));
    }
}
