//! Round trips through SQL, on the emulator of <https://github.com/goccy/bigquery-emulator>.
