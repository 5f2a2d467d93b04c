//! Names of hosts in addresses that are dialled.

use std::error::Error;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::{fmt, io};

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::Multiaddr;
use libp2p::core::Transport;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;

use super::lookup::Lookups;

/// A transport that takes names where another takes IP addresses.
#[derive(Debug)]
pub(super) struct Named<T> {
    inner: Arc<Mutex<T>>,
    lookups: Lookups,
}

/// Why a host with a name was not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum NameError<E: Error + 'static> {
    #[error("no address of '{name}' is known")]
    Unknown {
        name: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("'{name}' has no {family} address")]
    NoAddress { name: String, family: Family },
    #[error("not an address that can be dialled: {0}")]
    NotSupported(Multiaddr),
    /// Of the last address, if the name has several.
    #[error(transparent)]
    Inner(E),
}

/// Which addresses of a name are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Any,
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "IP",
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

impl<T> Named<T> {
    /// What `inner` does with each address of a name takes its own time: how long, is for `inner` to limit.
    pub(super) fn new(inner: T, lookups: Lookups) -> Self {
        Self { inner: Arc::new(Mutex::new(inner)), lookups }
    }
}

/// The part of an address that is a name.
fn name_in(address: &Multiaddr) -> Option<(usize, String, Family)> {
    let name = |(at, part)| match part {
        Protocol::Dns(name) => Some((at, name.into_owned(), Family::Any)),
        Protocol::Dns4(name) => Some((at, name.into_owned(), Family::V4)),
        Protocol::Dns6(name) => Some((at, name.into_owned(), Family::V6)),
        _ => None,
    };
    address.iter().enumerate().find_map(name)
}

fn lock<T>(inner: &Mutex<T>) -> MutexGuard<'_, T> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Transport for Named<T>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send,
    T::Dial: Send,
{
    type Output = T::Output;
    type Error = NameError<T::Error>;
    type ListenerUpgrade = futures::future::MapErr<T::ListenerUpgrade, fn(T::Error) -> Self::Error>;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        lock(&self.inner).listen_on(id, address).map_err(|error| error.map(NameError::Inner))
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        lock(&self.inner).remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let Some((at, name, family)) = name_in(&address) else {
            let dial = lock(&self.inner).dial(address, options).map_err(|error| error.map(NameError::Inner))?;
            return Ok(async move { dial.await.map_err(NameError::Inner) }.boxed());
        };
        let (inner, lookups) = (Arc::clone(&self.inner), self.lookups.clone());
        let dial = async move {
            let mut ips = match lookups.find(&name).await {
                Ok(ips) => ips,
                Err(source) => return Err(NameError::Unknown { name, source }),
            };
            ips.dedup(); // the system tells an address once for each kind of socket
            let mut failed = NameError::NoAddress { name, family };
            for ip in ips.into_iter().filter(|ip| family.has(*ip)).take(MOST) {
                let Some(resolved) = address.replace(at, |_| Some(ip.into())) else { continue };
                let dial = lock(&inner).dial(resolved, options);
                failed = match dial {
                    Ok(dial) => match dial.await {
                        Ok(output) => return Ok(output),
                        Err(error) => NameError::Inner(error),
                    },
                    Err(TransportError::MultiaddrNotSupported(address)) => NameError::NotSupported(address),
                    Err(TransportError::Other(error)) => NameError::Inner(error),
                };
            }
            Err(failed)
        };
        Ok(dial.boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let event = Pin::new(&mut *lock(&self.inner)).poll(context);
        event.map(|event| {
            event
                .map_upgrade(|upgrade| {
                    futures::TryFutureExt::map_err(upgrade, NameError::Inner as fn(T::Error) -> Self::Error)
                })
                .map_err(NameError::Inner)
        })
    }
}

/// Most addresses of one name that are tried, one after the other.
const MOST: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::core::transport::timeout::TransportTimeout;
    use libp2p::core::{Endpoint, transport::PortUse};
    use libp2p::tcp;

    use super::*;

    const OPTIONS: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };

    async fn dial(address: &str) -> Result<(), NameError<io::Error>> {
        let tcp = tcp::tokio::Transport::new(tcp::Config::default());
        dial_with(Named::new(tcp, Lookups::of_system()), address).await
    }

    async fn dial_with<T>(mut named: Named<T>, address: &str) -> Result<(), NameError<T::Error>>
    where
        T: Transport + Send + Unpin + 'static,
        T::Error: Send,
        T::Dial: Send,
    {
        match named.dial(address.parse().unwrap(), OPTIONS) {
            Ok(dial) => dial.await.map(drop),
            Err(TransportError::Other(error)) => Err(error),
            Err(TransportError::MultiaddrNotSupported(address)) => Err(NameError::NotSupported(address)),
        }
    }

    #[tokio::test]
    async fn an_address_that_is_silent_leaves_time_for_the_next() {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tcp = tcp::tokio::Transport::new(tcp::Config::default()).and_then(|stream, point| async move {
            if point.get_remote_address().to_string().starts_with("/ip4/127.0.0.2/") {
                std::future::pending::<()>().await;
            }
            Ok::<_, io::Error>(stream)
        });
        let tcp = TransportTimeout::new(tcp.boxed(), Duration::from_millis(200));
        let lookups = Lookups::new(|_| Ok(["127.0.0.2", "127.0.0.1"].map(|ip| ip.parse().unwrap()).to_vec()));
        dial_with(Named::new(tcp, lookups), &format!("/dns/host/tcp/{port}")).await.unwrap();
    }

    #[tokio::test]
    async fn a_name_is_dialled_at_its_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (name, family) in [("localhost", "dns"), ("localhost", "dns4"), ("127.0.0.1", "dns")] {
            dial(&format!("/{family}/{name}/tcp/{port}")).await.unwrap();
        }
        dial(&format!("/ip4/127.0.0.1/tcp/{port}")).await.unwrap();
        drop(listener);
        let refused = dial(&format!("/dns4/localhost/tcp/{port}")).await.unwrap_err();
        assert!(
            matches!(&refused, NameError::Inner(io) if io.kind() == io::ErrorKind::ConnectionRefused),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_told() {
        let error = dial("/dns/no..where/tcp/1").await.unwrap_err();
        assert!(matches!(error, NameError::Unknown { .. }) && error.source().is_some(), "{error:?}");
        assert_eq!(error.to_string(), "no address of 'no..where' is known");
        let error = dial("/dns6/127.0.0.1/tcp/1").await.unwrap_err();
        assert_eq!(error.to_string(), "'127.0.0.1' has no IPv6 address");
        let error = dial("/dnsaddr/host.example/tcp/1").await.unwrap_err();
        assert!(matches!(error, NameError::NotSupported(_)), "{error:?}");
    }
}
