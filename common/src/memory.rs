//! Memory sizes as people write them: `512m`, `2g`, `1536`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A memory size in whole MiB. Written `512m`, `2g`, `1t`, `2048k`; a bare number is MiB, as in Spark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct MemorySize(u64);

/// Text that is not a memory size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a memory size: write 512m, 2g or a number of MiB, at least 1m")]
pub struct InvalidMemorySize(String);

impl MemorySize {
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib)
    }
    pub const fn mib(self) -> u64 {
        self.0
    }
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

impl FromStr for MemorySize {
    type Err = InvalidMemorySize;
    fn from_str(text: &str) -> Result<Self, InvalidMemorySize> {
        let invalid = || InvalidMemorySize(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = lower.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let mib = match unit {
            "" | "m" | "mb" | "mib" => Some(number),
            "k" | "kb" | "kib" => Some(number / 1024),
            "b" => Some(number >> 20),
            "g" | "gb" | "gib" => number.checked_mul(1 << 10),
            "t" | "tb" | "tib" => number.checked_mul(1 << 20),
            _ => None,
        };
        // 2^40 MiB (an exbibyte) is beyond any machine and keeps every later multiplication in range.
        match mib {
            Some(mib) if (1..=1 << 40).contains(&mib) => Ok(Self(mib)),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0;
        if mib < 1024 {
            write!(f, "{mib} MiB")
        } else if mib.is_multiple_of(1024) {
            write!(f, "{} GiB", mib / 1024)
        } else {
            write!(f, "{:.1} GiB", mib as f64 / 1024.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_spark_users_write_them() {
        for (text, mib) in [
            ("512m", 512),
            ("2g", 2048),
            ("2G", 2048),
            ("1t", 1 << 20),
            ("100", 100),
            ("4096k", 4),
            ("1gib", 1024),
        ] {
            assert_eq!(text.parse::<MemorySize>().unwrap().mib(), mib, "{text}");
        }
        for bad in ["", "m", "1x", "-1", "1.5g", "0", "1k", "99999999999999999999", "18446744073709551615t"] {
            assert!(bad.parse::<MemorySize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_honest_unit() {
        assert_eq!(MemorySize::from_mib(512).to_string(), "512 MiB");
        assert_eq!(MemorySize::from_mib(2048).to_string(), "2 GiB");
        assert_eq!(MemorySize::from_mib(1536).to_string(), "1.5 GiB");
    }
}
