//! Numbers and times as people and as machines read them.

use maud::{Markup, html};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// The first of January 1970 was a Thursday.
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

struct Utc {
    year: i64,
    month: i64,
    day: i64,
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

/// From milliseconds since 1970; days to civil date after H. Hinnant.
fn utc(ms: u64) -> Utc {
    let seconds = ms / 1000;
    let days = (seconds / 86_400) as i64;
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    Utc {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month,
        day: day_of_year - (153 * shifted + 2) / 5 + 1,
        weekday: (days % 7) as usize,
        hour: seconds / 3600 % 24,
        minute: seconds / 60 % 60,
        second: seconds % 60,
    }
}

/// `2026-11-21 01:07:21 UTC`
pub fn utc_time(ms: u64) -> String {
    let Utc { year, month, day, hour, minute, second, .. } = utc(ms);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// `Sat Nov 21 01:07:21 UTC 2026`, as Java's `Date` prints it and Spark's JSON carries it.
pub fn java_date(ms: u64) -> String {
    let Utc { year, month, day, weekday, hour, minute, second } = utc(ms);
    let month = MONTHS[(month - 1) as usize];
    format!("{} {month} {day:02} {hour:02}:{minute:02}:{second:02} UTC {year}", WEEKDAYS[weekday])
}

/// A span of time in its two largest units: `240 ms`, `12 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{}.{} s", seconds, ms % 1000 / 100),
        10_000..60_000 => format!("{seconds} s"),
        60_000..3_600_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600_000..86_400_000 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `just now`, `12 s ago`, `3 min ago`, `2 h ago`, `4 d ago`.
fn ago(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..2 => "just now".to_owned(),
        2..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// A moment as its distance from now, the absolute time on hovering.
pub fn moment(at_ms: u64, now_ms: u64) -> Markup {
    let absolute = utc_time(at_ms);
    let machine = absolute.replacen(' ', "T", 1).replace(" UTC", "Z");
    html! { time datetime=(machine) title=(absolute) { (ago(now_ms.saturating_sub(at_ms))) } }
}

/// `12 KiB`, `12.5 MiB`, `3.1 GiB`
pub fn bytes(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    match bytes {
        0..0x10_0000 => format!("{:.0} KiB", kib.ceil()),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", kib / 1024.0),
        _ => format!("{:.1} GiB", kib / 1024.0 / 1024.0),
    }
}

/// `1,234,567`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 core`, `2 cores`
pub fn plural(number: u64, singular: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {singular}{s}", count(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_right_to_the_second() {
        assert_eq!(utc_time(1_795_223_241_717), "2026-11-21 01:07:21 UTC");
        assert_eq!(java_date(1_795_223_241_717), "Sat Nov 21 01:07:21 UTC 2026");
        assert_eq!(java_date(0), "Thu Jan 01 00:00:00 UTC 1970");
        assert_eq!(utc_time(951_782_400_000), "2000-02-29 00:00:00 UTC");
        let shown = moment(1_795_223_241_000, 1_795_223_250_000).into_string();
        let absolute = r#"datetime="2026-11-21T01:07:21Z" title="2026-11-21 01:07:21 UTC""#;
        assert_eq!(shown, format!("<time {absolute}>9 s ago</time>"));
        assert!(moment(9_000, 1_000).into_string().contains("just now"), "clocks differ");
    }

    #[test]
    fn spans_and_counts_are_short() {
        let spans = [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_250, "1.2 s"),
            (59_999, "59 s"),
            (185_000, "3 min 5 s"),
            (7_800_000, "2 h 10 min"),
            (356_400_000, "4 d 3 h"),
        ];
        for (ms, text) in spans {
            assert_eq!(duration(ms), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!((plural(1, "core"), plural(2, "core")), ("1 core".to_owned(), "2 cores".to_owned()));
    }
}
