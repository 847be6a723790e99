//! Numbers, times and states as people read them in a terminal.

use serde::Serialize;

/// The word that the API uses for an enum without fields.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => "?".into(),
    }
}

pub(crate) fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Powers of 1000.
pub(crate) fn bytes(n: u64) -> String {
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    while value >= 999.5 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

pub(crate) fn duration(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

pub(crate) fn ago(at_ms: Option<i64>, now_ms: i64) -> String {
    match at_ms {
        None => "never".into(),
        Some(at) if at > now_ms => format!("in {}", duration(at.saturating_sub(now_ms))),
        Some(at) => format!("{} ago", duration(now_ms.saturating_sub(at))),
    }
}

/// `2026-11-24 19:35:04` in UTC. Days to a civil date: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub(crate) fn utc(at_ms: i64) -> String {
    let (days, second) = (at_ms.div_euclid(86_400_000), at_ms.rem_euclid(86_400_000) / 1000);
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second % 3600 / 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

pub(crate) fn short(digest: impl ToString) -> String {
    digest.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (ms, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_827_696_000, "2000-02-29 12:34:56"),
            (1_795_548_904_999, "2026-11-24 19:35:04"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(utc(ms), expected);
        }
    }

    #[test]
    fn ages() {
        for (at, expected) in [
            (None, "never"),
            (Some(88_000), "12 s ago"),
            (Some(100_000 + 3_660_000), "in 1 h 1 min"),
            (Some(i64::MIN), "106751991167 d 7 h ago"),
        ] {
            assert_eq!(ago(at, 100_000), expected);
        }
    }

    #[test]
    fn sizes() {
        for (n, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (12_345, "12 kB"),
            (4_652_100, "4.7 MB"),
            (999_950, "1.0 MB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(bytes(n), expected);
        }
    }

    #[test]
    fn words_are_the_apis() {
        assert_eq!(word(&andon_protocol::api::RolloutDeviceState::RolledBack), "rolled back");
        assert_eq!(word(&3), "?");
    }
}
