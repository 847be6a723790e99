//! Times of metadata: `YYYY-MM-DDTHH:MM:SSZ`, nothing else (§4.2.2).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A UTC time in whole seconds, from 1970 to the end of 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UtcTime {
    unix_s: i64,
}

/// 9999-12-31T23:59:59Z
const UNIX_S_MAX: i64 = 253_402_300_799;

impl UtcTime {
    /// Clamped to the range of the type.
    pub fn from_unix_ms(ms: i64) -> Self {
        Self { unix_s: ms.div_euclid(1000).clamp(0, UNIX_S_MAX) }
    }

    pub fn unix_ms(self) -> i64 {
        self.unix_s * 1000
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.unix_s.div_euclid(86_400));
        let s = self.unix_s.rem_euclid(86_400);
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
    }
}

impl FromStr for UtcTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("time {:?} is not YYYY-MM-DDTHH:MM:SSZ", text.chars().take(40).collect::<String>());
        let bytes = text.as_bytes();
        let shape = b"dddd-dd-ddTdd:dd:ddZ";
        let fits = bytes.len() == shape.len()
            && bytes.iter().zip(shape).all(|(b, s)| if *s == b'd' { b.is_ascii_digit() } else { b == s });
        if !fits {
            return Err(bad());
        }
        let number =
            |from: usize, to: usize| bytes[from..to].iter().fold(0_i64, |n, b| n * 10 + i64::from(b - b'0'));
        let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
        let (hour, minute, second) = (number(11, 13), number(14, 16), number(17, 19));
        if year < 1970 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
            return Err(bad());
        }
        let days = days_from_civil(year, month, day);
        // A day that the month does not have comes back as another date.
        if civil_from_days(days) != (year, month, day) {
            return Err(bad());
        }
        Ok(Self { unix_s: days * 86_400 + hour * 3600 + minute * 60 + second })
    }
}

impl TryFrom<String> for UtcTime {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<UtcTime> for String {
    fn from(time: UtcTime) -> String {
        time.to_string()
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar. Years are counted from March, so that the
/// leap day is the last of a year; 400 years have 146,097 days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        // From `date -u -d @SECONDS`.
        let rows = [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-11-24T19:36:22Z", 1_795_548_982),
            ("2100-02-28T23:59:59Z", 4_107_542_399),
            ("9999-12-31T23:59:59Z", UNIX_S_MAX),
        ];
        for (text, seconds) in rows {
            let time: UtcTime = text.parse().unwrap();
            assert_eq!(time.unix_ms(), seconds * 1000, "{text}");
            assert_eq!(time.to_string(), text);
        }
    }

    #[test]
    fn every_day_of_four_centuries_round_trips() {
        for day in 0..146_097 {
            let time = UtcTime { unix_s: day * 86_400 + 1 };
            assert_eq!(time.to_string().parse(), Ok(time));
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "2026-11-24",
            "2026-11-24T19:36:22",
            "2026-11-24T19:36:22.5Z",
            "2026-11-24T19:36:22+00:00",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "1969-12-31T23:59:59Z",
            "+026-01-01T00:00:00Z",
            "２026-01-01T00:00:0Z",
        ] {
            assert!(text.parse::<UtcTime>().is_err(), "{text}");
        }
    }
}
