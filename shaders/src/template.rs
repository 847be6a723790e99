//! Unrolls a kernel's text: WGSL has no way to say that several results of a thread are to live in registers, and arrays
//! that a compiler may or may not take apart are too slow where it does not.
//!
//! Lines that begin with `#` are directives: `#for i in 0..EXPRESSION` … `#end`, `#if EXPRESSION` … `#else` … `#end`.
//! `$(EXPRESSION)` anywhere else becomes its value. Expressions are integers, names, `+ - * / %`, comparisons, `&&`, `||`,
//! `!` and parentheses.

use std::collections::BTreeMap;

/// Names and their values.
pub(crate) type Values = BTreeMap<String, i64>;

/// The text with all directives carried out. Errors name the line; they are bugs of a kernel, which a test finds.
pub(crate) fn expand(text: &str, values: &Values) -> Result<String, String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::with_capacity(2 * text.len());
    block(&lines, 0, lines.len(), &mut values.clone(), &mut out)?;
    Ok(out)
}

fn block(
    lines: &[&str],
    from: usize,
    to: usize,
    values: &mut Values,
    out: &mut String,
) -> Result<(), String> {
    let mut at = from;
    while at < to {
        let line = lines[at];
        let error = |why: String| format!("line {}: {why}: {line}", at + 1);
        let Some(directive) = line.trim_start().strip_prefix('#') else {
            out.push_str(&substitute(line, values).map_err(error)?);
            out.push('\n');
            at += 1;
            continue;
        };
        let (other, end) = ends(lines, at, to).ok_or_else(|| error("has no end".into()))?;
        if let Some(condition) = directive.strip_prefix("if ") {
            if evaluate(condition, values).map_err(error)? != 0 {
                block(lines, at + 1, other.unwrap_or(end), values, out)?;
            } else if let Some(other) = other {
                block(lines, other + 1, end, values, out)?;
            }
        } else if let Some((name, range)) =
            directive.strip_prefix("for ").and_then(|rest| rest.split_once(" in 0.."))
        {
            let before = values.get(name).copied();
            for i in 0..evaluate(range, values).map_err(error)? {
                values.insert(name.into(), i);
                block(lines, at + 1, end, values, out)?;
            }
            match before {
                Some(before) => values.insert(name.into(), before),
                None => values.remove(name),
            };
        } else {
            return Err(error("is no directive".into()));
        }
        at = end + 1;
    }
    Ok(())
}

/// Lines of the `#else`, if there is one, and of the `#end` of the directive in line `at`.
fn ends(lines: &[&str], at: usize, to: usize) -> Option<(Option<usize>, usize)> {
    let (mut depth, mut other) = (0, None);
    for (number, line) in lines.iter().enumerate().take(to).skip(at) {
        match line.trim() {
            line if line.starts_with("#if ") || line.starts_with("#for ") => depth += 1,
            "#else" if depth == 1 => other = Some(number),
            "#end" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((other, number));
        }
    }
    None
}

fn substitute(line: &str, values: &Values) -> Result<String, String> {
    let (mut out, mut rest) = (String::with_capacity(line.len()), line);
    while let Some((before, after)) = rest.split_once("$(") {
        out.push_str(before);
        let mut depth = 1;
        let end = after.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        let end = end.ok_or("an expression has no end")?;
        out.push_str(&evaluate(&after[..end], values)?.to_string());
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn evaluate(text: &str, values: &Values) -> Result<i64, String> {
    let mut parser = Parser { rest: text.trim(), values };
    let value = parser.binary(0)?;
    if parser.rest.is_empty() { Ok(value) } else { Err(format!("{:?} is left over", parser.rest)) }
}

struct Parser<'a> {
    rest: &'a str,
    values: &'a Values,
}

/// From the loosest to the tightest; of those that begin alike the longer first.
const OPERATORS: [&[&str]; 5] =
    [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

impl Parser<'_> {
    fn binary(&mut self, level: usize) -> Result<i64, String> {
        let Some(operators) = OPERATORS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = operators.iter().find(|o| self.rest.starts_with(**o)) {
            self.rest = self.rest[operator.len()..].trim_start();
            let right = self.binary(level + 1)?;
            left = match *operator {
                "||" => i64::from(left != 0 || right != 0),
                "&&" => i64::from(left != 0 && right != 0),
                "==" => i64::from(left == right),
                "!=" => i64::from(left != right),
                "<=" => i64::from(left <= right),
                ">=" => i64::from(left >= right),
                "<" => i64::from(left < right),
                ">" => i64::from(left > right),
                "+" => left + right,
                "-" => left - right,
                "*" => left * right,
                "/" => left.checked_div(right).ok_or("a division by zero")?,
                _ => left.checked_rem(right).ok_or("a division by zero")?,
            };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<i64, String> {
        if let Some(rest) = self.rest.strip_prefix('!') {
            self.rest = rest.trim_start();
            return Ok(i64::from(self.unary()? == 0));
        }
        if let Some(rest) = self.rest.strip_prefix('(') {
            self.rest = rest.trim_start();
            let value = self.binary(0)?;
            let rest = self.rest.strip_prefix(')').ok_or("a parenthesis has no end")?;
            self.rest = rest.trim_start();
            return Ok(value);
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        let value = word.parse().ok().or_else(|| self.values.get(word).copied());
        value.ok_or_else(|| format!("{word:?} has no value"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_carried_out() {
        let values = Values::from([("N".into(), 2), ("Z".into(), 0)]);
        let cases = [
            ("#for i in 0..N\na$(i)_$(i * 2 + 1)\n#end", Ok("a0_1\na1_3\n")),
            ("#if N == 2 && !Z\nyes\n#else\nno\n#end", Ok("yes\n")),
            ("#if Z\n#if N\na\n#else\nb\n#end\n#else\nc\n#end", Ok("c\n")),
            ("#for i in 0..N\n#for j in 0..N\n$((i + j) % 2)\n#end\n#end", Ok("0\n1\n1\n0\n")),
            ("x[$(N - 1)] + $(N >= 3)", Ok("x[1] + 0\n")),
            ("#if N\nx", Err("line 1: has no end: #if N")),
            ("$(M)", Err("line 1: \"M\" has no value: $(M)")),
            ("#frob", Err("line 1: is no directive: #frob")),
            ("$(1 / Z)", Err("line 1: a division by zero: $(1 / Z)")),
        ];
        for (text, expected) in cases {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(expand(text, &values), expected, "{text}");
        }
    }
}
