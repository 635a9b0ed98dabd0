//! Opening a connection to the broker.

use super::FeedError;
use super::options::BrokerAddress;
use mqttconverter::tls::{ClientTls, client_config};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// A connection, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where and how to connect, with certificates loaded.
#[derive(Clone)]
pub(super) struct Target {
    address: BrokerAddress,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    pub(super) fn new(address: &BrokerAddress, tls: &ClientTls) -> Result<Self, FeedError> {
        if !address.tls {
            if *tls != ClientTls::default() {
                return Err(FeedError::Options(
                    "certificates are given but the connection is not encrypted; use an address with mqtts://",
                ));
            }
            return Ok(Self { address: address.clone(), tls: None });
        }
        let name = ServerName::try_from(address.host.clone()).map_err(|_| FeedError::Address {
            url: format!("mqtts://{address}"),
            reason: "the host is neither a name nor an IP address",
        })?;
        let connector = TlsConnector::from(client_config(tls)?);
        Ok(Self { address: address.clone(), tls: Some((connector, name)) })
    }

    pub(super) async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect((self.address.host.as_str(), self.address.port)).await?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(tcp)),
            Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), tcp).await?)),
        }
    }
}
