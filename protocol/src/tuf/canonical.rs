//! OLPC canonical JSON, over which TUF signatures are made: no white space, object keys sorted by code point, only `"`
//! and `\` escaped, integers only. It is not RFC 8785 (which escapes control characters and sorts by UTF-16).

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    #[error("the number {number} is not an integer of 64 bits")]
    NotAnInteger { number: String },
}

/// The canonical bytes of `value`. Nesting is bounded by whoever parsed it (`serde_json`: 128 levels).
pub fn canonical_json(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(n) if n.is_i64() || n.is_u64() => out.extend_from_slice(n.to_string().as_bytes()),
        Value::Number(n) => return Err(CanonicalError::NotAnInteger { number: n.to_string() }),
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            // Sorted here: the map keeps insertion order where another crate of the build asks serde_json for that.
            // UTF-8 bytes sort like code points.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| key.as_str());
            out.push(b'{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        // (JSON, canonical form or nothing). The forms are those of securesystemslib's `encode_canonical`.
        let rows = [
            ("null", Some("null")),
            (r#"{ "b" : 1, "a" : [true, false, null] }"#, Some(r#"{"a":[true,false,null],"b":1}"#)),
            ("-9223372036854775808", Some("-9223372036854775808")),
            ("18446744073709551615", Some("18446744073709551615")),
            (r#""a\"\\\n\u0001é""#, Some("\"a\\\"\\\\\n\u{1}é\"")),
            // U+FF61 sorts before U+1F600 by code point, and after it by UTF-16.
            ("{\"\u{1f600}\":2,\"\u{ff61}\":1}", Some("{\"\u{ff61}\":1,\"\u{1f600}\":2}")),
            (r#"{"a":{"z":{},"y":[]}}"#, Some(r#"{"a":{"y":[],"z":{}}}"#)),
            ("1.0", None),
            ("1e3", None),
            ("18446744073709551616", None),
            (r#"[1, {"x": 0.5}]"#, None),
        ];
        for (json, expected) in rows {
            let value: Value = serde_json::from_str(json).unwrap();
            let got = canonical_json(&value).ok().map(|b| String::from_utf8(b).unwrap());
            assert_eq!(got.as_deref(), expected, "{json}");
        }
    }
}
