//! What every Millstream program shares: configuration, telemetry, signals, drain and the admin HTTP server.
