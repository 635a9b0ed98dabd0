//! Reason codes of MQTT 5 (section 2.4) that the endpoint sends, and the return codes of MQTT 3.1.1 (section 3.2.2.3).

/// Why a packet is refused or a connection ends. The number is the reason code of MQTT 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reason {
    Malformed = 0x81,
    ProtocolError = 0x82,
    UnsupportedVersion = 0x84,
    ClientIdNotValid = 0x85,
    BadCredentials = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    ShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    TakenOver = 0x8E,
    TopicNameInvalid = 0x90,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    PayloadFormatInvalid = 0x99,
}

impl Reason {
    /// The reason code of MQTT 5.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// The return code of a 3.1.1 CONNACK, where that version has one for it. Otherwise the connection is closed
    /// without a CONNACK.
    pub(crate) const fn return_code(self) -> Option<u8> {
        match self {
            Self::UnsupportedVersion => Some(1),
            Self::ClientIdNotValid => Some(2),
            Self::ServerUnavailable | Self::ServerBusy | Self::QuotaExceeded | Self::ShuttingDown => Some(3),
            Self::BadCredentials => Some(4),
            Self::NotAuthorized => Some(5),
            _ => None,
        }
    }

    /// The word for logs and metrics.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed-packet",
            Self::ProtocolError => "protocol-error",
            Self::UnsupportedVersion => "unsupported-protocol-version",
            Self::ClientIdNotValid => "client-id-not-valid",
            Self::BadCredentials => "bad-user-name-or-password",
            Self::NotAuthorized => "not-authorized",
            Self::ServerUnavailable => "server-unavailable",
            Self::ServerBusy => "not-accepted-downstream",
            Self::ShuttingDown => "shutting-down",
            Self::BadAuthenticationMethod => "bad-authentication-method",
            Self::KeepAliveTimeout => "keep-alive-timeout",
            Self::TakenOver => "session-taken-over",
            Self::TopicNameInvalid => "topic-name-invalid",
            Self::PacketIdentifierNotFound => "packet-identifier-not-found",
            Self::ReceiveMaximumExceeded => "receive-maximum-exceeded",
            Self::TopicAliasInvalid => "topic-alias-invalid",
            Self::PacketTooLarge => "packet-too-large",
            Self::QuotaExceeded => "quota-exceeded",
            Self::PayloadFormatInvalid => "payload-format-invalid",
        }
    }
}
